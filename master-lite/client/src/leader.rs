//! Leader election by Lease: of several masters one runs the scheduler and one the controllers.
//!
//! The rules are client-go's `leaderelection`: a candidate trusts its own clock only, counting from when it last
//! saw the record change, so skewed clocks do no harm.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use rand::Rng;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::meta;

/// Who is elected, for what, and how fast.
#[derive(Debug, Clone)]
pub struct LeaderConfig {
    /// The Lease's name: `kube-scheduler`, `kube-controller-manager`.
    pub name: String,
    /// The Lease's namespace.
    pub namespace: String,
    /// Who we are. A master that is alone with its store should use an identity that stays the same across
    /// restarts: then it need not wait for its own former lease to expire.
    pub identity: String,
    /// How long others wait for a silent leader.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up. Must be shorter than `lease_duration`.
    pub renew_deadline: Duration,
    /// Pause between attempts.
    pub retry_period: Duration,
}

impl LeaderConfig {
    /// Upstream's lease: 15 s, renewed within 10 s, tried every 2 s, in `kube-system`.
    pub fn new(name: impl Into<String>, identity: impl Into<String>) -> Self {
        LeaderConfig {
            name: name.into(),
            namespace: "kube-system".into(),
            identity: identity.into(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Why a leader is none any more.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// The lease could not be renewed in time, or another holds it.
    #[error("lost the lease {0:?}")]
    Lost(String),
}

struct Observed {
    record: Option<LeaseSpec>,
    at: Instant,
}

/// Waits to become leader, runs `work` with a token that is cancelled when leadership ends, and gives the lease
/// back when `work` ends or `shutdown` is cancelled.
///
/// # Errors
/// [`LeaderError::Lost`] when leadership was lost; `work` has been cancelled and has ended by then.
pub async fn run_as_leader<F, Fut>(
    client: Client,
    config: LeaderConfig,
    shutdown: CancellationToken,
    work: F,
) -> Result<(), LeaderError>
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = ()>,
{
    let api: Api<Lease> = Api::namespaced(client, &config.namespace);
    let mut observed = Observed { record: None, at: Instant::now() };
    loop {
        match attempt(&api, &config, &mut observed).await {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => {
                tracing::debug!(lease = config.name, error = %meta::message(&error), "cannot acquire")
            }
        }
        let jitter = rand::rng().random_range(1.0..1.2);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = sleep(config.retry_period.mul_f64(jitter)) => {}
        }
    }
    tracing::info!(lease = config.name, identity = config.identity, "became leader");
    let term = shutdown.child_token();
    let mut work = std::pin::pin!(work(term.clone()));
    let lost = tokio::select! {
        () = &mut work => {
            release(&api, &config).await;
            return Ok(());
        }
        () = renew(&api, &config, &mut observed) => true,
        () = shutdown.cancelled() => false,
    };
    term.cancel();
    work.await;
    if lost {
        return Err(LeaderError::Lost(config.name));
    }
    release(&api, &config).await;
    Ok(())
}

/// Returns when the lease is lost.
async fn renew(api: &Api<Lease>, config: &LeaderConfig, observed: &mut Observed) {
    let mut renewed = Instant::now();
    loop {
        sleep(config.retry_period).await;
        let left = config.renew_deadline.saturating_sub(renewed.elapsed());
        match timeout(left, attempt(api, config, observed)).await {
            Ok(Ok(true)) => renewed = Instant::now(),
            Ok(Ok(false)) => return,
            Ok(Err(error)) => {
                tracing::warn!(lease = config.name, error = %meta::message(&error), "cannot renew the lease");
            }
            Err(_) => return,
        }
        if renewed.elapsed() >= config.renew_deadline {
            return;
        }
    }
}

/// Takes or renews the lease if that is allowed; whether we hold it now.
async fn attempt(
    api: &Api<Lease>,
    config: &LeaderConfig,
    observed: &mut Observed,
) -> Result<bool, kube::Error> {
    let Some(mut lease) = api.get_opt(&config.name).await? else {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(config.name.clone()),
                namespace: Some(config.namespace.clone()),
                ..Default::default()
            },
            spec: Some(claim(None, config)),
        };
        let lease = api.create(&PostParams::default(), &lease).await?;
        *observed = Observed { record: lease.spec, at: Instant::now() };
        return Ok(true);
    };
    if observed.record != lease.spec {
        *observed = Observed { record: lease.spec.clone(), at: Instant::now() };
    }
    if !may_take(lease.spec.as_ref(), config, observed.at.elapsed()) {
        return Ok(false);
    }
    lease.spec = Some(claim(lease.spec.as_ref(), config));
    // The resource version guards against another candidate that saw the same record.
    let lease = api.replace(&config.name, &PostParams::default(), &lease).await?;
    *observed = Observed { record: lease.spec, at: Instant::now() };
    Ok(true)
}

fn may_take(record: Option<&LeaseSpec>, config: &LeaderConfig, unchanged_for: Duration) -> bool {
    let Some(record) = record else { return true };
    let holder = record.holder_identity.as_deref().unwrap_or_default();
    let seconds = u64::try_from(record.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    holder.is_empty() || holder == config.identity || unchanged_for >= Duration::from_secs(seconds)
}

fn claim(present: Option<&LeaseSpec>, config: &LeaderConfig) -> LeaseSpec {
    let now = meta::micro_now();
    let ours = present.is_some_and(|p| p.holder_identity.as_deref() == Some(&config.identity));
    let transitions = present.and_then(|p| p.lease_transitions).unwrap_or(0);
    LeaseSpec {
        holder_identity: Some(config.identity.clone()),
        lease_duration_seconds: Some(i32::try_from(config.lease_duration.as_secs()).unwrap_or(i32::MAX)),
        acquire_time: match present {
            Some(present) if ours => present.acquire_time.clone(),
            _ => Some(now.clone()),
        },
        renew_time: Some(now),
        lease_transitions: Some(if ours || present.is_none() { transitions } else { transitions + 1 }),
        ..Default::default()
    }
}

/// Gives the lease back, so that the next leader need not wait. Best effort: it would expire anyway.
async fn release(api: &Api<Lease>, config: &LeaderConfig) {
    let give_back = async {
        let Some(mut lease) = api.get_opt(&config.name).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&config.identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(meta::micro_now());
        api.replace(&config.name, &PostParams::default(), &lease).await.map(|_| ())
    };
    let result: Result<Result<(), kube::Error>, _> = timeout(Duration::from_secs(2), give_back).await;
    if !matches!(result, Ok(Ok(()))) {
        tracing::debug!(lease = config.name, "could not release the lease");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(holder: &str, silent: u64, expected: bool) {
        let config = LeaderConfig::new("l", "me");
        let record = LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            ..Default::default()
        };
        assert_eq!(may_take(Some(&record), &config, Duration::from_secs(silent)), expected);
    }

    #[test]
    fn a_lease_is_taken_when_free_ours_or_expired() {
        check("", 0, true);
        check("me", 0, true);
        check("other", 14, false);
        check("other", 15, true);
        assert!(may_take(None, &LeaderConfig::new("l", "me"), Duration::ZERO));
    }

    #[test]
    fn only_a_new_holder_is_a_transition() {
        let config = LeaderConfig::new("l", "me");
        let first = claim(None, &config);
        assert_eq!(first.lease_transitions, Some(0));
        let again = claim(Some(&first), &config);
        assert_eq!(again.lease_transitions, Some(0));
        assert_eq!(again.acquire_time, first.acquire_time);
        let other = claim(Some(&again), &LeaderConfig::new("l", "other"));
        assert_eq!(other.lease_transitions, Some(1));
    }
}
