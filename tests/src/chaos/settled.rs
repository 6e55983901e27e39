//! Whether a cluster has come to what was asked of it, by what its API shows.

use serde_json::Value;

/// The status of a condition.
fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}

/// What is not yet as it should be: nodes (so many, all ready and with room), replicas, jobs, pods.
pub fn unsettled(items: &[Value], nodes: usize) -> Vec<String> {
    let mut open = Vec::new();
    let ready = items.iter().filter(|item| item["kind"] == "Node").collect::<Vec<_>>();
    if ready.len() != nodes {
        open.push(format!("{} Nodes, not {nodes}", ready.len()));
    }
    for item in items {
        let name = format!(
            "{} {}",
            item["kind"].as_str().unwrap_or_default(),
            item["metadata"]["name"].as_str().unwrap_or_default()
        );
        open.extend(why_open(item).map(|why| format!("{name}: {why}")));
    }
    open
}

fn why_open(item: &Value) -> Option<String> {
    let status = &item["status"];
    if item["metadata"]["deletionTimestamp"].is_string() {
        return Some("is being deleted".to_owned());
    }
    match item["kind"].as_str().unwrap_or_default() {
        "Node" => {
            let (ready, full) = (condition(item, "Ready"), condition(item, "DiskPressure"));
            let tainted = item["spec"]["taints"].as_array().is_some_and(|taints| !taints.is_empty());
            (ready != Some("True") || full != Some("False") || tainted)
                .then(|| format!("Ready {ready:?}, DiskPressure {full:?}, taints {}", item["spec"]["taints"]))
        }
        "Deployment" | "StatefulSet" => {
            let wanted = item["spec"]["replicas"].as_u64().unwrap_or(1);
            let count = |field: &str| status[field].as_u64().unwrap_or_default();
            let counts = ["replicas", "updatedReplicas", "readyReplicas"].map(count);
            let current = status["observedGeneration"] == item["metadata"]["generation"];
            (counts != [wanted; 3] || !current).then(|| {
                format!("{wanted} wanted, {counts:?} there, updated, ready; status of it: {current}")
            })
        }
        "Job" => (condition(item, "Complete") != Some("True")).then(|| status.to_string()),
        "Pod" => match status["phase"].as_str() {
            Some("Running") if condition(item, "Ready") == Some("True") => None,
            Some("Succeeded") => None,
            // An attempt of a job that failed; the job tells what comes of it.
            Some("Failed") if item["metadata"]["ownerReferences"][0]["kind"] == "Job" => None,
            phase => {
                let waiting = &status["containerStatuses"][0]["state"]["waiting"];
                Some(format!("{phase:?}, on {}, waiting: {waiting}", item["spec"]["nodeName"]))
            }
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Vec<Value> {
        let yes = |kind: &str, status: &str| json!({"type": kind, "status": status});
        vec![
            json!({"kind": "Node", "metadata": {"name": "n"}, "spec": {},
                "status": {"conditions": [yes("Ready", "True"), yes("DiskPressure", "False")]}}),
            json!({"kind": "Deployment", "metadata": {"name": "d", "generation": 2}, "spec": {"replicas": 3},
                "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3}}),
            json!({"kind": "Job", "metadata": {"name": "j"}, "status": {"conditions": [yes("Complete", "True")]}}),
            json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": {},
                "status": {"phase": "Running", "conditions": [yes("Ready", "True")]}}),
        ]
    }

    #[test]
    fn a_cluster_at_rest_is_settled() {
        assert_eq!(unsettled(&good(), 1), Vec::<String>::new());
        assert_eq!(unsettled(&good(), 2).len(), 1);
    }

    #[test]
    fn whatever_is_not_as_asked_is_named() {
        for (item, pointer, value) in [
            (0, "/status/conditions/0/status", json!("Unknown")),
            (0, "/status/conditions/1/status", json!("True")),
            (0, "/spec", json!({"taints": [{"key": "node.kubernetes.io/unreachable"}]})),
            (1, "/status/readyReplicas", json!(2)),
            (1, "/status/replicas", json!(4)),
            (1, "/status/observedGeneration", json!(1)),
            (2, "/status/conditions/0/type", json!("Failed")),
            (3, "/status/phase", json!("Pending")),
            (3, "/status/conditions/0/status", json!("False")),
            (3, "/metadata", json!({"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"})),
        ] {
            let mut items = good();
            *items[item].pointer_mut(pointer).unwrap() = value;
            assert_eq!(unsettled(&items, 1).len(), 1, "{item} {pointer}");
        }
    }
}
