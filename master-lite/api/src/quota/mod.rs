//! ResourceQuotas: what objects cost, what a namespace has used, and whether a change fits
//! (`k8s.io/apiserver/pkg/quota/v1`, `pkg/quota/v1/evaluator`). All pure; the API server's admission and the quota
//! controller both work by it.

pub mod amounts;
mod evaluators;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

pub use amounts::Amounts;
pub use evaluators::{Change, Evaluator};

use keelson_quantity::{Format, Quantity};

fn names(list: &Value) -> impl Iterator<Item = &str> {
    list.as_object().into_iter().flatten().map(|(name, _)| name.as_str())
}

/// Evaluators of all that a quota limits.
pub fn evaluators(quota: &Value) -> Vec<Evaluator> {
    Evaluator::tracking(names(&quota["spec"]["hard"]))
}

/// What the objects of one evaluator's resource cost a quota, limit by limit. `now` is seconds since 1970.
pub fn total<'o>(
    quota: &Value,
    evaluator: &Evaluator,
    objects: impl Iterator<Item = &'o Value>,
    now: i64,
) -> Amounts {
    let limits = names(&quota["spec"]["hard"]).filter(|name| evaluator.measures(name));
    let mut used: Amounts =
        limits.map(|name| (name.to_owned(), Quantity::with_format(0, Format::DecimalSi))).collect();
    for object in objects.filter(|object| evaluator.in_scope(quota, object)) {
        let mut usage = evaluator.usage(object, now);
        usage.retain(|name, _| used.contains_key(name));
        amounts::add(&mut used, &usage);
    }
    used
}

/// The status of a quota, given what was measured; `None` if it is that already. What could not be measured keeps
/// its last value.
pub fn status(quota: &Value, measured: &Amounts) -> Option<Value> {
    let hard = amounts::read(&quota["spec"]["hard"]);
    let mut used = amounts::read(&quota["status"]["used"]);
    used.extend(measured.iter().map(|(name, amount)| (name.clone(), *amount)));
    used.retain(|name, _| hard.contains_key(name));
    let before = &quota["status"];
    let is_same = before["hard"].is_object()
        && before["used"].is_object()
        && amounts::read(&before["hard"]) == hard
        && amounts::read(&before["used"]) == used;
    (!is_same).then(|| json!({"hard": amounts::write(&hard), "used": amounts::write(&used)}))
}

/// Whether a change fits into a quota: `used` as it will be, or `None` if the change costs it nothing. The error is
/// upstream's sentence for the refusal. `now` is seconds since 1970.
pub fn charge(
    quota: &Value,
    evaluator: &Evaluator,
    change: &Change<'_>,
    now: i64,
) -> Result<Option<Amounts>, String> {
    let status = &quota["status"];
    let name = quota["metadata"]["name"].as_str().unwrap_or_default();
    let limits: Vec<&str> = names(&status["hard"]).filter(|name| evaluator.measures(name)).collect();
    if !evaluator.handles(change) || limits.is_empty() || !evaluator.in_scope(quota, change.new) {
        return Ok(None);
    }
    evaluator.constraints(&limits, change.new).map_err(|why| format!("failed quota: {name}: {why}"))?;
    if limits.iter().any(|limit| status["used"][limit].is_null()) {
        return Err(format!("status unknown for quota: {name}, resources: {}", limits.join(",")));
    }
    let mut cost = evaluator.usage(change.new, now);
    let negative: Vec<&str> =
        cost.iter().filter(|(_, amount)| amount.sign() < 0).map(|(name, _)| name.as_str()).collect();
    if !negative.is_empty() {
        return Err(format!("quota usage is negative for resource(s): {}", negative.join(",")));
    }
    if change.is_update && evaluator.in_scope(quota, change.old) {
        let before = evaluator.usage(change.old, now);
        for (name, amount) in &mut cost {
            if let Some(before) = before.get(name) {
                *amount = *amount - *before;
            }
        }
    }
    cost.retain(|name, amount| amount.sign() > 0 && limits.contains(&name.as_str()));
    if cost.is_empty() {
        return Ok(None);
    }
    let (hard, mut used) = (amounts::read(&status["hard"]), amounts::read(&status["used"]));
    let before = used.clone();
    amounts::add(&mut used, &cost);
    let exceeded: Vec<&String> = cost.keys().filter(|name| used.get(*name) > hard.get(*name)).collect();
    if !exceeded.is_empty() && change.subresource != "status" {
        let only = |amounts: &Amounts| -> Amounts {
            amounts
                .iter()
                .filter(|(name, _)| exceeded.contains(name))
                .map(|(name, amount)| (name.clone(), *amount))
                .collect()
        };
        return Err(format!(
            "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
            amounts::print(&only(&cost)),
            amounts::print(&only(&before)),
            amounts::print(&only(&hard)),
        ));
    }
    Ok(Some(used))
}

/// Puts `used` into a quota's status.
pub fn set_used(quota: &mut Value, used: &Amounts) {
    if quota["status"].is_null() {
        quota["status"] = Map::new().into();
    }
    quota["status"]["used"] = amounts::write(used);
}
