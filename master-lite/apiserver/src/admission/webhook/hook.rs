//! What a webhook configuration says (`k8s.io/apiserver/pkg/admission/plugin/webhook/accessors`).

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keelson_api::expressions::condition::Condition;
use rustls::ClientConfig;
use serde_json::Value;

use super::review::ReviewVersion;
use crate::admission::matching::{Matching, strings};
use crate::authz::rbac::text;

/// Upstream's default, which the API's defaults fill in too.
const TIMEOUT: u64 = 10;
/// Port of a service unless the configuration names one.
const PORT: u16 = 443;

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Anywhere.
    Url(String),
    /// Behind a service of the cluster.
    Service {
        /// The service's namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
        /// Path of the requests.
        path: String,
    },
}

/// One webhook of a configuration.
#[derive(Debug)]
pub(super) struct Hook {
    /// Configuration, name and place in the configuration.
    pub(super) uid: String,
    pub(super) name: String,
    /// `failurePolicy: Ignore`.
    pub(super) ignores_failure: bool,
    pub(super) timeout: Duration,
    /// May be called for a dry run.
    pub(super) dry_run: bool,
    /// The first version of AdmissionReview that both sides know.
    pub(super) review: Option<ReviewVersion>,
    /// `reinvocationPolicy: IfNeeded`.
    pub(super) again: bool,
    pub(super) target: Target,
    /// PEM, base64-encoded as it stands in the configuration; empty for the machine's own roots.
    pub(super) ca_bundle: String,
    pub(super) tls: OnceLock<Result<Arc<ClientConfig>, String>>,
    pub(super) conditions: Vec<Condition>,
    pub(super) matching: Matching,
}

/// The webhooks of configurations, in the order in which they are called: by name of the configuration.
pub(super) fn hooks(mut configurations: Vec<Arc<Value>>) -> Vec<Arc<Hook>> {
    configurations.sort_by(|a, b| text(a, "/metadata/name").cmp(text(b, "/metadata/name")));
    let of = |configuration: &Arc<Value>| {
        let name = text(configuration, "/metadata/name");
        let hooks = configuration["webhooks"].as_array().into_iter().flatten().enumerate();
        hooks.map(|(at, hook)| Arc::new(Hook::read(name, at, hook))).collect::<Vec<_>>()
    };
    configurations.iter().flat_map(of).collect()
}

impl Hook {
    fn read(configuration: &str, at: usize, hook: &Value) -> Self {
        let name = text(hook, "/name");
        let config = &hook["clientConfig"];
        let service = &config["service"];
        let target = match config["url"].as_str() {
            Some(url) => Target::Url(url.to_owned()),
            None => Target::Service {
                namespace: text(service, "/namespace").to_owned(),
                name: text(service, "/name").to_owned(),
                port: service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT),
                path: text(service, "/path").to_owned(),
            },
        };
        Self {
            uid: format!("{configuration}/{name}/{at}"),
            name: name.to_owned(),
            ignores_failure: hook["failurePolicy"] == "Ignore",
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT)),
            dry_run: matches!(text(hook, "/sideEffects"), "None" | "NoneOnDryRun"),
            review: strings(&hook["admissionReviewVersions"]).iter().find_map(|v| ReviewVersion::parse(v)),
            again: hook["reinvocationPolicy"] == "IfNeeded",
            target,
            ca_bundle: text(config, "/caBundle").to_owned(),
            tls: OnceLock::new(),
            conditions: Condition::all_of(hook),
            matching: Matching::of_webhook(hook),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hooks_are_ordered_and_read_whole() {
        let configuration =
            |name: &str, hooks: Value| Arc::new(json!({"metadata": {"name": name}, "webhooks": hooks}));
        let found = hooks(vec![
            configuration(
                "b",
                json!([{"name": "x", "failurePolicy": "Ignore", "timeoutSeconds": 3,
                "sideEffects": "NoneOnDryRun", "admissionReviewVersions": ["v9", "v1beta1", "v1"],
                "clientConfig": {"service": {"name": "s", "namespace": "n", "path": "/p"}}}]),
            ),
            configuration("a", json!([{"name": "z", "clientConfig": {"url": "https://h/"}}, {"name": "y"}])),
        ]);
        assert_eq!(found.iter().map(|h| h.uid.as_str()).collect::<Vec<_>>(), ["a/z/0", "a/y/1", "b/x/0"]);
        assert_eq!(found[0].target, Target::Url("https://h/".into()));
        assert!(!found[0].ignores_failure && !found[0].dry_run && found[0].review.is_none());
        let last = &found[2];
        assert!(last.ignores_failure && last.dry_run && last.timeout == Duration::from_secs(3));
        assert_eq!(last.review, Some(ReviewVersion::V1Beta1));
        let (namespace, name, path) = ("n".to_owned(), "s".to_owned(), "/p".to_owned());
        assert_eq!(last.target, Target::Service { namespace, name, port: 443, path });
    }
}
