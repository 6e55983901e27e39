//! Classes of pods and of requests that every cluster has.

use futures::future::try_join_all;
use http::Method;
use keelson_api::resources::flow_control::{self, AUTO_UPDATE};
use kube::Client;
use serde_json::{Value, json};

use super::{ensure, send};
use crate::admission::priority::SYSTEM_CLASSES;
use crate::extension::BoxError;
use crate::write::now;

const LEVELS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/prioritylevelconfigurations";
const SCHEMAS: &str = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";

/// Makes the PriorityClasses of the system's own pods.
pub async fn classes(client: &Client) -> Result<(), BoxError> {
    let descriptions = [
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        "Used for system critical pods that must not be moved from their current node.",
    ];
    for ((name, value), description) in SYSTEM_CLASSES.into_iter().zip(descriptions) {
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": name}, "value": value, "description": description,
        });
        ensure(client, "/apis/scheduling.k8s.io/v1/priorityclasses", &class, &[]).await?;
    }
    Ok(())
}

/// Makes the priority levels and flow schemas; puts right those that are the server's to keep; says of every flow
/// schema whether its level is there.
pub async fn flow_control(client: &Client) -> Result<(), BoxError> {
    let levels = flow_control::priority_levels();
    try_join_all(levels.iter().map(|level| maintain(client, LEVELS, &level.object, level.mandatory))).await?;
    let schemas = flow_control::flow_schemas();
    try_join_all(schemas.iter().map(|schema| maintain(client, SCHEMAS, &schema.object, schema.mandatory)))
        .await?;
    let list = |path| send(client, Method::GET, path, None);
    let (levels, schemas) = (list(LEVELS).await?, list(SCHEMAS).await?);
    let names: Vec<&Value> = items(&levels).map(|level| &level["metadata"]["name"]).collect();
    for schema in items(&schemas) {
        let found = names.contains(&&schema["spec"]["priorityLevelConfiguration"]["name"]);
        if let Some(schema) = with_condition(schema, found, &now()) {
            let path =
                format!("{SCHEMAS}/{}/status", schema["metadata"]["name"].as_str().unwrap_or_default());
            match send(client, Method::PUT, &path, Some(&schema)).await {
                Ok(_) => {}
                // Someone else writes it, or has deleted it; the next round will see.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// An administrator who changes a suggested object takes the annotation away, and keeps the change.
async fn maintain(
    client: &Client,
    collection: &str,
    wanted: &Value,
    mandatory: bool,
) -> Result<(), BoxError> {
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    let current = match send(client, Method::GET, &format!("{collection}/{name}"), None).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
        result => result?,
    };
    let ours = current.is_null()
        || current["metadata"]["annotations"][AUTO_UPDATE] == "true"
        || (mandatory && name != "exempt");
    ensure(client, collection, wanted, if ours { &["/spec"] } else { &[] }).await
}

/// The flow schema with the condition that it should have, unless it has it.
fn with_condition(schema: &Value, found: bool, now: &str) -> Option<Value> {
    let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
    let named = format!(
        "This FlowSchema references the PriorityLevelConfiguration object named {}",
        crate::authz::rule::go_quote(level)
    );
    let (status, reason, message) = if found {
        ("False", "Found", format!("{named} and it exists"))
    } else {
        ("True", "NotFound", format!("{named} but there is no such object"))
    };
    let mut conditions = schema["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let said = |c: &Value| {
        c["type"] == "Dangling" && c["status"] == status && c["reason"] == reason && c["message"] == message
    };
    if conditions.iter().any(said) {
        return None;
    }
    conditions.retain(|c| c["type"] != "Dangling");
    conditions.push(json!({
        "type": "Dangling", "status": status, "lastTransitionTime": now, "reason": reason, "message": message,
    }));
    let mut schema = schema.clone();
    schema["status"] = json!({"conditions": conditions});
    Some(schema)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_change_only_when_they_must() {
        let schema = json!({"spec": {"priorityLevelConfiguration": {"name": "x"}}});
        let found = with_condition(&schema, true, "t").unwrap();
        let condition = &found["status"]["conditions"][0];
        assert_eq!((&condition["status"], &condition["reason"]), (&json!("False"), &json!("Found")));
        assert_eq!(with_condition(&found, true, "u"), None);
        let lost = with_condition(&found, false, "u").unwrap();
        assert_eq!(lost["status"]["conditions"].as_array().unwrap().len(), 1);
        assert_eq!(lost["status"]["conditions"][0]["status"], "True");
    }
}
