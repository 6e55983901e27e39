//! LimitRanger: containers get the defaults of their namespace's LimitRanges, and nothing may be outside of their
//! bounds (`plugin/pkg/admission/limitranger`).

use std::sync::Arc;

use keelson_api::meta::GroupResource;
use keelson_api::quota::amounts::{self, Amounts, Kind};
use keelson_quantity::Quantity;
use serde_json::{Map, Value};

use super::forbidden;
use crate::extension::{Attributes, MutatingAdmission, ObjectReader, Operation, Result, ValidatingAdmission};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The plug-in.
pub struct LimitRanger {
    reader: Arc<dyn ObjectReader>,
}

impl LimitRanger {
    /// Looks LimitRanges up in this cache.
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    fn ranges(&self, attributes: &Attributes) -> Vec<Arc<Value>> {
        if !concerns(attributes) {
            return Vec::new();
        }
        self.reader.list(&GroupResource::new("", "limitranges"), Some(&attributes.namespace))
    }
}

/// Pods that are new or resized, and claims; nothing that is on its way out.
fn concerns(attributes: &Attributes) -> bool {
    let deleted =
        attributes.old_object.as_ref().is_some_and(|old| !old["metadata"]["deletionTimestamp"].is_null());
    if deleted || !attributes.resource.group.is_empty() {
        return false;
    }
    matches!(
        (attributes.resource.resource.as_str(), attributes.operation, attributes.subresource.as_str()),
        ("pods", Operation::Create, "")
            | ("pods", Operation::Update, "resize")
            | ("persistentvolumeclaims", Operation::Create | Operation::Update, "")
    )
}

