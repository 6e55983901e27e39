//! Loads the committed facts.
//!
//! The text has one line a field, in this grammar (tokens are separated by single spaces):
//!
//! ```text
//! package <OpenAPI prefix> <version> <group>          types below belong to it
//! kind|type <Name> [atomic] [enum=A|B] [wraps=<type>]  `kind` when registered in the scheme
//!  <json name or -> <protobuf number> <type> [flags]   a field; `-` is an inlined struct
//! ```
//!
//! A type is a scalar's name, `.Name` in the same package, a full OpenAPI name, or one of those behind `*`
//! (pointer), `[]` (list) and `{}` (map of string). Flags: `?` omitempty, `?0` omitzero, `!` required,
//! `default=<JSON>`, `list=`, `keys=a,b`, `map=`, `mergekey=`, `patch=a,b`.

use super::{Enum, Extra, Field, ListKind, Name, Node, NodeId, Scalar, Schema, Special, Struct};
use crate::meta::GroupVersionKind;
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

/// The facts could not be read: the file is not what the generator writes.
#[derive(Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct FactsError {
    line: usize,
    what: String,
}

struct Loader<'t> {
    schema: Schema,
    /// Shared nodes by their notation, so that each list or map type exists once.
    shared: HashMap<(Cow<'t, str>, ListKind, &'t str, bool), NodeId>,
    package: &'t str,
    line: usize,
}

/// Reads the whole text. Types may refer to later ones.
pub fn load(text: &'static str) -> Result<Schema, FactsError> {
    let lines = text.lines().count();
    let mut loader = Loader {
        schema: Schema {
            nodes: Vec::with_capacity(lines / 4),
            types: HashMap::with_capacity(lines / 5),
            kinds: HashMap::new(),
        },
        shared: HashMap::new(),
        package: "",
        line: 0,
    };
    loader.declare(text);
    loader.define(text)?;
    Ok(loader.schema)
}

