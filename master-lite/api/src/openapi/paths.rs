//! `paths`: operations of a group and version, each with its kind and parameters.

use super::components::Components;
use crate::{
    codec,
    meta::GroupVersionKind,
    resources::{Resource, ResourceTable},
};
use serde_json::{Map, Value, json};

/// All paths of a group and version.
pub fn of(table: &ResourceTable, group: &str, version: &str, components: &mut Components<'_>) -> Value {
    let root = super::document_path(group, version);
    let tag = root.replace(['/', '.'], "_");
    let mut paths = Map::new();
    for row in table.rows().iter().filter(|row| row.group == group) {
        if row.versions.iter().any(|served| served == version) {
            let row = row.view(version);
            Writer { row, version, tag: &tag, components, paths: &mut paths }.resource(&root);
        }
    }
    Value::Object(paths)
}

struct Writer<'a, 's> {
    row: &'a Resource,
    version: &'a str,
    tag: &'a str,
    components: &'a mut Components<'s>,
    paths: &'a mut Map<String, Value>,
}

/// Verbs of the API with their HTTP method, and what upstream calls the action.
const COLLECTION: &[(&str, &str, &str)] = &[
    ("create", "post", "post"),
    ("deletecollection", "delete", "deletecollection"),
    ("list", "get", "list"),
];
const ITEM: &[(&str, &str, &str)] = &[
    ("delete", "delete", "delete"),
    ("get", "get", "get"),
    ("patch", "patch", "patch"),
    ("update", "put", "put"),
];

impl Writer<'_, '_> {
    fn resource(&mut self, root: &str) {
        let row = self.row;
        let kind = row.gvk(self.version);
        let base = if row.namespaced {
            format!("/{root}/namespaces/{{namespace}}/{}", row.plural)
        } else {
            format!("/{root}/{}", row.plural)
        };
        self.path(&base, COLLECTION, &row.verbs, &kind);
        if row.namespaced && row.has_verb("list") {
            let all = ["list".to_owned()];
            self.path(&format!("/{root}/{}", row.plural), COLLECTION, &all, &kind);
        }
        let item = format!("{base}/{{name}}");
        self.path(&item, ITEM, &row.verbs, &kind);
        for sub in &row.subresources {
            let path = format!("{item}/{}", sub.name);
            self.path(&path, ITEM, &sub.verbs, &sub.kind);
            self.path(&path, &COLLECTION[..1], &sub.verbs, &sub.kind);
        }
    }

    fn path(
        &mut self,
        path: &str,
        offered: &[(&str, &str, &str)],
        verbs: &[String],
        kind: &GroupVersionKind,
    ) {
        let mut operations = Map::new();
        for (verb, method, action) in offered {
            if verbs.iter().any(|has| has == verb) {
                operations.insert((*method).to_owned(), self.operation(verb, action, kind));
            }
        }
        if operations.is_empty() {
            return;
        }
        let mut parameters = Vec::new();
        for name in ["namespace", "name"] {
            if path.contains(&format!("{{{name}}}")) {
                parameters.push(json!({ "name": name, "in": "path", "required": true,
                    "schema": { "type": "string", "uniqueItems": true } }));
            }
        }
        parameters.push(query("pretty", "string"));
        operations.insert("parameters".to_owned(), parameters.into());
        match self.paths.get_mut(path) {
            Some(Value::Object(present)) => present.extend(operations),
            _ => {
                self.paths.insert(path.to_owned(), Value::Object(operations));
            }
        }
    }

    fn operation(&mut self, verb: &str, action: &str, kind: &GroupVersionKind) -> Value {
        let parameters: Vec<Value> = parameters(verb).iter().map(|(name, kind)| query(name, kind)).collect();
        let answer = match verb {
            "list" => GroupVersionKind { kind: self.row.list_kind(), ..kind.clone() },
            "delete" | "deletecollection" => GroupVersionKind::new("", "v1", "Status"),
            _ => kind.clone(),
        };
        let protobuf = codec::has_protobuf(&answer).then_some("application/vnd.kubernetes.protobuf");
        let media: Vec<&str> = ["application/json", "application/yaml"].into_iter().chain(protobuf).collect();
        let answer = self.body(&media, &answer);
        let mut operation = json!({
            "tags": [self.tag],
            "description": format!("{verb} {}", kind.kind),
            "parameters": parameters,
            "responses": { "200": { "description": "OK", "content": answer } },
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind":
                { "group": kind.group, "version": kind.version, "kind": kind.kind },
        });
        let request = match verb {
            "create" | "update" => Some(self.body(&["*/*"], kind)),
            "delete" | "deletecollection" => {
                Some(self.body(&["*/*"], &GroupVersionKind::new("", "v1", "DeleteOptions")))
            }
            "patch" => {
                let reference = self.components.patch_reference();
                let types = [
                    "application/apply-patch+yaml",
                    "application/json-patch+json",
                    "application/merge-patch+json",
                    "application/strategic-merge-patch+json",
                ];
                // Custom resources have no merge keys.
                let taken = if self.row.custom.is_some() { &types[..3] } else { &types[..] };
                Some(content(taken, &reference))
            }
            _ => None,
        };
        if let Some(request) = request {
            operation["requestBody"] = json!({ "content": request });
        }
        operation
    }

    fn body(&mut self, media: &[&str], kind: &GroupVersionKind) -> Value {
        // exec, proxy and their like take options in the query and stream what they like.
        let stream = kind.kind.ends_with("Options") && kind.kind != "DeleteOptions";
        let row = self.row;
        if let Some(custom) = row.custom.as_ref().filter(|_| kind.group == row.group) {
            return content(media, &self.components.custom(row, custom, kind.kind == row.list_kind()));
        }
        let schema = match self.components.schema().kind(kind).filter(|_| !stream) {
            Some(node) => self.components.reference(node),
            None => json!({ "type": if stream { "string" } else { "object" } }),
        };
        content(media, &schema)
    }
}

fn content(media: &[&str], schema: &Value) -> Value {
    Value::Object(media.iter().map(|media| ((*media).to_owned(), json!({ "schema": schema }))).collect())
}

fn query(name: &str, kind: &str) -> Value {
    json!({ "name": name, "in": "query", "schema": { "type": kind, "uniqueItems": true } })
}

fn parameters(verb: &str) -> &'static [(&'static str, &'static str)] {
    match verb {
        "create" | "update" => {
            &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")]
        }
        "patch" => &[
            ("dryRun", "string"),
            ("fieldManager", "string"),
            ("fieldValidation", "string"),
            ("force", "boolean"),
        ],
        "delete" => &[
            ("dryRun", "string"),
            ("gracePeriodSeconds", "integer"),
            ("orphanDependents", "boolean"),
            ("propagationPolicy", "string"),
        ],
        "list" => &[
            ("allowWatchBookmarks", "boolean"),
            ("continue", "string"),
            ("fieldSelector", "string"),
            ("labelSelector", "string"),
            ("limit", "integer"),
            ("resourceVersion", "string"),
            ("resourceVersionMatch", "string"),
            ("sendInitialEvents", "boolean"),
            ("timeoutSeconds", "integer"),
            ("watch", "boolean"),
        ],
        "deletecollection" => &[
            ("dryRun", "string"),
            ("fieldSelector", "string"),
            ("gracePeriodSeconds", "integer"),
            ("labelSelector", "string"),
            ("propagationPolicy", "string"),
        ],
        _ => &[],
    }
}
