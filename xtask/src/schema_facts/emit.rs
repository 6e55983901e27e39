//! Writes the facts as text, one line a field. The grammar is documented where it is read:
//! `master-lite/api/src/schema/facts.rs`.

use super::{
    go::{Body, Decl, Field, Package, Packages},
    openapi::Documents,
};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// Types whose JSON form is not that of their Go struct: (import path, name, how facts call them).
const SPECIAL: &[(&str, &str, &str)] = &[
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "Time", "time"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "MicroTime", "microtime"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "Duration", "duration"),
    ("k8s.io/apimachinery/pkg/apis/meta/v1", "FieldsV1", "fieldsv1"),
    ("k8s.io/apimachinery/pkg/api/resource", "Quantity", "quantity"),
    ("k8s.io/apimachinery/pkg/util/intstr", "IntOrString", "intorstring"),
    ("k8s.io/apimachinery/pkg/runtime", "RawExtension", "raw"),
    ("k8s.io/apimachinery/pkg/types", "UID", "string"),
    ("k8s.io/apimachinery/pkg/types", "NodeName", "string"),
    ("k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1", "JSON", "json"),
    ("k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1", "JSONSchemaPropsOrArray", "schema-or-array"),
    ("k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1", "JSONSchemaPropsOrBool", "schema-or-bool"),
    (
        "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1",
        "JSONSchemaPropsOrStringArray",
        "schema-or-strings",
    ),
];

const META: &str = "k8s.io/apimachinery/pkg/apis/meta/v1";

/// Kinds of meta/v1 that its register.go adds to every group or to `v1` by other means than a list.
const META_KINDS: &[&str] = &[
    "APIGroup",
    "APIGroupList",
    "APIResourceList",
    "APIVersions",
    "CreateOptions",
    "DeleteOptions",
    "GetOptions",
    "List",
    "ListOptions",
    "PartialObjectMetadata",
    "PartialObjectMetadataList",
    "PatchOptions",
    "Status",
    "Table",
    "TableOptions",
    "UpdateOptions",
    "WatchEvent",
];

struct Emitter<'a> {
    packages: &'a Packages,
    openapi: &'a Documents,
    /// Lines by (import path, type name).
    done: BTreeMap<(String, String), String>,
    queue: Vec<(String, String)>,
    seen: BTreeSet<(String, String)>,
}

/// The whole file.
pub fn emit(packages: &Packages, openapi: &Documents, version: &str) -> Result<String> {
    let mut emitter =
        Emitter { packages, openapi, done: BTreeMap::new(), queue: Vec::new(), seen: BTreeSet::new() };
    for (path, package) in &packages.0 {
        for kind in kinds(path, package) {
            emitter.need(path, kind);
        }
    }
    while let Some((path, name)) = emitter.queue.pop() {
        let text = emitter.declaration(&path, &name).with_context(|| format!("in type {name} of {path}"))?;
        emitter.done.insert((path, name), text);
    }
    let mut out =
        format!("# Written by `cargo xtask schema-facts` from Kubernetes {version}. Do not edit.\n");
    let mut last = "";
    for ((path, name), text) in &emitter.done {
        let package = &packages.0[path];
        if path != last {
            let version = path.rsplit('/').next().unwrap_or_default();
            let group =
                if path == META { "meta.k8s.io" } else { package.group.as_deref().unwrap_or_default() };
            writeln!(out, "package {} {version} {group}", openapi_prefix(path))?;
            last = path;
        }
        let marker = if kinds(path, package).any(|kind| kind == name) { "kind" } else { "type" };
        writeln!(out, "{marker} {name}{text}")?;
    }
    Ok(out)
}

fn kinds<'a>(path: &str, package: &'a Package) -> Box<dyn Iterator<Item = &'a str> + 'a> {
    if path == META {
        return Box::new(META_KINDS.iter().copied());
    }
    let registered = package.kinds.iter().map(String::as_str);
    Box::new(registered.filter(|kind| {
        package.types.get(*kind).is_some_and(|decl| {
            matches!(&decl.body, Body::Struct(fields)
            if fields.iter().any(|field| field.expr.ends_with("TypeMeta")))
        })
    }))
}

