//! The schema tree: one arena of types that drives decoding, strict validation, pruning, defaulting, patching,
//! protobuf and OpenAPI.
//!
//! Built-in types come from the committed facts ([`Schema::builtin`]); nothing in the shape of the arena knows
//! that, so that schemas made at run time take the same walks.

mod facts;
mod normalize;

pub use facts::FactsError;
pub use normalize::{Normalized, TypeError};

use crate::meta::GroupVersionKind;
use serde_json::Value;
use std::{borrow::Cow, collections::HashMap, sync::LazyLock};

/// A name; borrowed from the embedded facts for built-in types.
pub type Name = Cow<'static, str>;

/// Index of a node in the arena of a [`Schema`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(u32);

impl NodeId {
    /// Position in the arena.
    pub fn index(self) -> u32 {
        self.0
    }
}

/// One type.
#[derive(Debug)]
pub enum Node {
    /// A scalar with Go's name for it.
    Scalar(Scalar),
    /// A string of a closed set. Upstream enforces sets in validation, not in decoding, and so do we.
    Enum(Box<Enum>),
    /// A type whose JSON form is its own.
    Special(Special),
    /// An array.
    List {
        /// Type of the items.
        item: NodeId,
        /// How two lists merge.
        kind: ListKind,
        /// `x-kubernetes-list-map-keys`.
        keys: Box<[Name]>,
    },
    /// An object with free keys.
    Map {
        /// Type of the values.
        value: NodeId,
        /// `x-kubernetes-map-type: atomic`.
        atomic: bool,
    },
    /// A list in JSON that protobuf wraps into a message with the items as field 1.
    Wrapped(NodeId),
    /// An object with known fields.
    Struct(Box<Struct>),
}

/// Scalars, with the width that Go gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scalar {
    /// UTF-8 text.
    String,
    /// true or false.
    Bool,
    /// Signed, 32 bits.
    Int32,
    /// Signed, 64 bits.
    Int64,
    /// Unsigned, 32 bits.
    Uint32,
    /// Unsigned, 64 bits.
    Uint64,
    /// IEEE double.
    Float64,
    /// Bytes; base64 in JSON.
    Bytes,
}

/// Types whose JSON form differs from the Go struct behind them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Special {
    /// `metav1.Time`: RFC 3339 in whole seconds.
    Time,
    /// `metav1.MicroTime`: RFC 3339 with six digits of fraction.
    MicroTime,
    /// `metav1.Duration`: Go's notation, such as `1h0m0s`.
    Duration,
    /// `metav1.FieldsV1`: a JSON object; its bytes in protobuf.
    FieldsV1,
    /// `resource.Quantity`.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `runtime.RawExtension`: any object.
    RawExtension,
    /// `apiextensionsv1.JSON`: any JSON value.
    Json,
    /// Go's `interface{}`: any JSON value, without a protobuf form.
    Any,
    /// `apiextensionsv1.JSONSchemaPropsOrArray`.
    SchemaOrArray,
    /// `apiextensionsv1.JSONSchemaPropsOrBool`.
    SchemaOrBool,
    /// `apiextensionsv1.JSONSchemaPropsOrStringArray`.
    SchemaOrStrings,
}

/// `x-kubernetes-list-type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ListKind {
    /// Not stated; merges as atomic.
    #[default]
    Unset,
    /// Replaced as a whole.
    Atomic,
    /// Items are unique scalars.
    Set,
    /// Items are objects with identifying keys.
    Map,
}

/// A closed set of strings.
#[derive(Debug)]
pub struct Enum {
    /// Full name of the type.
    pub name: Name,
    /// Allowed values, sorted.
    pub values: Box<[Name]>,
}

