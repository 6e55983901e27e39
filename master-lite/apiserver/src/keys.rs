//! Keys of objects in the store: `/registry/<group, core for the empty one>/<plural>/[<namespace>/]<name>`.

use keelson_api::meta::GroupResource;

/// What every key begins with.
pub const ROOT: &str = "/registry/";

/// Prefix of all objects of a resource, or of those in a namespace.
pub fn prefix(resource: &GroupResource, namespace: Option<&str>) -> String {
    let group = if resource.group.is_empty() { "core" } else { &resource.group };
    match namespace {
        Some(namespace) => format!("{ROOT}{group}/{}/{namespace}/", resource.resource),
        None => format!("{ROOT}{group}/{}/", resource.resource),
    }
}

/// Key of one object; `namespace` is `None` or empty for cluster-scoped resources.
pub fn object(resource: &GroupResource, namespace: Option<&str>, name: &str) -> String {
    format!("{}{name}", prefix(resource, namespace.filter(|n| !n.is_empty())))
}

/// Resource and the rest (`[namespace/]name`) of a key.
pub fn split(key: &str) -> Option<(GroupResource, &str)> {
    let (group, rest) = key.strip_prefix(ROOT)?.split_once('/')?;
    let (plural, rest) = rest.split_once('/')?;
    Some((GroupResource::new(if group == "core" { "" } else { group }, plural), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let pods = GroupResource::new("", "pods");
        let key = object(&pods, Some("ns"), "a");
        assert_eq!(key, "/registry/core/pods/ns/a");
        assert_eq!(split(&key), Some((pods, "ns/a")));
        assert_eq!(object(&GroupResource::new("g", "xs"), Some(""), "a"), "/registry/g/xs/a");
    }
}