/// `k8s.io/api/core/v1` is `io.k8s.api.core.v1` in OpenAPI.
fn openapi_prefix(path: &str) -> String {
    let rest = path.trim_start_matches("k8s.io/");
    format!("io.k8s.{}", rest.replace('/', "."))
}

impl Emitter<'_> {
    fn need(&mut self, path: &str, name: &str) {
        let key = (path.to_owned(), name.to_owned());
        if self.seen.insert(key.clone()) {
            self.queue.push(key);
        }
    }

    fn decl(&self, path: &str, name: &str) -> Result<&Decl> {
        let package = self.packages.0.get(path).with_context(|| format!("package {path} is not loaded"))?;
        package.types.get(name).with_context(|| format!("{path} declares no {name}"))
    }

    fn declaration(&mut self, path: &str, name: &str) -> Result<String> {
        let packages = self.packages;
        let decl = packages.0[path].types.get(name).with_context(|| format!("{path} declares no {name}"))?;
        let schema = self.openapi.schema(&format!("{}.{name}", openapi_prefix(path)));
        let mut out = String::new();
        match &decl.body {
            Body::Named(expr) if expr == "string" => {
                write!(out, " enum={}", decl.constants.join("|"))?;
                return Ok(out);
            }
            Body::Named(expr) => {
                let expr = self.resolve(path, &decl.imports, expr)?;
                write!(out, " wraps={expr}")?;
            }
            Body::Struct(fields) => {
                let atomic = schema.map_or_else(
                    || decl.markers.iter().any(|marker| marker == "structType=atomic"),
                    |schema| schema["x-kubernetes-map-type"] == "atomic",
                );
                if atomic {
                    out.push_str(" atomic");
                }
                for field in fields {
                    out.push('\n');
                    let line = self
                        .field(path, name, decl, field, schema)
                        .with_context(|| format!("in field {:?}", field.json))?;
                    out.push_str(&line);
                }
            }
        }
        Ok(out)
    }

    fn field(
        &mut self,
        path: &str,
        name: &str,
        decl: &Decl,
        field: &Field,
        schema: Option<&Value>,
    ) -> Result<String> {
        if field.number != 0 {
            let number = self.packages.0[path].messages.number(name, &field.proto_name);
            ensure!(
                number == Some(field.number),
                "protobuf number {} of the Go tag is {number:?} in generated.proto",
                field.number
            );
        }
        let expr = self.resolve(path, &decl.imports, &field.expr)?;
        let json = if field.inline { "-" } else { &field.json };
        let mut out = format!(" {json} {} {expr}", field.number);
        if field.inline {
            return Ok(out);
        }
        if field.omitempty {
            out.push_str(" ?");
        }
        if field.omitzero {
            out.push_str(" ?0");
        }
        let facts = match schema.and_then(|schema| schema["properties"].get(&field.json)) {
            Some(property) => Facts::from_openapi(property, schema.map(|s| &s["required"]), field),
            None => Facts::from_markers(field),
        };
        facts.write(&mut out)?;
        Ok(out)
    }

    /// Turns a Go type expression into the facts' notation, queueing the types it needs.
    fn resolve(&mut self, path: &str, imports: &BTreeMap<String, String>, expr: &str) -> Result<String> {
        if let Some(rest) = expr.strip_prefix('*') {
            return Ok(format!("*{}", self.resolve(path, imports, rest)?));
        }
        if expr == "[]byte" {
            return Ok("bytes".to_owned());
        }
        if let Some(rest) = expr.strip_prefix("[]") {
            return Ok(format!("[]{}", self.resolve(path, imports, rest)?));
        }
        if let Some(rest) = expr.strip_prefix("map[") {
            let (_, value) = rest.split_once(']').context("map without a key")?;
            return Ok(format!("{{}}{}", self.resolve(path, imports, value)?));
        }
        if let Some(scalar) = scalar(expr) {
            return Ok(scalar.to_owned());
        }
        let (owner, name) = match expr.split_once('.') {
            Some((alias, name)) => {
                let owner = imports.get(alias).with_context(|| format!("no import for {expr}"))?;
                (owner.as_str(), name)
            }
            None => (path, expr),
        };
        if let Some((.., special)) = SPECIAL.iter().find(|(p, n, _)| *p == owner && *n == name) {
            if special.starts_with("schema-or-") {
                self.need(owner, "JSONSchemaProps");
            }
            return Ok((*special).to_owned());
        }
        let package = self.packages.0.get(owner).with_context(|| format!("{owner} is not loaded"))?;
        let decl = self.decl(owner, name)?;
        match &decl.body {
            Body::Struct(_) => {}
            Body::Named(target) if target == "string" => {
                let is_enum = decl.markers.iter().any(|marker| marker == "enum");
                if !is_enum || decl.constants.is_empty() {
                    return Ok("string".to_owned());
                }
            }
            Body::Named(target) => {
                let wrapped =
                    package.messages.has(name) && (target.starts_with("[]") || target.starts_with("map["));
                if !wrapped {
                    let (target, imports) = (target.clone(), decl.imports.clone());
                    return self.resolve(owner, &imports, &target);
                }
            }
        }
        self.need(owner, name);
        if owner == path { Ok(format!(".{name}")) } else { Ok(format!("{}.{name}", openapi_prefix(owner))) }
    }
}