/// An object type.
#[derive(Debug)]
pub struct Struct {
    /// OpenAPI name, such as `io.k8s.api.core.v1.Pod`.
    pub name: Name,
    /// Own fields by ascending protobuf number, which is the order that protobuf is written in. Fields with
    /// [`Field::inline`] stand for all fields of their type.
    pub fields: Vec<Field>,
    /// Indexes into `fields` of those that are not inlined, by name.
    by_name: Box<[u16]>,
    /// Indexes of inlined fields.
    inlined: Box<[u16]>,
    /// `x-kubernetes-map-type: atomic` on the type itself.
    pub atomic: bool,
    /// Set for types that are registered kinds.
    pub gvk: Option<Box<GroupVersionKind>>,
}

/// A field of a [`Struct`].
#[derive(Debug)]
pub struct Field {
    /// JSON name; `-` for an inlined field.
    pub name: Name,
    /// Type.
    pub node: NodeId,
    /// Protobuf number; 0 when there is no protobuf form.
    pub number: u32,
    /// A Go pointer: absence and zero differ.
    pub pointer: bool,
    /// Left out of the output when empty, by Go's rule for `omitempty`.
    pub omitempty: bool,
    /// Left out when zero, structs included.
    pub omitzero: bool,
    /// In `required` of the OpenAPI schema.
    pub required: bool,
    /// All fields of the type belong to the enclosing object in JSON.
    pub inline: bool,
    /// `x-kubernetes-map-type` of the struct or map at this place, whatever its type says: true for atomic
    /// (replaced as a whole), false for granular.
    pub atomic: Option<bool>,
    /// What few fields carry.
    pub extra: Option<Box<Extra>>,
}

/// Facts that few fields carry.
#[derive(Debug, Default)]
pub struct Extra {
    /// JSON default that is not the zero value.
    pub default: Option<Value>,
    /// `x-kubernetes-patch-merge-key`.
    pub merge_key: Option<Name>,
    /// `x-kubernetes-patch-strategy` holds `merge`.
    pub merge: bool,
    /// `x-kubernetes-patch-strategy` holds `retainKeys`.
    pub retain_keys: bool,
    /// `x-kubernetes-patch-strategy` holds `replace`.
    pub replace: bool,
}

impl Field {
    /// The default, when it is not the zero value.
    pub fn default(&self) -> Option<&Value> {
        self.extra.as_ref()?.default.as_ref()
    }

    /// The key that a strategic merge of the list goes by.
    pub fn merge_key(&self) -> Option<&str> {
        self.extra.as_ref()?.merge_key.as_deref()
    }
}

/// An arena of types with names and kinds.
#[derive(Debug)]
pub struct Schema {
    nodes: Vec<Node>,
    types: HashMap<Name, NodeId>,
    kinds: HashMap<GroupVersionKind, NodeId>,
}

/// The text written by `cargo xtask schema-facts`.
const FACTS: &str = include_str!("../../schema/facts.txt");

static BUILTIN: LazyLock<Schema> = LazyLock::new(|| match facts::load(FACTS) {
    Ok(schema) => schema,
    // The text is part of the binary and a unit test loads it, so this can't happen in a released build.
    Err(error) => unreachable!("embedded schema facts do not load: {error}"),
});

/// Kinds that upstream registers in every group and version.
const COMMON_KINDS: &[&str] = &[
    "CreateOptions",
    "DeleteOptions",
    "GetOptions",
    "ListOptions",
    "PatchOptions",
    "UpdateOptions",
    "WatchEvent",
];

/// Kinds of meta/v1 that are registered as core v1.
const UNVERSIONED_KINDS: &[&str] = &["APIGroup", "APIGroupList", "APIResourceList", "APIVersions", "Status"];

