//! Webhooks and policies for requests that write no stored object: connects, and objects that are only acted on.

use std::sync::Arc;

use keelson_api::meta::GroupVersionKind;
use keelson_api::resources::Resource;
use serde_json::{Map, Value, json};

use super::Call;
use crate::extension::{Attributes, HookView, Hooks, Operation};
use crate::options::WriteOptions;
use crate::status::Result;

/// A connect's options: their kind, and of their fields the flags, the texts and the lists.
type Options = (&'static str, &'static [&'static str], &'static [&'static str], &'static [&'static str]);

const STREAMS: &[&str] = &["stdin", "stdout", "stderr", "tty"];

/// The options of what is connected to; none for what is only read.
fn options(resource: &str, subresource: &str) -> Option<Options> {
    Some(match (resource, subresource) {
        ("pods", "exec") => ("PodExecOptions", STREAMS, &["container"], &["command"]),
        ("pods", "attach") => ("PodAttachOptions", STREAMS, &["container"], &[]),
        ("pods", "portforward") => ("PodPortForwardOptions", &[], &[], &["ports"]),
        ("pods", "proxy") => ("PodProxyOptions", &[], &["path"], &[]),
        ("services", "proxy") => ("ServiceProxyOptions", &[], &["path"], &[]),
        ("nodes", "proxy") => ("NodeProxyOptions", &[], &["path"], &[]),
        _ => return None,
    })
}

/// The options as an object, of the query's parameters and what follows the subresource in the path.
fn object((kind, flags, texts, lists): Options, query: &[(String, String)], path: &str) -> Value {
    let all = |key: &str| query.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str()).collect::<Vec<_>>();
    let mut out = Map::from_iter([("kind".to_owned(), kind.into()), ("apiVersion".to_owned(), "v1".into())]);
    for flag in flags {
        let given = all(flag).first().is_some_and(|v| *v != "0" && !v.eq_ignore_ascii_case("false"));
        if given {
            out.insert((*flag).to_owned(), true.into());
        }
    }
    for text in texts {
        let given = if *text == "path" { path } else { all(text).first().copied().unwrap_or_default() };
        if !given.is_empty() {
            out.insert((*text).to_owned(), given.into());
        }
    }
    for list in lists {
        let given = all(list);
        let numbers = || {
            let ports = given.iter().flat_map(|v| v.split(','));
            ports.filter_map(|port| port.parse::<i32>().ok()).collect::<Vec<_>>()
        };
        let value = if *list == "ports" { json!(numbers()) } else { json!(given) };
        if value != json!([]) {
            out.insert((*list).to_owned(), value);
        }
    }
    out.into()
}

impl Call {
    fn attributes(&self, operation: Operation, row: &Resource, kind: GroupVersionKind) -> Attributes {
        Attributes {
            operation,
            kind,
            resource: row.group_resource(),
            version: self.info.version.clone(),
            subresource: self.info.subresource.clone(),
            namespace: self.namespace(row).to_owned(),
            name: self.info.name.clone(),
            user: self.user.clone(),
            object: None,
            old_object: None,
            dry_run: false,
            options: Value::Null,
            hooks: Hooks::new(HookView::Plain),
        }
    }

    /// Asks webhooks and policies about an object that is not stored, which they may change. Returns their warnings.
    pub(super) async fn ask_dynamic(
        &self,
        row: &Arc<Resource>,
        kind: &GroupVersionKind,
        object: &mut Value,
        options: &WriteOptions,
    ) -> Result<Vec<String>> {
        let Some(dynamic) = &self.core.extensions.dynamic else { return Ok(Vec::new()) };
        let mut attributes = self.attributes(Operation::Create, row, kind.clone());
        if attributes.name.is_empty() {
            attributes.name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        }
        attributes.dry_run = options.dry_run;
        attributes.options = options.to_value("CreateOptions");
        attributes.object = Some(object.take());
        dynamic.admit_all(&mut attributes).await?;
        *object = attributes.object.take().unwrap_or_default();
        Ok(attributes.hooks.take_warnings())
    }

    /// Asks webhooks and policies whether a stream may be opened. Returns their warnings.
    pub(super) async fn ask_to_connect(&self, row: &Arc<Resource>) -> Result<Vec<String>> {
        let Some(dynamic) = &self.core.extensions.dynamic else { return Ok(Vec::new()) };
        let Some(options) = options(&self.info.resource, &self.info.subresource) else {
            return Ok(Vec::new());
        };
        let kind = GroupVersionKind::new("", "v1", options.0);
        let mut attributes = self.attributes(Operation::Connect, row, kind);
        let (_, path) = self.info.path.split_once("/proxy").unwrap_or_default();
        attributes.object = Some(object(options, &self.query.0, path));
        dynamic.admit_all(&mut attributes).await?;
        Ok(attributes.hooks.take_warnings())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_made_of_queries() {
        let check = |resource: &str, sub: &str, query: &[(&str, &str)], path: &str, wanted: Value| {
            let query: Vec<_> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(object(options(resource, sub).unwrap(), &query, path), wanted);
        };
        check(
            "pods",
            "exec",
            &[("command", "sh"), ("command", "-c"), ("stdin", "true"), ("tty", "false"), ("container", "c")],
            "",
            json!({"kind": "PodExecOptions", "apiVersion": "v1", "stdin": true, "container": "c", "command": ["sh", "-c"]}),
        );
        check(
            "pods",
            "portforward",
            &[("ports", "80,443")],
            "",
            json!({"kind": "PodPortForwardOptions", "apiVersion": "v1", "ports": [80, 443]}),
        );
        check(
            "nodes",
            "proxy",
            &[],
            "/metrics",
            json!({"kind": "NodeProxyOptions", "apiVersion": "v1", "path": "/metrics"}),
        );
        assert!(options("pods", "log").is_none());
    }
}