fn scalar(expr: &str) -> Option<&'static str> {
    Some(match expr {
        "string" => "string",
        "bool" => "bool",
        "int32" => "int32",
        "int64" | "int" => "int64",
        "uint8" | "uint16" | "uint32" => "uint32",
        "uint64" => "uint64",
        "float64" => "float64",
        "interface{}" | "any" => "any",
        _ => return None,
    })
}

/// What a field carries besides its type.
#[derive(Default)]
struct Facts {
    required: bool,
    default: Option<Value>,
    list: Option<String>,
    keys: Vec<String>,
    map: Option<String>,
    merge_key: Option<String>,
    strategy: Option<String>,
}

impl Facts {
    fn from_openapi(property: &Value, required: Option<&Value>, field: &Field) -> Self {
        let text = |key: &str| property[key].as_str().map(str::to_owned);
        let default = property.get("default").filter(|value| !is_implied(value, field)).cloned();
        let keys = property["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        Self {
            required: required.and_then(Value::as_array).is_some_and(|r| r.iter().any(|n| *n == field.json)),
            default,
            list: text("x-kubernetes-list-type"),
            keys: keys.filter_map(|key| key.as_str().map(str::to_owned)).collect(),
            map: text("x-kubernetes-map-type"),
            merge_key: text("x-kubernetes-patch-merge-key"),
            strategy: text("x-kubernetes-patch-strategy"),
        }
    }

    /// For types that no served document shows, by the rules of the OpenAPI generator.
    fn from_markers(field: &Field) -> Self {
        let value = |key: &str| field.markers.iter().find_map(|m| m.strip_prefix(key)).map(str::to_owned);
        let keys = field.markers.iter().filter_map(|m| m.strip_prefix("listMapKey=")).map(str::to_owned);
        let optional = field.omitempty || field.markers.iter().any(|marker| marker == "optional");
        let default = value("default=").and_then(|text| serde_json::from_str(&text).ok());
        Self {
            required: !optional,
            default: default.filter(|value| !is_implied(value, field)),
            list: value("listType="),
            keys: keys.collect(),
            map: value("mapType="),
            merge_key: field.patch_merge_key.clone(),
            strategy: field.patch_strategy.clone(),
        }
    }

    fn write(&self, out: &mut String) -> Result<()> {
        if self.required {
            out.push_str(" !");
        }
        if let Some(default) = &self.default {
            let text = default.to_string();
            if text.contains(char::is_whitespace) {
                bail!("default {text} holds white space, which the format has no room for");
            }
            write!(out, " default={text}")?;
        }
        if let Some(list) = &self.list {
            write!(out, " list={list}")?;
        }
        if !self.keys.is_empty() {
            write!(out, " keys={}", self.keys.join(","))?;
        }
        if let Some(map) = &self.map {
            write!(out, " map={map}")?;
        }
        if let Some(key) = &self.merge_key {
            write!(out, " mergekey={key}")?;
        }
        if let Some(strategy) = &self.strategy {
            write!(out, " patch={strategy}")?;
        }
        Ok(())
    }
}

/// Whether the default follows from the Go type, as that of a struct or of a scalar without `omitempty` does. Zero
/// defaults of pointers do not: they say that an absent value becomes a zero that is there.
fn is_implied(value: &Value, field: &Field) -> bool {
    let zero = match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    };
    zero && (value.is_object() || !field.omitempty && !field.expr.starts_with('*'))
}
