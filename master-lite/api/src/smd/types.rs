//! Types as merging sees them (`schema/elements.go`): what may be there, and what belongs together.

use std::sync::LazyLock;

use serde_json::Value;

use crate::meta::GroupVersionKind;
use crate::schema::{ListKind, Name, Node, NodeId, Scalar as Go, Schema, Special};

/// Index of an atom in [`Types`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TypeId(u32);

/// One type: whatever of the three it allows. Most allow one; a type that nothing is known of allows all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Atom {
    /// It may be a scalar.
    pub scalar: Option<Scalar>,
    /// It may be a list.
    pub list: Option<List>,
    /// It may be a map or struct.
    pub map: Option<MapType>,
}

/// Scalars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar {
    /// Any number.
    Numeric,
    /// A string.
    String,
    /// true or false.
    Boolean,
    /// Any of them.
    Untyped,
}

/// A list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Type of the items.
    pub item: TypeId,
    /// `None`: one value as a whole. Otherwise items have identities: their values for these keys, or, without
    /// keys, themselves.
    pub keys: Option<Box<[Name]>>,
}

/// A map, or a struct, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapType {
    /// Known fields, sorted by name.
    pub fields: Box<[FieldType]>,
    /// Type of other fields; `None`: there are no others.
    pub element: Option<TypeId>,
    /// One value as a whole.
    pub atomic: bool,
}

impl MapType {
    /// A known field.
    pub fn field(&self, name: &str) -> Option<&FieldType> {
        let at = self.fields.binary_search_by(|field| field.name.as_ref().cmp(name)).ok()?;
        Some(&self.fields[at])
    }

    /// Type of a field, known or not.
    pub fn type_of(&self, name: &str) -> Option<TypeId> {
        self.field(name).map(|field| field.id).or(self.element)
    }
}

/// A known field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldType {
    /// JSON name.
    pub name: Name,
    /// Type.
    pub id: TypeId,
    /// What an absent field means, where the field is a key of list items.
    pub default: Option<Value>,
}

/// An arena of types.
#[derive(Debug, Clone)]
pub struct Types {
    atoms: Vec<Atom>,
}

/// The type of what nothing is known of, once inside of a list: all atomic.
const UNTYPED: TypeId = TypeId(0);
/// The type of what nothing is known of: maps are maps of the same, lists are atomic.
const DEDUCED: TypeId = TypeId(1);

impl Default for Types {
    fn default() -> Self {
        let any = |element: TypeId, atomic: bool| Atom {
            scalar: Some(Scalar::Untyped),
            list: Some(List { item: UNTYPED, keys: None }),
            map: Some(MapType { fields: Box::default(), element: Some(element), atomic }),
        };
        Self { atoms: vec![any(UNTYPED, true), any(DEDUCED, false)] }
    }
}

static BUILTIN: LazyLock<Types> = LazyLock::new(|| Types::from_schema(Schema::builtin()));

