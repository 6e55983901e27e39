//! Kinds that make pods.

use serde_json::Value;

use super::duration::{age, human_duration, seconds};
use super::tree::{
    at, condition, containers, count_at, get, get_int, int_at, labels, list_at, selector, selector_or_none,
    str_at,
};
use super::{AGE, NAME, Spec, boolean, integer, text};

/// Containers of the template.
const CONTAINERS: Spec =
    text("Containers", "Names of the template's containers.", |o, _| containers(template(o), "name").into())
        .wide();
/// Images of the template.
const IMAGES: Spec =
    text("Images", "Images of the template's containers.", |o, _| containers(template(o), "image").into())
        .wide();
/// A `metav1.LabelSelector`.
const SELECTOR: Spec =
    text("Selector", "Labels of its pods.", |o, _| selector_or_none(at(o, "spec.selector")).into()).wide();

fn template(object: &Value) -> &Value {
    at(object, "spec.template.spec")
}

fn ready(object: &Value) -> Value {
    format!("{}/{}", int_at(object, "status.readyReplicas"), int_at(object, "spec.replicas")).into()
}

pub(super) const DEPLOYMENT: &[Spec] = &[
    NAME,
    text("Ready", "Pods that are ready, of all that should be.", |o, _| ready(o)),
    text("Up-to-date", "Pods of the newest template.", |o, _| get_int(o, "status.updatedReplicas")),
    text("Available", "Pods that have been ready for long enough.", |o, _| {
        get_int(o, "status.availableReplicas")
    }),
    AGE,
    CONTAINERS,
    IMAGES,
    text("Selector", "Labels of its pods.", |o, _| {
        selector(at(o, "spec.selector")).unwrap_or_else(|| "<invalid>".to_owned()).into()
    })
    .wide(),
];

const DESIRED: Spec = integer("Desired", "Pods that should be.", |o, _| get_int(o, "spec.replicas"));
const CURRENT: Spec = integer("Current", "Pods that are.", |o, _| get_int(o, "status.replicas"));
const READY: Spec = integer("Ready", "Pods that are ready.", |o, _| get_int(o, "status.readyReplicas"));

pub(super) const REPLICA_SET: &[Spec] = &[NAME, DESIRED, CURRENT, READY, AGE, CONTAINERS, IMAGES, SELECTOR];

pub(super) const REPLICATION_CONTROLLER: &[Spec] = &[
    NAME,
    DESIRED,
    CURRENT,
    READY,
    AGE,
    CONTAINERS,
    IMAGES,
    text("Selector", "Labels of its pods.", |o, _| labels(at(o, "spec.selector")).into()).wide(),
];

pub(super) const STATEFUL_SET: &[Spec] = &[
    NAME,
    text("Ready", "Pods that are ready, of all that should be.", |o, _| ready(o)),
    AGE,
    CONTAINERS,
    IMAGES,
];

pub(super) const DAEMON_SET: &[Spec] = &[
    NAME,
    integer("Desired", "Nodes that should run a pod.", |o, _| get_int(o, "status.desiredNumberScheduled")),
    integer("Current", "Nodes that run a pod and should.", |o, _| {
        get_int(o, "status.currentNumberScheduled")
    }),
    integer("Ready", "Nodes with a ready pod.", |o, _| get_int(o, "status.numberReady")),
    integer("Up-to-date", "Nodes with a pod of the newest template.", |o, _| {
        get_int(o, "status.updatedNumberScheduled")
    }),
    integer("Available", "Nodes with a pod that has been ready for long enough.", |o, _| {
        get_int(o, "status.numberAvailable")
    }),
    text("Node Selector", "Labels of its nodes.", |o, _| labels(at(template(o), "nodeSelector")).into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub(super) const JOB: &[Spec] = &[
    NAME,
    text("Status", "Running, Complete, Failed, Suspended or Terminating.", |o, _| job_status(o).into()),
    text("Completions", "Pods that succeeded, of all that should.", |o, _| completions(o).into()),
    text("Duration", "Time from its start to its end or now.", |o, now| job_duration(o, now).into()),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

fn job_status(job: &Value) -> &'static str {
    let conditions = list_at(job, "status.conditions");
    let has = |kind| condition(conditions, kind) == Some("True");
    if has("Complete") {
        "Complete"
    } else if has("Failed") {
        "Failed"
    } else if !job["metadata"]["deletionTimestamp"].is_null() {
        "Terminating"
    } else if has("Suspended") {
        "Suspended"
    } else if has("FailureTarget") {
        "FailureTarget"
    } else if has("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn completions(job: &Value) -> String {
    let succeeded = int_at(job, "status.succeeded");
    match (at(job, "spec.completions").as_i64(), int_at(job, "spec.parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    }
}

fn job_duration(job: &Value, now: i64) -> String {
    let Some(start) = seconds(at(job, "status.startTime")) else { return String::new() };
    let end = seconds(at(job, "status.completionTime")).unwrap_or(now);
    human_duration(end.saturating_sub(start))
}

pub(super) const CRON_JOB: &[Spec] = &[
    NAME,
    text("Schedule", "When it runs, as a cron line.", |o, _| get(o, "spec.schedule")),
    text("Timezone", "Time zone of the schedule.", |o, _| {
        at(o, "spec.timeZone").as_str().unwrap_or("<none>").into()
    }),
    boolean("Suspend", "Whether it is suspended.", |o, _| {
        match at(o, "spec.suspend").as_bool() {
            None => "<unset>",
            Some(true) => "True",
            Some(false) => "False",
        }
        .into()
    }),
    integer("Active", "Number of running jobs.", |o, _| count_at(o, "status.active").into()),
    text("Last Schedule", "Time since it last ran.", |o, now| match at(o, "status.lastScheduleTime") {
        Value::Null => "<none>".into(),
        last => age(last, now).into(),
    }),
    AGE,
    text("Containers", CONTAINERS.description, |o, _| containers(cron_template(o), "name").into()).wide(),
    text("Images", IMAGES.description, |o, _| containers(cron_template(o), "image").into()).wide(),
    text("Selector", SELECTOR.description, |o, _| {
        selector_or_none(at(o, "spec.jobTemplate.spec.selector")).into()
    })
    .wide(),
];

fn cron_template(object: &Value) -> &Value {
    at(object, "spec.jobTemplate.spec.template.spec")
}

pub(super) const POD_TEMPLATE: &[Spec] = &[
    NAME,
    text("Containers", CONTAINERS.description, |o, _| containers(at(o, "template.spec"), "name").into()),
    text("Images", IMAGES.description, |o, _| containers(at(o, "template.spec"), "image").into()),
    text("Pod Labels", "Labels of the template.", |o, _| labels(at(o, "template.metadata.labels")).into()),
];

pub(super) const CONTROLLER_REVISION: &[Spec] = &[
    NAME,
    text("Controller", "Object whose history it is.", |o, _| controller(o).into()),
    text("Revision", "Number of the revision.", |o, _| get_int(o, "revision")),
    AGE,
];

fn controller(object: &Value) -> String {
    let owner = list_at(object, "metadata.ownerReferences").iter().find(|o| o["controller"] == true);
    let Some(owner) = owner else { return "<none>".to_owned() };
    let kind = str_at(owner, "kind");
    let kind = match str_at(owner, "apiVersion").split_once('/') {
        Some((group, _)) => format!("{kind}.{group}"),
        None => kind.to_owned(),
    };
    format!("{}/{}", kind.to_lowercase(), str_at(owner, "name"))
}
