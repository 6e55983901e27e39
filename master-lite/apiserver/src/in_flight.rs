//! How many requests are worked on at once, and how many wait for their turn.
//!
//! As upstream's API priority and fairness does, a request beyond the limit waits, first come first served, before it is
//! turned away with 429; and those of `system:masters` are exempt, so that a cluster that drowns in its own nodes can
//! still be operated. There is one level for reads and one for writes; watches and streams count towards neither.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::authz::MASTERS;
use crate::extension::UserInfo;
use crate::status::{Result, StatusError};

/// Upstream's `--max-requests-inflight`.
const MAX_READS: usize = 400;
/// Upstream's `--max-mutating-requests-inflight`.
const MAX_WRITES: usize = 200;
/// How many wait at most; of each kind. What waits has not been read yet, so it holds little memory.
const MAX_WAITING: usize = 5_000;
/// How long a request waits: upstream's quarter of the request timeout.
const MAX_WAIT: Duration = Duration::from_secs(15);

/// Both limits.
pub(crate) struct InFlight {
    reads: Limit,
    writes: Limit,
}

struct Limit {
    running: Semaphore,
    waiting: Semaphore,
}

/// Held while a request is worked on; of an exempt one there is no slot to hold.
pub(crate) struct Slot<'a>(
    #[expect(dead_code, reason = "given back when dropped")] Option<SemaphorePermit<'a>>,
);

impl InFlight {
    pub(crate) fn new() -> Self {
        let limit =
            |running| Limit { running: Semaphore::new(running), waiting: Semaphore::new(MAX_WAITING) };
        Self { reads: limit(MAX_READS), writes: limit(MAX_WRITES) }
    }

    /// Waits until a user's request may be worked on.
    ///
    /// # Errors
    /// 429 when too many wait already, or when it has waited too long.
    pub(crate) async fn enter(&self, method: &http::Method, user: &UserInfo) -> Result<Slot<'_>> {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Ok(Slot(None));
        }
        let limit = match *method {
            http::Method::GET | http::Method::HEAD => &self.reads,
            _ => &self.writes,
        };
        limit
            .enter()
            .await
            .map(|permit| Slot(Some(permit)))
            .ok_or_else(|| StatusError::too_many_requests("too many requests, please try again later", 1))
    }
}

impl Limit {
    async fn enter(&self) -> Option<SemaphorePermit<'_>> {
        // Nobody gets past those that wait: a slot that is given back goes to the first of them.
        if let Ok(permit) = self.running.try_acquire() {
            return Some(permit);
        }
        let _place = self.waiting.try_acquire().ok()?;
        tokio::time::timeout(MAX_WAIT, self.running.acquire()).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(running: usize, waiting: usize) -> Limit {
        Limit { running: Semaphore::new(running), waiting: Semaphore::new(waiting) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_waits_for_its_turn_and_not_for_ever() {
        let limit = limit(1, 1);
        let first = limit.enter().await.unwrap();
        let begun = tokio::time::Instant::now();
        let (second, third) = tokio::join!(limit.enter(), limit.enter());
        assert!(second.is_none() && third.is_none());
        // One waited as long as it may; for the other there was no place.
        assert_eq!(begun.elapsed(), MAX_WAIT);

        let (second, ()) = tokio::join!(limit.enter(), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(first);
        });
        assert!(second.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn masters_are_never_turned_away() {
        let nobody = InFlight { reads: limit(0, 0), writes: limit(0, 0) };
        let node = UserInfo::new("system:node:a", &["system:nodes"]);
        let admin = UserInfo::new("admin", &[MASTERS]);
        for method in [http::Method::GET, http::Method::POST] {
            let refused = nobody.enter(&method, &node).await.err().unwrap();
            assert_eq!(refused.code, 429);
            assert!(nobody.enter(&method, &admin).await.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn reads_and_writes_are_counted_apart() {
        let both = InFlight { reads: limit(1, 0), writes: limit(1, 0) };
        let user = UserInfo::new("a", &[]);
        let _read = both.enter(&http::Method::GET, &user).await.unwrap();
        let _write = both.enter(&http::Method::PATCH, &user).await.unwrap();
        assert!(both.enter(&http::Method::HEAD, &user).await.is_err());
        assert!(both.enter(&http::Method::DELETE, &user).await.is_err());
    }
}
