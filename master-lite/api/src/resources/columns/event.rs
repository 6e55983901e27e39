//! Events, in the core form and in that of `events.k8s.io`.

use serde_json::Value;

use super::duration::age;
use super::tree::{get, int_at, str_at};
use super::{NAME, Spec, text};

pub(super) const EVENT: &[Spec] = &[
    text("Last Seen", "Time since it was last seen.", |event, now| last_seen(event, now).into()),
    text("Type", "Normal or Warning.", |event, _| get(event, "type")),
    text("Reason", "Why it happened, for machines.", |event, _| get(event, "reason")),
    text("Object", "What it is about.", |event, _| object(event).into()),
    text("Subobject", "Which part of the object it is about.", |event, _| {
        get(either(event, "involvedObject", "regarding"), "fieldPath")
    })
    .wide(),
    text("Source", "Who reported it.", |event, _| source(event).into()).wide(),
    text("Message", "What happened, for people.", |event, _| {
        either(event, "message", "note").as_str().unwrap_or_default().trim().into()
    }),
    text("First Seen", "Time since it was first seen.", |event, now| first_seen(event, now).into()).wide(),
    text("Count", "How often it was seen.", |event, _| count(event).into()).wide(),
    NAME.wide(),
];

/// A field by its core name or, if that is absent, by its other one.
fn either<'a>(event: &'a Value, core: &str, other: &str) -> &'a Value {
    if event[core].is_null() { &event[other] } else { &event[core] }
}

fn first_seen(event: &Value, now: i64) -> String {
    match either(event, "firstTimestamp", "deprecatedFirstTimestamp") {
        Value::Null => age(&event["eventTime"], now),
        first => age(first, now),
    }
}

fn last_seen(event: &Value, now: i64) -> String {
    if event["series"].is_object() {
        return age(&event["series"]["lastObservedTime"], now);
    }
    match either(event, "lastTimestamp", "deprecatedLastTimestamp") {
        Value::Null => first_seen(event, now),
        last => age(last, now),
    }
}

fn count(event: &Value) -> i64 {
    if event["series"].is_object() {
        return int_at(event, "series.count");
    }
    // An event that was seen once has no count in the newer form.
    either(event, "count", "deprecatedCount").as_i64().filter(|count| *count != 0).unwrap_or(1)
}

fn object(event: &Value) -> String {
    let object = either(event, "involvedObject", "regarding");
    let kind = str_at(object, "kind").to_lowercase();
    match str_at(object, "name") {
        "" => kind,
        name => format!("{kind}/{name}"),
    }
}

fn source(event: &Value) -> String {
    let source = either(event, "source", "deprecatedSource");
    let or = |first: &'static str, second: Value| match str_at(source, first) {
        "" => second.as_str().unwrap_or_default().to_owned(),
        text => text.to_owned(),
    };
    let component = or("component", either(event, "reportingComponent", "reportingController").clone());
    let instance = or("host", event["reportingInstance"].clone());
    if instance.is_empty() { component } else { format!("{component}, {instance}") }
}