#[async_trait::async_trait]
impl MutatingAdmission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn admit(&self, attributes: &mut Attributes) -> Result<()> {
        if attributes.resource.resource != "pods" {
            return Ok(());
        }
        for range in self.ranges(attributes) {
            if let Some(pod) = attributes.object.as_mut() {
                set_defaults(pod, &range);
            }
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl ValidatingAdmission for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    async fn validate(&self, attributes: &Attributes) -> Result<()> {
        let Some(object) = &attributes.object else { return Ok(()) };
        for range in self.ranges(attributes) {
            let broken = match attributes.resource.resource.as_str() {
                "pods" => pod_violations(object, &range),
                _ => claim_violations(object, &range),
            };
            match broken.as_slice() {
                [] => {}
                [one] => return Err(forbidden(attributes, one)),
                many => return Err(forbidden(attributes, format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

fn limits<'a>(range: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    range["spec"]["limits"].as_array().into_iter().flatten().filter(move |limit| limit["type"] == kind)
}

/// Gives every container what it does not say itself, and notes that in an annotation.
fn set_defaults(pod: &mut Value, range: &Value) {
    let (mut default, mut request) = (Map::new(), Map::new());
    for limit in limits(range, "Container") {
        default.extend(limit["default"].as_object().cloned().unwrap_or_default());
        request.extend(limit["defaultRequest"].as_object().cloned().unwrap_or_default());
    }
    let mut notes = Vec::new();
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            let name = container["name"].as_str().unwrap_or_default().to_owned();
            for (field, word, defaults) in [("requests", "request", &request), ("limits", "limit", &default)]
            {
                let added = fill(container, field, defaults);
                if !added.is_empty() {
                    notes.push(format!("{} {word} for {what} {name}", added.join(", ")));
                }
            }
        }
    }
    if !notes.is_empty() {
        let note = format!("LimitRanger plugin set: {}", notes.join("; "));
        pod["metadata"]["annotations"][ANNOTATION] = note.into();
    }
}

/// Names that were missing.
fn fill(container: &mut Value, field: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let given = &container["resources"][field];
    let missing: Vec<String> =
        defaults.keys().filter(|name| given[name.as_str()].is_null()).cloned().collect();
    for name in &missing {
        container["resources"][field][name] = defaults[name].clone();
    }
    missing
}

/// What something asks for and may use, as bounds are held against it.
struct Subject<'a> {
    kind: &'a str,
    requests: Amounts,
    limits: Amounts,
}

fn pod_violations(pod: &Value, range: &Value) -> Vec<String> {
    let mut broken = Vec::new();
    let containers = ["containers", "initContainers"];
    for limit in limits(range, "Container") {
        for container in containers.iter().flat_map(|list| pod["spec"][list].as_array().into_iter().flatten())
        {
            let read = |kind: Kind| amounts::read(&container["resources"][kind.field()]);
            let subject =
                Subject { kind: "Container", requests: read(Kind::Requests), limits: read(Kind::Limits) };
            subject.check(limit, &mut broken);
        }
    }
    for limit in limits(range, "Pod") {
        let total = |kind: Kind| amounts::without_overhead(pod, kind, false);
        let subject = Subject { kind: "Pod", requests: total(Kind::Requests), limits: total(Kind::Limits) };
        subject.check(limit, &mut broken);
    }
    broken
}

fn claim_violations(claim: &Value, range: &Value) -> Vec<String> {
    let subject = Subject {
        kind: "PersistentVolumeClaim",
        requests: amounts::read(&claim["spec"]["resources"]["requests"]),
        limits: Amounts::new(),
    };
    let mut broken = Vec::new();
    for limit in limits(range, subject.kind) {
        for (name, min) in amounts::read(&limit["min"]) {
            broken.extend(subject.below(&name, &min));
        }
        for (name, max) in amounts::read(&limit["max"]) {
            broken.extend(subject.request_above(&name, &max));
        }
    }
    broken
}

impl Subject<'_> {
    fn check(&self, limit: &Value, broken: &mut Vec<String>) {
        for (name, min) in amounts::read(&limit["min"]) {
            broken.extend(self.below(&name, &min));
        }
        for (name, max) in amounts::read(&limit["max"]) {
            broken.extend(self.above(&name, &max));
        }
        for (name, ratio) in amounts::read(&limit["maxLimitRequestRatio"]) {
            broken.extend(self.beyond_ratio(&name, &ratio));
        }
    }

    fn below(&self, name: &str, min: &Quantity) -> Option<String> {
        let rule = format!("minimum {name} usage per {} is {min}", self.kind);
        match (self.requests.get(name), self.limits.get(name)) {
            (None, _) => Some(format!("{rule}.  No request is specified")),
            (Some(request), _) if request < min => Some(format!("{rule}, but request is {request}")),
            (_, Some(limit)) if limit < min => Some(format!("{rule}, but limit is {limit}")),
            _ => None,
        }
    }

    fn above(&self, name: &str, max: &Quantity) -> Option<String> {
        let rule = format!("maximum {name} usage per {} is {max}", self.kind);
        match (self.limits.get(name), self.requests.get(name)) {
            (None, _) => Some(format!("{rule}.  No limit is specified")),
            (Some(limit), _) if limit > max => Some(format!("{rule}, but limit is {limit}")),
            (_, Some(request)) if request > max => Some(format!("{rule}, but request is {request}")),
            _ => None,
        }
    }

    /// For what has requests but no limits.
    fn request_above(&self, name: &str, max: &Quantity) -> Option<String> {
        let rule = format!("maximum {name} usage per {} is {max}", self.kind);
        match self.requests.get(name) {
            None => Some(format!("{rule}.  No request is specified")),
            Some(request) if request > max => Some(format!("{rule}, but request is {request}")),
            Some(_) => None,
        }
    }

    fn beyond_ratio(&self, name: &str, max: &Quantity) -> Option<String> {
        let rule = format!("{name} max limit to request ratio per {} is {max}", self.kind);
        let given = |amounts: &Amounts| amounts.get(name).filter(|amount| !amount.is_zero()).cloned();
        let Some(request) = given(&self.requests) else {
            return Some(format!("{rule}, but no request is specified or request is 0"));
        };
        let Some(limit) = given(&self.limits) else {
            return Some(format!("{rule}, but no limit is specified or limit is 0"));
        };
        #[expect(clippy::cast_precision_loss, reason = "a ratio is compared and shown to six digits")]
        let (ratio, most) =
            (limit.nanos() as f64 / request.nanos() as f64, max.nanos() as f64 / 1_000_000_000.0);
        (ratio > most).then(|| format!("{rule}, but provided ratio is {ratio:.6}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::create;
    use super::*;
    use crate::authz::fake::FakeReader;
    use serde_json::json;

    fn plugin(limit: Value) -> LimitRanger {
        let range = json!({"metadata": {"name": "r", "namespace": "a"}, "spec": {"limits": [limit]}});
        LimitRanger::new(Arc::new(FakeReader::new(vec![("", "limitranges", range)])))
    }

    fn pod(resources: Value) -> Value {
        json!({
            "metadata": {"name": "p", "namespace": "a"},
            "spec": {"containers": [{"name": "c", "resources": resources}]},
        })
    }

    #[tokio::test]
    async fn defaults_are_set_and_noted() {
        let plugin = plugin(json!({
            "type": "Container", "default": {"cpu": "500m", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"},
        }));
        let mut attributes = create("", "pods", pod(json!({"limits": {"memory": "2Gi"}})));
        plugin.admit(&mut attributes).await.unwrap();
        let pod = attributes.object.unwrap();
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "500m", "memory": "2Gi"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
        );
    }

    #[tokio::test]
    async fn bounds_are_held() {
        let check = async |limit: Value, resource: &str, object: Value, want: Option<&str>| {
            let attributes = create("", resource, object);
            let got = plugin(limit).validate(&attributes).await.err().map(|error| error.message);
            let prefix = format!("{resource} \"p\" is forbidden: ");
            assert_eq!(got, want.map(|want| format!("{prefix}{want}")));
        };
        let range = json!({"type": "Container", "min": {"cpu": "50m"}, "max": {"cpu": "1"}});
        let cpu =
            |request: &str, limit: &str| pod(json!({"requests": {"cpu": request}, "limits": {"cpu": limit}}));
        check(range.clone(), "pods", cpu("50m", "1"), None).await;
        check(
            range.clone(),
            "pods",
            cpu("10m", "1"),
            Some("minimum cpu usage per Container is 50m, but request is 10m"),
        )
        .await;
        check(
            range.clone(),
            "pods",
            pod(json!({})),
            Some("[minimum cpu usage per Container is 50m.  No request is specified, maximum cpu usage per Container is 1.  No limit is specified]"),
        )
        .await;
        check(
            json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "2"}}),
            "pods",
            cpu("100m", "300m"),
            Some("cpu max limit to request ratio per Pod is 2, but provided ratio is 3.000000"),
        )
        .await;
        let claim = json!({
            "metadata": {"name": "p", "namespace": "a"},
            "spec": {"resources": {"requests": {"storage": "2Gi"}}},
        });
        check(
            json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}),
            "persistentvolumeclaims",
            claim,
            Some("maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"),
        )
        .await;
    }
}