impl Loader<'static> {
    /// First pass: a node for every named type, so that references resolve in any order.
    fn declare(&mut self, text: &'static str) {
        let mut package = "";
        for line in text.lines() {
            let mut words = line.split(' ');
            match (words.next(), words.next()) {
                (Some("package"), Some(prefix)) => package = prefix,
                (Some("kind" | "type"), Some(name)) => {
                    let id = self.push(Node::Scalar(Scalar::String));
                    self.schema.types.insert(Cow::Owned(format!("{package}.{name}")), id);
                }
                _ => {}
            }
        }
    }

    fn define(&mut self, text: &'static str) -> Result<(), FactsError> {
        let mut group = ("", "");
        let mut open: Option<(NodeId, Struct)> = None;
        for (index, line) in text.lines().enumerate() {
            self.line = index + 1;
            if line.starts_with('#') {
                continue;
            }
            if let Some(rest) = line.strip_prefix(' ') {
                let field = self.field(rest)?;
                match &mut open {
                    Some((_, owner)) => owner.fields.push(field),
                    None => return Err(self.error("a field outside of a struct")),
                }
                continue;
            }
            if let Some((id, done)) = open.take() {
                self.close(id, done);
            }
            let mut words = line.split(' ');
            match words.next() {
                Some("package") => {
                    self.package = words.next().unwrap_or_default();
                    group.1 = words.next().unwrap_or_default();
                    group.0 = words.next().unwrap_or_default();
                }
                Some(marker @ ("kind" | "type")) => {
                    let gvk = (marker == "kind").then_some(group);
                    open = self.declaration(words, gvk)?;
                }
                _ => return Err(self.error("neither package, kind, type nor field")),
            }
        }
        if let Some((id, done)) = open {
            self.close(id, done);
        }
        Ok(())
    }

    /// A `kind` or `type` line; a struct stays open for its fields.
    fn declaration(
        &mut self,
        mut words: std::str::Split<'static, char>,
        group: Option<(&str, &str)>,
    ) -> Result<Option<(NodeId, Struct)>, FactsError> {
        let short = words.next().unwrap_or_default();
        let name: Name = Cow::Owned(format!("{}.{short}", self.package));
        let id = self.named(&name)?;
        let mut atomic = false;
        for word in words {
            if word == "atomic" {
                atomic = true;
            } else if let Some(values) = word.strip_prefix("enum=") {
                let values = values.split('|').map(Cow::Borrowed).collect();
                self.schema.nodes[id.0 as usize] = Node::Enum(Box::new(Enum { name, values }));
                return Ok(None);
            } else if let Some(expr) = word.strip_prefix("wraps=") {
                let inner = self.resolve(expr, ListKind::Unset, "", false)?;
                self.schema.nodes[id.0 as usize] = Node::Wrapped(inner);
                return Ok(None);
            }
        }
        let gvk = group.map(|(group, version)| GroupVersionKind::new(group, version, short));
        if let Some(gvk) = &gvk {
            self.schema.kinds.insert(gvk.clone(), id);
        }
        let open = Struct {
            name,
            fields: Vec::new(),
            by_name: Box::default(),
            inlined: Box::default(),
            atomic,
            gvk: gvk.map(Box::new),
        };
        Ok(Some((id, open)))
    }

    fn close(&mut self, id: NodeId, mut done: Struct) {
        done.fields.sort_by_key(|field| field.number);
        done.fields.shrink_to_fit();
        let mut by_name = BTreeMap::new();
        let mut inlined = Vec::new();
        for (index, field) in (0_u16..).zip(&done.fields) {
            if field.inline {
                inlined.push(index);
            } else {
                by_name.insert(field.name.clone(), index);
            }
        }
        done.by_name = by_name.into_values().collect();
        done.inlined = inlined.into();
        self.schema.nodes[id.0 as usize] = Node::Struct(Box::new(done));
    }

    fn field(&mut self, line: &'static str) -> Result<Field, FactsError> {
        let mut words = line.split(' ');
        let (Some(name), Some(number), Some(expr)) = (words.next(), words.next(), words.next()) else {
            return Err(self.error("a field needs name, number and type"));
        };
        let number = match number.parse() {
            Ok(number) => number,
            Err(_) => return Err(self.error("field number is no number")),
        };
        let mut field = Field {
            name: Cow::Borrowed(name),
            node: NodeId(0),
            number,
            pointer: false,
            omitempty: false,
            omitzero: false,
            required: false,
            inline: name == "-",
            atomic: None,
            extra: None,
        };
        let mut list = ListKind::Unset;
        let mut keys = "";
        for word in words {
            match word.split_once('=') {
                None if word == "?" => field.omitempty = true,
                None if word == "?0" => field.omitzero = true,
                None if word == "!" => field.required = true,
                Some(("list", "map")) => list = ListKind::Map,
                Some(("list", "set")) => list = ListKind::Set,
                Some(("list", "atomic")) => list = ListKind::Atomic,
                Some(("keys", names)) => keys = names,
                Some(("map", "atomic")) => field.atomic = Some(true),
                Some(("map", "granular")) => field.atomic = Some(false),
                Some(("mergekey", key)) => extra(&mut field).merge_key = Some(Cow::Borrowed(key)),
                Some(("patch", strategies)) => {
                    let extra = extra(&mut field);
                    for strategy in strategies.split(',') {
                        match strategy {
                            "merge" => extra.merge = true,
                            "retainKeys" => extra.retain_keys = true,
                            "replace" => extra.replace = true,
                            _ => return Err(self.error("unknown patch strategy")),
                        }
                    }
                }
                Some(("default", json)) => match serde_json::from_str(json) {
                    Ok(value) => extra(&mut field).default = Some(value),
                    Err(error) => return Err(self.error(&error.to_string())),
                },
                _ => return Err(self.error("unknown flag")),
            }
        }
        let (pointer, expr) = expr.strip_prefix('*').map_or((false, expr), |expr| (true, expr));
        field.pointer = pointer;
        field.node = self.resolve(expr, list, keys, field.atomic == Some(true))?;
        Ok(field)
    }

    /// The node of a type expression; the list and map facts belong to its outermost list or map.
    fn resolve(
        &mut self,
        expr: &'static str,
        list: ListKind,
        keys: &'static str,
        atomic: bool,
    ) -> Result<NodeId, FactsError> {
        if let Some(rest) = expr.strip_prefix('*') {
            return self.resolve(rest, list, keys, atomic);
        }
        // `.Container`: names of the own package differ from package to package.
        let own = expr.contains('.') && !expr.contains("io.k8s.");
        let full: Cow<'static, str> = if own {
            Cow::Owned(expr.replacen('.', &format!("{}.", self.package), 1))
        } else {
            Cow::Borrowed(expr)
        };
        if !full.starts_with(['[', '{'])
            && let Some(id) = self.schema.types.get(full.as_ref())
        {
            return Ok(*id);
        }
        let key = (full, list, keys, atomic);
        if let Some(id) = self.shared.get(&key) {
            return Ok(*id);
        }
        let node = if let Some(item) = expr.strip_prefix("[]") {
            let item = self.resolve(item, ListKind::Unset, "", false)?;
            let keys = keys.split(',').filter(|key| !key.is_empty()).map(Cow::Borrowed).collect();
            Node::List { item, kind: list, keys }
        } else if let Some(value) = expr.strip_prefix("{}") {
            Node::Map { value: self.resolve(value, ListKind::Unset, "", false)?, atomic }
        } else {
            match leaf(expr) {
                Some(node) => node,
                None => return Err(self.error(&format!("unknown type {expr}"))),
            }
        };
        let id = self.push(node);
        self.shared.insert(key, id);
        Ok(id)
    }

    fn named(&self, name: &str) -> Result<NodeId, FactsError> {
        self.schema.types.get(name).copied().ok_or_else(|| self.error("undeclared type"))
    }

    fn push(&mut self, node: Node) -> NodeId {
        // The arena holds thousands of nodes; the text that makes them is bounded by the binary.
        let id = NodeId(u32::try_from(self.schema.nodes.len()).unwrap_or(u32::MAX));
        self.schema.nodes.push(node);
        id
    }

    fn error(&self, what: &str) -> FactsError {
        FactsError { line: self.line, what: what.to_owned() }
    }
}

