//! What expressions can call, and the objects that they make.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube_cel::KubeCelExt as _;
use kube_cel::cel::objects::{Key, Opaque};
use kube_cel::cel::{Context, ExecutionError, ResolveResult, Value as Cel};

thread_local! {
    /// What expressions can call.
    pub(crate) static FUNCTIONS: Context<'static> = functions();
}

/// Names of types, as expressions compare them with `type(self)`.
pub(super) const TYPES: &[&str] =
    &["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type"];

/// What functions are called on without being values.
pub(super) const NAMESPACES: &[&str] =
    &["math", "sets", "lists", "strings", "base64", "format", "jsonpatch", "ip", "optional"];

/// Functions that there are. Macros are not among them, for the parser resolves them: one that is called with other
/// arguments than it takes here is an unknown function.
#[rustfmt::skip]
pub(super) const KNOWN: &[&str] = &[
    // CEL itself.
    "bytes", "contains", "double", "duration", "dyn", "endsWith", "getDate", "getDayOfMonth", "getDayOfWeek",
    "getDayOfYear", "getFullYear", "getHours", "getMilliseconds", "getMinutes", "getMonth", "getSeconds", "hasValue", "int",
    "matches", "optional.none", "optional.of", "optional.ofNonZeroValue", "or", "orValue", "size", "startsWith",
    "string", "timestamp", "type", "uint", "value",
    // Its extensions.
    "base64.decode", "base64.encode", "charAt", "distinct", "first", "flatten", "format", "indexOf", "join", "last",
    "lastIndexOf", "lists.range", "lowerAscii", "math.abs", "math.bitAnd", "math.bitNot", "math.bitOr",
    "math.bitShiftLeft", "math.bitShiftRight", "math.bitXor", "math.ceil", "math.floor", "math.greatest",
    "math.isFinite", "math.isInf", "math.isNaN", "math.least", "math.round", "math.sign", "math.sqrt", "math.trunc",
    "replace", "reverse", "sets.contains", "sets.equivalent", "sets.intersects", "slice", "sort", "split",
    "strings.quote", "substring", "trim", "upperAscii",
    // Kubernetes'.
    "add", "asApproximateFloat", "asInteger", "cidr", "compareTo", "containsCIDR", "containsIP", "family", "find",
    "findAll", "format.byte", "format.date", "format.datetime", "format.dns1035Label", "format.dns1035LabelPrefix",
    "format.dns1123Label", "format.dns1123LabelPrefix", "format.dns1123Subdomain", "format.dns1123SubdomainPrefix",
    "format.labelValue", "format.named", "format.qualifiedName", "format.uri", "format.uuid", "getEscapedPath",
    "getHost", "getHostname", "getPort", "getQuery", "getScheme", "ip", "ip.isCanonical", "isCIDR", "isGlobalUnicast",
    "isGreaterThan", "isIP", "isInteger", "isLessThan", "isLinkLocalMulticast", "isLinkLocalUnicast", "isLoopback",
    "isQuantity", "isSemver", "isSorted", "isURL", "isUnspecified", "jsonpatch.escapeKey", "major", "masked", "max",
    "min", "minor", "patch", "prefixLength", "quantity", "semver", "sign", "sub", "sum", "url", "validate",
];

/// The function that stands for making an object: `Object.spec{…}` is a call of it.
pub(super) const MAKE: &str = "@make";

/// The `cel` crate has no values that are types: their names stand for them.
fn functions() -> Context<'static> {
    let mut functions = Context::default().with_all();
    functions.add_function("type", type_of);
    functions.add_function("dyn", as_it_is);
    functions.add_function(MAKE, make);
    for name in TYPES {
        functions.add_variable_from_value(*name, Cel::String(Arc::new((*name).to_owned())));
    }
    functions
}

fn type_of(value: Cel) -> ResolveResult {
    let name = match value {
        Cel::Bool(_) => "bool",
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::Float(_) => "double",
        Cel::String(_) => "string",
        Cel::Bytes(_) => "bytes",
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        Cel::Null => "null_type",
        Cel::Duration(_) => "google.protobuf.Duration",
        Cel::Timestamp(_) => "google.protobuf.Timestamp",
        Cel::Function(..) | Cel::Opaque(_) => "unknown",
    };
    Ok(Cel::String(Arc::new(name.to_owned())))
}

fn as_it_is(value: Cel) -> ResolveResult {
    Ok(value)
}

/// An object that an expression has made.
#[derive(Debug, PartialEq)]
pub(crate) struct Made {
    /// As written: `Object.spec`.
    pub(crate) type_name: String,
    /// Its fields.
    pub(crate) fields: BTreeMap<String, Cel>,
}

// Needed of opaque values. Two numbers that are none are no reason to forgo it.
impl Eq for Made {}

impl Opaque for Made {
    fn runtime_type_name(&self) -> &str {
        "Object"
    }
}

fn make(type_name: Arc<String>, fields: Cel) -> ResolveResult {
    let Cel::Map(fields) = fields else {
        return Err(ExecutionError::function_error(&type_name, "no fields"));
    };
    let fields = fields.map.iter().filter_map(|(key, value)| match key {
        Key::String(name) => Some((name.as_ref().clone(), value.clone())),
        _ => None,
    });
    Ok(Cel::Opaque(Arc::new(Made { type_name: type_name.as_ref().clone(), fields: fields.collect() })))
}