impl Types {
    /// The types of Kubernetes itself. Made at first use.
    pub fn builtin() -> &'static Self {
        &BUILTIN
    }

    /// The type of one of Kubernetes' own kinds in [`Types::builtin`].
    pub fn builtin_kind(gvk: &GroupVersionKind) -> Option<TypeId> {
        Schema::builtin().kind(gvk).map(Self::of_node)
    }

    /// The type of a value of which no schema is known.
    pub fn deduced() -> TypeId {
        DEDUCED
    }

    /// The type of a value of which no schema is known, and that is one as a whole.
    pub fn untyped() -> TypeId {
        UNTYPED
    }

    /// An atom by its index.
    pub fn atom(&self, id: TypeId) -> &Atom {
        &self.atoms[id.0 as usize]
    }

    /// Adds an atom.
    pub fn push(&mut self, atom: Atom) -> TypeId {
        // Arenas hold thousands of atoms; what makes them is bounded by a request's size.
        let id = TypeId(u32::try_from(self.atoms.len()).unwrap_or(u32::MAX));
        self.atoms.push(atom);
        id
    }

    /// Replaces an atom, for types that refer to themselves.
    pub fn set(&mut self, id: TypeId, atom: Atom) {
        self.atoms[id.0 as usize] = atom;
    }

    /// True for a map of which nothing is known at all, not even that its values are scalars.
    pub(super) fn is_free_form(&self, map: &MapType) -> bool {
        map.fields.is_empty() && map.element == Some(DEDUCED)
    }

    /// Every node becomes the atom at its own index, after the two of unknown types.
    fn from_schema(schema: &Schema) -> Self {
        let mut types = Self::default();
        for id in schema.node_ids() {
            types.push(Self::convert(schema, id));
        }
        // A field may overrule what its struct says of itself, and then needs an atom of its own.
        for id in schema.node_ids() {
            let Node::Struct(inner) = schema.node(id) else { continue };
            for field in schema.fields(inner) {
                let (Some(atomic), Some(of)) = (field.atomic, schema.as_struct(field.node)) else { continue };
                if atomic == of.atomic {
                    continue;
                }
                let mut copy = types.atom(Self::of_node(field.node)).clone();
                if let Some(map) = &mut copy.map {
                    map.atomic = atomic;
                }
                let copy = types.push(copy);
                if let Some(map) = &mut types.atoms[Self::of_node(id).0 as usize].map
                    && let Some(own) = map.fields.iter_mut().find(|own| own.name == field.name)
                {
                    own.id = copy;
                }
            }
        }
        types
    }

    pub(super) fn of_node(id: NodeId) -> TypeId {
        TypeId(id.index() + DEDUCED.0 + 1)
    }

    fn convert(schema: &Schema, id: NodeId) -> Atom {
        let scalar = |scalar| Atom { scalar: Some(scalar), ..Atom::default() };
        match schema.node(id) {
            Node::Scalar(Go::String | Go::Bytes) | Node::Enum(_) => scalar(Scalar::String),
            Node::Scalar(Go::Bool) => scalar(Scalar::Boolean),
            Node::Scalar(Go::Int32 | Go::Int64 | Go::Uint32 | Go::Uint64 | Go::Float64) => {
                scalar(Scalar::Numeric)
            }
            Node::Special(Special::Duration) => scalar(Scalar::String),
            Node::Special(Special::Time | Special::MicroTime | Special::Quantity) => scalar(Scalar::Untyped),
            Node::Special(Special::FieldsV1 | Special::Any) => Atom {
                map: Some(MapType { fields: Box::default(), element: Some(DEDUCED), atomic: false }),
                ..Atom::default()
            },
            // Upstream makes an exception of raw extensions: they are atomic.
            Node::Special(Special::RawExtension) => Self::default().atoms.swap_remove(UNTYPED.0 as usize),
            Node::Special(
                Special::IntOrString
                | Special::Json
                | Special::SchemaOrArray
                | Special::SchemaOrBool
                | Special::SchemaOrStrings,
            ) => Self::default().atoms.swap_remove(DEDUCED.0 as usize),
            Node::List { item, kind, keys } => Atom {
                list: Some(List {
                    item: Self::of_node(*item),
                    keys: match kind {
                        ListKind::Unset | ListKind::Atomic => None,
                        ListKind::Set => Some(Box::default()),
                        ListKind::Map => Some(keys.clone()),
                    },
                }),
                ..Atom::default()
            },
            Node::Wrapped(inner) => Self::convert(schema, *inner),
            Node::Map { value, atomic } => Atom {
                map: Some(MapType {
                    fields: Box::default(),
                    element: Some(Self::of_node(*value)),
                    atomic: *atomic,
                }),
                ..Atom::default()
            },
            Node::Struct(inner) => {
                let mut fields: Vec<FieldType> = schema
                    .fields(inner)
                    .into_iter()
                    .map(|field| FieldType {
                        name: field.name.clone(),
                        id: Self::of_node(field.node),
                        default: schema.stated_default(field),
                    })
                    .collect();
                fields.sort_by(|a, b| a.name.cmp(&b.name));
                // An object without properties is free-form to OpenAPI.
                let element = fields.is_empty().then_some(DEDUCED);
                Atom {
                    map: Some(MapType { fields: fields.into(), element, atomic: inner.atomic }),
                    ..Atom::default()
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The atom at a path of field names, through lists and maps.
    fn at(kind: &GroupVersionKind, path: &[&str]) -> &'static Atom {
        let types = Types::builtin();
        path.iter().fold(types.atom(Types::builtin_kind(kind).unwrap()), |atom, name| {
            let atom = atom.list.as_ref().map_or(atom, |list| types.atom(list.item));
            types.atom(atom.map.as_ref().unwrap().type_of(name).unwrap())
        })
    }

    #[test]
    fn facts_become_types() {
        let pod = GroupVersionKind::new("", "v1", "Pod");
        let keys = |path: &[&str]| at(&pod, path).list.as_ref().unwrap().keys.clone();
        assert_eq!(keys(&["spec", "containers"]).unwrap().as_ref(), ["name"]);
        assert_eq!(keys(&["spec", "containers", "ports"]).unwrap().as_ref(), ["containerPort", "protocol"]);
        assert!(keys(&["metadata", "finalizers"]).unwrap().is_empty());
        assert_eq!(keys(&["spec", "containers", "command"]), None);
        assert!(at(&pod, &["spec", "nodeSelector"]).map.as_ref().unwrap().atomic);
        assert!(!at(&pod, &["metadata", "labels"]).map.as_ref().unwrap().atomic);
        assert!(
            at(&pod, &["spec", "topologySpreadConstraints", "labelSelector"]).map.as_ref().unwrap().atomic
        );
        let port = at(&pod, &["spec", "containers", "ports"]).list.as_ref().unwrap().item;
        let port = Types::builtin().atom(port).map.as_ref().unwrap();
        assert_eq!(port.field("protocol").unwrap().default, Some(json!("TCP")));
        assert_eq!(port.field("containerPort").unwrap().default, Some(json!(0)));
        assert_eq!(port.field("hostPort").unwrap().default, None);
        let quantity = at(&pod, &["spec", "containers", "resources", "limits", "cpu"]);
        let volume = GroupVersionKind::new("", "v1", "PersistentVolume");
        assert!(!at(&volume, &["spec", "claimRef"]).map.as_ref().unwrap().atomic);
        assert_eq!(*quantity, Atom { scalar: Some(Scalar::Untyped), ..Atom::default() });
    }
}