impl Schema {
    /// The types of Kubernetes itself. Loaded at first use.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// The text that [`Schema::builtin`] is made of, for hashing.
    pub(crate) fn builtin_facts() -> &'static str {
        FACTS
    }

    /// All nodes, in the order of their indexes.
    pub fn node_ids(&self) -> impl Iterator<Item = NodeId> + use<> {
        (0..self.nodes.len()).map_while(|index| u32::try_from(index).ok()).map(NodeId)
    }

    /// A node by its index.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    /// A type by its OpenAPI name, such as `io.k8s.api.core.v1.Pod`.
    pub fn type_named(&self, name: &str) -> Option<NodeId> {
        self.types.get(name).copied()
    }

    /// The type of a kind. `DeleteOptions` and its like are found in every group and version, as upstream
    /// registers them.
    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<NodeId> {
        if let Some(found) = self.kinds.get(gvk) {
            return Some(*found);
        }
        let kind = gvk.kind.as_str();
        let unversioned = gvk.group.is_empty() && gvk.version == "v1" && UNVERSIONED_KINDS.contains(&kind);
        if COMMON_KINDS.contains(&kind) || unversioned {
            return self.kinds.get(&GroupVersionKind::new("meta.k8s.io", "v1", kind)).copied();
        }
        None
    }

    /// The struct of a kind.
    pub fn kind_struct(&self, gvk: &GroupVersionKind) -> Option<&Struct> {
        self.as_struct(self.kind(gvk)?)
    }

    /// Registered kinds in no particular order.
    pub fn kinds(&self) -> impl Iterator<Item = (&GroupVersionKind, NodeId)> {
        self.kinds.iter().map(|(gvk, id)| (gvk, *id))
    }

    /// Named types in no particular order.
    pub fn types(&self) -> impl Iterator<Item = (&str, NodeId)> {
        self.types.iter().map(|(name, id)| (name.as_ref(), *id))
    }

    /// The node as a struct.
    pub fn as_struct(&self, id: NodeId) -> Option<&Struct> {
        match self.node(id) {
            Node::Struct(inner) => Some(inner),
            _ => None,
        }
    }

    /// Finds a field by JSON name, inlined structs included. Names are case-sensitive.
    pub fn field<'s>(&'s self, of: &'s Struct, name: &str) -> Option<&'s Field> {
        let found =
            of.by_name.binary_search_by(|index| of.fields[usize::from(*index)].name.as_ref().cmp(name));
        if let Ok(position) = found {
            return Some(&of.fields[usize::from(of.by_name[position])]);
        }
        of.inlined.iter().find_map(|index| {
            let inner = self.as_struct(of.fields[usize::from(*index)].node)?;
            self.field(inner, name)
        })
    }

    /// All JSON fields of a struct, inlined ones included, in the order of the declaration.
    pub fn fields<'s>(&'s self, of: &'s Struct) -> Vec<&'s Field> {
        let mut found = Vec::with_capacity(of.fields.len());
        self.collect_fields(of, &mut found);
        found
    }

    fn collect_fields<'s>(&'s self, of: &'s Struct, into: &mut Vec<&'s Field>) {
        for field in &of.fields {
            match self.as_struct(field.node) {
                Some(inner) if field.inline => self.collect_fields(inner, into),
                _ => into.push(field),
            }
        }
    }

    /// The default that upstream's OpenAPI documents state for a field: its own, or the zero value of what is no
    /// pointer and always written.
    pub fn stated_default(&self, field: &Field) -> Option<Value> {
        match field.default() {
            Some(default) => Some(default.clone()),
            None if field.pointer => None,
            None => self.zero_default(field.node, field.omitempty),
        }
    }

    /// The zero value that upstream's generator states as default for what is no pointer.
    pub fn zero_default(&self, node: NodeId, omitempty: bool) -> Option<Value> {
        match self.node(node) {
            Node::Struct(_) => Some(Value::Object(serde_json::Map::new())),
            Node::Scalar(Scalar::Bytes) => None,
            Node::Scalar(_) | Node::Enum(_) if !omitempty => Some(self.zero(node)),
            _ => None,
        }
    }

    /// The type of the field that a path of names leads to; list items and map values are stepped into
    /// without a segment of their own for lists, and with any segment for maps.
    pub fn walk(&self, from: NodeId, path: &[&str]) -> Option<NodeId> {
        let Some((first, rest)) = path.split_first() else { return Some(from) };
        match self.node(from) {
            Node::Struct(inner) => self.walk(self.field(inner, first)?.node, rest),
            Node::List { item, .. } => self.walk(*item, path),
            Node::Map { value, .. } => self.walk(*value, rest),
            Node::Wrapped(inner) => self.walk(*inner, path),
            _ => None,
        }
    }

    /// Go's name for a type as it appears in decoding errors: `int32`, `v1.PodSpec`, `[]v1.Container`.
    pub fn go_type(&self, id: NodeId) -> String {
        match self.node(id) {
            Node::Scalar(scalar) => scalar.go_type().to_owned(),
            Node::Enum(inner) => short_name(&inner.name),
            Node::Special(special) => special.go_type().to_owned(),
            Node::List { item, .. } => format!("[]{}", self.go_type(*item)),
            Node::Wrapped(inner) => self.go_type(*inner),
            Node::Map { value, .. } => format!("map[string]{}", self.go_type(*value)),
            Node::Struct(inner) => short_name(&inner.name),
        }
    }
}

