//! Small rules about object metadata, API errors and time.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// The present, as the API writes it.
pub fn now() -> Time {
    Time(Timestamp::now())
}

/// The present with microseconds, for leases.
pub fn micro_now() -> MicroTime {
    MicroTime(Timestamp::now())
}

/// How long ago `then` was at `now`; negative when it lies ahead.
pub fn since(now: &Time, then: &Time) -> SignedDuration {
    now.0.duration_since(then.0)
}

/// `base + add`, saturating at the end of representable time.
pub fn plus(base: &Time, add: Duration) -> Time {
    let add = SignedDuration::try_from(add).unwrap_or(SignedDuration::MAX);
    Time(base.0.saturating_add(add).unwrap_or(Timestamp::MAX))
}

/// The time left from `now` until `then`, or nothing when `then` has passed.
pub fn until(now: &Time, then: &Time) -> Option<Duration> {
    Duration::try_from(then.0.duration_since(now.0)).ok().filter(|d| !d.is_zero())
}

/// The owner reference that manages the object, if one does (`controller: true`).
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|o| o.controller == Some(true))
}

/// Whether the object with `uid` manages `meta`.
pub fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|o| o.uid == uid)
}

/// A controller reference to an object of kind `K`, as `metav1.NewControllerRef` makes it.
pub fn controller_ref<K: kube::Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The name, empty when the object has none yet.
pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The namespace, empty for a cluster-scoped object.
pub fn namespace(meta: &ObjectMeta) -> &str {
    meta.namespace.as_deref().unwrap_or_default()
}

/// The uid, empty when the object has none yet.
pub fn uid(meta: &ObjectMeta) -> &str {
    meta.uid.as_deref().unwrap_or_default()
}

/// One annotation's value.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// One label's value.
pub fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// The resource version as a number. Resource versions are comparable from v1.35 on (KEP-5504); what does not
/// parse counts as the oldest.
pub fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn api_code(error: &kube::Error) -> Option<(u16, &str)> {
    match error {
        kube::Error::Api(status) => Some((status.code, status.reason.as_str())),
        _ => None,
    }
}

/// Whether the API said that the object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(api_code(error), Some((_, "NotFound")) | Some((404, _)))
}

/// Whether the API refused a write because the object has changed meanwhile.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(api_code(error), Some((_, "Conflict")))
}

/// Whether the API refused a creation because the name is taken.
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(api_code(error), Some((_, "AlreadyExists")))
}

/// Whether the API has no such operation (405, or a group that it does not serve).
pub fn is_unsupported(error: &kube::Error) -> bool {
    matches!(api_code(error), Some((_, "MethodNotAllowed")) | Some((404 | 405, _)))
}

/// Whether a creation failed because its namespace is being deleted (cause `NamespaceTerminating`).
pub fn is_namespace_terminating(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status
            .details
            .as_ref()
            .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating")),
        _ => false,
    }
}

/// What went wrong, in the words the API used for it: upstream's messages hold these and nothing of the transport.
pub fn message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_arithmetic_saturates_and_signs() {
        let t0 = Time(Timestamp::UNIX_EPOCH);
        let t1 = plus(&t0, Duration::from_secs(5));
        assert_eq!(until(&t0, &t1), Some(Duration::from_secs(5)));
        assert_eq!(until(&t1, &t0), None);
        assert_eq!(since(&t1, &t0).as_secs(), 5);
        assert_eq!(plus(&t0, Duration::MAX).0, Timestamp::MAX);
    }

    #[test]
    fn only_the_controller_reference_counts() {
        let owner =
            |uid: &str, controller| OwnerReference { uid: uid.into(), controller, ..Default::default() };
        let meta = ObjectMeta {
            owner_references: Some(vec![owner("a", None), owner("b", Some(true))]),
            ..Default::default()
        };
        assert!(is_controlled_by(&meta, "b"));
        assert!(!is_controlled_by(&meta, "a"));
    }
}