fn extra(field: &mut Field) -> &mut Extra {
    field.extra.get_or_insert_default()
}

fn leaf(name: &str) -> Option<Node> {
    Some(match name {
        "string" => Node::Scalar(Scalar::String),
        "bool" => Node::Scalar(Scalar::Bool),
        "int32" => Node::Scalar(Scalar::Int32),
        "int64" => Node::Scalar(Scalar::Int64),
        "uint32" => Node::Scalar(Scalar::Uint32),
        "uint64" => Node::Scalar(Scalar::Uint64),
        "float64" => Node::Scalar(Scalar::Float64),
        "bytes" => Node::Scalar(Scalar::Bytes),
        "time" => Node::Special(Special::Time),
        "microtime" => Node::Special(Special::MicroTime),
        "duration" => Node::Special(Special::Duration),
        "fieldsv1" => Node::Special(Special::FieldsV1),
        "quantity" => Node::Special(Special::Quantity),
        "intorstring" => Node::Special(Special::IntOrString),
        "raw" => Node::Special(Special::RawExtension),
        "json" => Node::Special(Special::Json),
        "any" => Node::Special(Special::Any),
        "schema-or-array" => Node::Special(Special::SchemaOrArray),
        "schema-or-bool" => Node::Special(Special::SchemaOrBool),
        "schema-or-strings" => Node::Special(Special::SchemaOrStrings),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broken_facts_name_the_line() {
        let check =
            |text: &'static str, line: usize| assert_eq!(load(text).unwrap_err().line, line, "{text}");
        check("nonsense", 1);
        check(" a 1 string", 1);
        check("package p v1 \ntype A\n a x string", 3);
        check("package p v1 \ntype A\n a 1 missing", 3);
        check("package p v1 \ntype A\n a 1 string what", 3);
    }
}
