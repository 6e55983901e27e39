//! The conditions of a CustomResourceDefinition (`apiextensions-apiserver/pkg/controller/{status,establish}`). Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

/// Names that other definitions of the group have, or built-in resources of the group.
#[derive(Debug, Clone, Default)]
pub struct Taken {
    /// Plurals, singulars, short names.
    pub resources: BTreeSet<String>,
    /// Kinds and kinds of lists.
    pub kinds: BTreeSet<String>,
}

impl Taken {
    /// Adds `acceptedNames`.
    pub fn add(&mut self, names: &Value) {
        for key in ["plural", "singular"] {
            self.resources.extend(names[key].as_str().map(str::to_owned));
        }
        let short = names["shortNames"].as_array().into_iter().flatten();
        self.resources.extend(short.filter_map(|name| name.as_str().map(str::to_owned)));
        for key in ["kind", "listKind"] {
            self.kinds.extend(names[key].as_str().map(str::to_owned));
        }
    }
}

/// A condition's status.
pub fn condition<'d>(definition: &'d Value, kind: &str) -> Option<&'d Value> {
    definition["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// True if a condition is True.
pub fn is_true(definition: &Value, kind: &str) -> bool {
    condition(definition, kind).is_some_and(|condition| condition["status"] == "True")
}

/// Sets a condition; its transition time stays if its status does.
pub fn set_condition(
    definition: &mut Value,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: &str,
) {
    let old = condition(definition, kind);
    let since = match old.filter(|old| old["status"] == status) {
        Some(old) => old["lastTransitionTime"].clone(),
        None => now.into(),
    };
    let new = json!({
        "type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    });
    if !definition["status"].is_object() {
        definition["status"] = Value::Object(Map::new());
    }
    let list = &mut definition["status"]["conditions"];
    if !list.is_array() {
        *list = json!([]);
    }
    let Some(list) = list.as_array_mut() else { return };
    match list.iter_mut().find(|condition| condition["type"] == kind) {
        Some(place) => *place = new,
        None => list.push(new),
    }
}

fn text<'v>(names: &'v Value, key: &str) -> &'v str {
    names[key].as_str().unwrap_or_default()
}

/// What becomes of the names in the spec: the definition with its next status, or `None` if nothing changes.
///
/// A definition whose names are all free, or its own already, is established in the same step: the caller serves it
/// before it writes this status, so that whoever sees the condition can use the resource.
pub fn accept(definition: &Value, taken: &Taken, now: &str) -> Option<Value> {
    let wanted = &definition["spec"]["names"];
    let had = &definition["status"]["acceptedNames"];
    let mut accepted = had.as_object().cloned().unwrap_or_default();
    let mut conflict: Option<(&str, String)> = None;
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (key, reason, used) in [
        ("plural", "PluralConflict", &taken.resources),
        ("singular", "SingularConflict", &taken.resources),
        ("shortNames", "ShortNamesConflict", &taken.resources),
        ("kind", "KindConflict", &taken.kinds),
        ("listKind", "ListKindConflict", &taken.kinds),
    ] {
        if key == "shortNames" {
            let old = super::strings(&had[key]);
            let clashes: Vec<String> = super::strings(&wanted[key])
                .iter()
                .filter(|name| !old.contains(name) && used.contains(*name))
                .map(|name| in_use(name))
                .collect();
            match clashes.as_slice() {
                [] => copy(&mut accepted, wanted, key),
                [one] => conflict = Some((reason, one.clone())),
                many => conflict = Some((reason, format!("[{}]", many.join(", ")))),
            }
        } else if text(wanted, key) != text(had, key) && used.contains(text(wanted, key)) {
            conflict = Some((reason, in_use(text(wanted, key))));
        } else {
            copy(&mut accepted, wanted, key);
        }
    }
    copy(&mut accepted, wanted, "categories");
    let mut new = definition.clone();
    new["status"]["acceptedNames"] = Value::Object(accepted);
    match &conflict {
        Some((reason, message)) => {
            set_condition(&mut new, "NamesAccepted", "False", reason, message, now);
            if condition(&new, "Established").is_none() {
                let message = "not all names are accepted";
                set_condition(&mut new, "Established", "False", "NotAccepted", message, now);
            }
        }
        None => {
            set_condition(&mut new, "NamesAccepted", "True", "NoConflicts", "no conflicts found", now);
            if !is_true(&new, "Established") {
                let message = "the initial names have been accepted";
                set_condition(&mut new, "Established", "True", "InitialNamesAccepted", message, now);
            }
        }
    }
    approval(&mut new, now);
    (new["status"] != definition["status"]).then_some(new)
}

fn copy(target: &mut Map<String, Value>, source: &Value, key: &str) {
    match source.get(key).filter(|v| !v.is_null()) {
        Some(value) => target.insert(key.to_owned(), value.clone()),
        None => target.remove(key),
    };
}

/// `KubernetesAPIApprovalPolicyConformant`, of groups that belong to Kubernetes.
fn approval(definition: &mut Value, now: &str) {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    if !super::definition::is_protected(group) {
        return;
    }
    let annotation = definition["metadata"]["annotations"][super::definition::APPROVED].as_str();
    let (status, reason, message) = match annotation.unwrap_or_default() {
        "" => (
            "False",
            "MissingAnnotation",
            "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111".to_owned(),
        ),
        text if text.starts_with("unapproved") => {
            ("False", "UnapprovedAPI", format!("not approved: {text:?}"))
        }
        text => ("True", "ApprovedAnnotation", format!("approved in {text}")),
    };
    set_condition(definition, "KubernetesAPIApprovalPolicyConformant", status, reason, &message, now);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition(short: &str) -> Value {
        json!({"metadata": {"name": "foos.g.io"}, "spec": {"group": "g.io", "names": {
            "plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList", "shortNames": [short]}}})
    }

    #[test]
    fn free_names_are_accepted_once() {
        let new = accept(&definition("f"), &Taken::default(), "t").unwrap();
        assert!(is_true(&new, "NamesAccepted") && is_true(&new, "Established"));
        assert_eq!(new["status"]["acceptedNames"], new["spec"]["names"]);
        assert!(accept(&new, &Taken::default(), "later").is_none());
    }

    #[test]
    fn taken_names_are_not() {
        let mut taken = Taken::default();
        taken.add(&json!({"plural": "bars", "shortNames": ["f"]}));
        let new = accept(&definition("f"), &taken, "t").unwrap();
        let names = condition(&new, "NamesAccepted").unwrap();
        assert_eq!(
            (names["reason"].as_str(), names["message"].as_str()),
            (Some("ShortNamesConflict"), Some("\"f\" is already in use"))
        );
        assert!(!is_true(&new, "Established"));
        let freed = accept(&new, &Taken::default(), "u").unwrap();
        assert!(is_true(&freed, "Established"));
        assert_eq!(condition(&freed, "NamesAccepted").unwrap()["lastTransitionTime"], "u");
    }
}
