//! Amounts of named resources, and the sums a pod's containers make.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use keelson_quantity::Quantity;

/// Resource name to amount.
pub type Amounts = BTreeMap<String, Quantity>;

/// A ResourceList; what is no quantity is left out (validation complains of it elsewhere).
pub fn read(list: &Value) -> Amounts {
    list.as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| Some((name.clone(), parse(amount)?)))
        .collect()
}

fn parse(amount: &Value) -> Option<Quantity> {
    match amount {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}

/// The same as a ResourceList.
pub fn write(amounts: &Amounts) -> Value {
    let list: Map<String, Value> =
        amounts.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect();
    list.into()
}

/// Adds each of `more`.
pub fn add(amounts: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let sum = amounts.get(name).map_or(*amount, |have| *have + *amount);
        amounts.insert(name.clone(), sum);
    }
}

/// Takes the greater of each.
pub fn raise(amounts: &mut Amounts, others: &Amounts) {
    for (name, amount) in others {
        if amounts.get(name).is_none_or(|have| have < amount) {
            amounts.insert(name.clone(), *amount);
        }
    }
}

/// `name=amount` pairs between commas, as upstream prints them.
pub fn print(amounts: &Amounts) -> String {
    let parts: Vec<String> = amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    parts.join(",")
}

/// Which of a container's amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What it is given.
    Requests,
    /// What it may use.
    Limits,
}

impl Kind {
    /// Name of the field.
    pub fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// Whether an amount may be stated for a pod as a whole.
pub fn is_pod_level(name: &str) -> bool {
    matches!(name, "cpu" | "memory") || name.starts_with("hugepages-")
}

/// Whether a pod states amounts for itself as a whole.
pub fn has_pod_level(pod: &Value) -> bool {
    let resources = &pod["spec"]["resources"];
    [Kind::Requests, Kind::Limits]
        .iter()
        .filter_map(|kind| resources[kind.field()].as_object())
        .any(|list| list.keys().any(|name| is_pod_level(name)))
}

fn containers<'a>(pod: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    pod["spec"][field].as_array().into_iter().flatten()
}

fn is_sidecar(container: &Value) -> bool {
    container["restartPolicy"] == "Always"
}

/// What all containers of a pod need together (`resourcehelper.PodRequests` and `PodLimits`): the sum of those that
/// run side by side, or more if an init container needs more, then the pod's own amounts and its overhead.
///
/// With `use_status`, a container that is being resized counts with the greatest of what it wants, was promised
/// and has.
pub fn pod_total(pod: &Value, kind: Kind, use_status: bool) -> Amounts {
    let mut total = without_overhead(pod, kind, use_status);
    let overhead = read(&pod["spec"]["overhead"]);
    match kind {
        Kind::Requests => add(&mut total, &overhead),
        // What is not limited stays so.
        Kind::Limits => {
            for (name, amount) in &overhead {
                if let Some(limit) = total.get_mut(name).filter(|limit| !limit.is_zero()) {
                    *limit += *amount;
                }
            }
        }
    }
    total
}

/// The same without the pod's overhead.
pub fn without_overhead(pod: &Value, kind: Kind, use_status: bool) -> Amounts {
    let mut total = container_total(pod, kind, use_status);
    let whole = read(&pod["spec"]["resources"][kind.field()]);
    total.extend(whole.into_iter().filter(|(name, _)| is_pod_level(name)));
    total
}

fn container_total(pod: &Value, kind: Kind, use_status: bool) -> Amounts {
    let needs = |container: &Value, resizable: bool| {
        if use_status && resizable { effective(pod, container, kind) } else { wanted(container, kind) }
    };
    let mut total = Amounts::new();
    for container in containers(pod, "containers") {
        add(&mut total, &needs(container, true));
    }
    // Each init container runs beside the sidecars before it.
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in containers(pod, "initContainers") {
        let mut need = needs(container, is_sidecar(container));
        if is_sidecar(container) {
            add(&mut total, &need);
            add(&mut sidecars, &need);
            need = sidecars.clone();
        } else {
            add(&mut need, &sidecars);
        }
        raise(&mut most, &need);
    }
    raise(&mut total, &most);
    total
}

fn wanted(container: &Value, kind: Kind) -> Amounts {
    read(&container["resources"][kind.field()])
}

fn effective(pod: &Value, container: &Value, kind: Kind) -> Amounts {
    let statuses = ["containerStatuses", "initContainerStatuses"];
    let status = statuses
        .iter()
        .flat_map(|list| pod["status"][list].as_array().into_iter().flatten())
        .find(|status| status["name"] == container["name"])
        .filter(|status| status["resources"].is_object());
    let Some(status) = status else { return wanted(container, kind) };
    let mut amounts = read(&status["resources"][kind.field()]);
    if kind == Kind::Requests {
        raise(&mut amounts, &read(&status["allocatedResources"]));
    }
    if !is_infeasible(pod) {
        raise(&mut amounts, &wanted(container, kind));
    }
    amounts
}

/// Whether the node will never grant the resize that the pod asks for.
fn is_infeasible(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "PodResizePending" && c["reason"] == "Infeasible")
}