/// `io.k8s.api.core.v1.Pod` as Go says it: `v1.Pod`.
fn short_name(full: &str) -> String {
    let mut parts = full.rsplit('.');
    match (parts.next(), parts.next()) {
        (Some(name), Some(package)) => format!("{package}.{name}"),
        _ => full.to_owned(),
    }
}

impl Scalar {
    fn go_type(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Bool => "bool",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Uint32 => "uint32",
            Self::Uint64 => "uint64",
            Self::Float64 => "float64",
            Self::Bytes => "[]uint8",
        }
    }
}

impl Special {
    fn go_type(self) -> &'static str {
        match self {
            Self::Time => "v1.Time",
            Self::MicroTime => "v1.MicroTime",
            Self::Duration => "v1.Duration",
            Self::FieldsV1 => "v1.FieldsV1",
            Self::Quantity => "resource.Quantity",
            Self::IntOrString => "int32",
            Self::RawExtension => "runtime.RawExtension",
            Self::Json => "v1.JSON",
            Self::Any => "interface {}",
            Self::SchemaOrArray => "v1.JSONSchemaPropsOrArray",
            Self::SchemaOrBool => "v1.JSONSchemaPropsOrBool",
            Self::SchemaOrStrings => "v1.JSONSchemaPropsOrStringArray",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builtin_loads_and_finds() {
        let started = std::time::Instant::now();
        let schema = Schema::builtin();
        println!("loaded {} nodes in {:?}", schema.nodes.len(), started.elapsed());
        let pod = schema.kind(&GroupVersionKind::new("", "v1", "Pod")).unwrap();
        let image = schema.walk(pod, &["spec", "containers", "image"]).unwrap();
        assert!(matches!(schema.node(image), Node::Scalar(Scalar::String)));
        let volumes = schema.walk(pod, &["spec", "volumes", "hostPath", "path"]).unwrap();
        assert!(matches!(schema.node(volumes), Node::Scalar(Scalar::String)));
        for gvk in [
            GroupVersionKind::new("apps", "v1", "DeleteOptions"),
            GroupVersionKind::new("", "v1", "Status"),
            GroupVersionKind::new("autoscaling", "v1", "Scale"),
            GroupVersionKind::new("policy", "v1", "Eviction"),
            GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest"),
            GroupVersionKind::new("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            GroupVersionKind::new("apiregistration.k8s.io", "v1", "APIService"),
            GroupVersionKind::new("meta.k8s.io", "v1", "Table"),
            GroupVersionKind::new("", "v1", "Binding"),
        ] {
            assert!(schema.kind(&gvk).is_some(), "{gvk}");
        }
        assert!(schema.kind(&GroupVersionKind::new("", "v1", "Nonsense")).is_none());
    }

    #[test]
    fn go_names_are_gos() {
        let schema = Schema::builtin();
        let pod = schema.kind(&GroupVersionKind::new("", "v1", "Pod")).unwrap();
        let check =
            |path: &[&str], name: &str| assert_eq!(schema.go_type(schema.walk(pod, path).unwrap()), name);
        check(&["spec"], "v1.PodSpec");
        check(&["metadata", "labels"], "map[string]string");
        check(&["spec", "containers"], "[]v1.Container");
    }
}
