//! Who leads: the holder of the Lease `twill-controller`, as long as it renews that.
//!
//! A holder writes until [`RENEW_WITHIN`] after the last renewal that was answered, counted from when that was
//! sent; then its process ends. Others take over when they have seen no renewal for [`DURATION`] by
//! their own clocks, which is more than that and a request's deadline together.

use std::time::{Duration, Instant};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};
use tokio::{sync::watch, time::sleep};
use tracing::{info, warn};
use twill_api_client::KeepAlive;
use twill_types::error_chain;

use super::{
    metrics::Metrics,
    requests::{DEADLINE, RequestError, Requests},
};
use crate::{backoff::jittered, datastore::kubernetes::Line};

/// The Lease's name.
const NAME: &str = "twill-controller";

/// How long a holder that says nothing keeps the Lease.
const DURATION: Duration = Duration::from_secs(15);

/// How long a holder goes on without an answer to a renewal.
const RENEW_WITHIN: Duration = Duration::from_secs(10);

const _: () = assert!(RENEW_WITHIN.as_secs() + DEADLINE.as_secs() < DURATION.as_secs());

/// How soon it is noticed that the connection is dead, so that there is time for another one and a renewal
/// by it.
const KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(2), timeout: Duration::from_secs(2) };

/// The controller's connection.
pub(super) const LINE: Line = Line { connect: Duration::from_secs(2), keep_alive: KEEP_ALIVE };

const _: () = assert!(
    KEEP_ALIVE.interval.as_secs() + KEEP_ALIVE.timeout.as_secs() + DEADLINE.as_secs()
        < RENEW_WITHIN.as_secs()
);

/// The longest time between two renewals, or two looks of those who wait: about 3 s, as pauses are uneven.
const PERIOD: Duration = Duration::from_secs(4);

/// The pause after a renewal that failed.
const RETRY: Duration = Duration::from_secs(1);

/// What to do about the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is none.
    Create,
    /// It is this process's.
    Renew,
    /// It is nobody's any more.
    Take,
    /// It is another's.
    Wait,
}

/// What is seen of the Lease.
#[derive(Debug, Default)]
struct Observed {
    /// Holder, time of the renewal and version, and since when that is so by the own clock.
    seen: Option<(String, Option<MicroTime>, Option<String>, Instant)>,
    /// As this process wrote it last: without it, each renewal would read first.
    written: Option<Lease>,
}

impl Observed {
    fn step(&mut self, now: Instant, identity: &str, lease: Option<&Lease>) -> Step {
        let Some(lease) = lease else { return Step::Create };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder == identity {
            return Step::Renew;
        }
        if holder.is_empty() {
            return Step::Take;
        }
        let version = lease.metadata.resource_version.clone();
        let seen = (holder, spec.renew_time, version);
        let since = match self.seen.take() {
            Some((holder, renewed, version, since))
                if (&holder, &renewed, &version) == (&seen.0, &seen.1, &seen.2) =>
            {
                since
            }
            _ => now,
        };
        self.seen = Some((seen.0, seen.1, seen.2, since));
        // Its own word for how long it lasts counts, within reason: by how long ours lasts at the least.
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = DURATION.max(Duration::from_secs(seconds.unwrap_or_default().min(60)));
        if now.saturating_duration_since(since) >= lasts { Step::Take } else { Step::Wait }
    }
}

/// One candidate.
pub(super) struct Election {
    pub(super) identity: String,
    /// Until when this process may write.
    pub(super) until: watch::Sender<Option<Instant>>,
    /// When the API server answered last: about the Lease, once there is nothing else to wait for.
    pub(super) asked: watch::Sender<Option<Instant>>,
    pub(super) metrics: Metrics,
}

/// Leading came to an end.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("another controller leads now")]
    Anothers,
    #[error("the Lease {NAME} could not be renewed for {} s", RENEW_WITHIN.as_secs())]
    NotRenewed,
}

impl Election {
    /// Waits until this process leads.
    pub(super) async fn win(&self, requests: &Requests) {
        let mut observed = Observed::default();
        let (mut fails, mut told) = (false, String::new());
        loop {
            let sent = Instant::now();
            match self.attempt(requests, &mut observed).await {
                Ok(outcome) => {
                    fails = false;
                    self.asked.send_replace(Some(sent));
                    match outcome {
                        Ok(()) => {
                            self.until.send_replace(Some(sent + RENEW_WITHIN));
                            self.metrics.leads(true);
                            info!(identity = self.identity, "this controller leads");
                            return;
                        }
                        Err(holder) if holder != told => {
                            info!(holder, "another controller leads");
                            told = holder;
                        }
                        Err(_) => {}
                    }
                }
                Err(error) => {
                    if !fails {
                        warn!(error = %error_chain(&error), "cannot stand for leader");
                    }
                    fails = true;
                }
            }
            sleep(jittered(PERIOD)).await;
        }
    }

    /// Renews until that fails for too long, or another has the Lease.
    pub(super) async fn keep(&self, requests: &Requests) -> Lost {
        let mut observed = Observed::default();
        loop {
            let until = (*self.until.borrow()).unwrap_or_else(Instant::now);
            let left = until.saturating_duration_since(Instant::now());
            let sent = Instant::now();
            let attempt = tokio::time::timeout(left, self.attempt(requests, &mut observed));
            let pause = match attempt.await {
                Err(_) => return Lost::NotRenewed,
                Ok(Ok(Ok(()))) => {
                    self.until.send_replace(Some(sent + RENEW_WITHIN));
                    self.asked.send_replace(Some(sent));
                    PERIOD
                }
                Ok(Ok(Err(_))) => {
                    self.until.send_replace(None);
                    return Lost::Anothers;
                }
                Ok(Err(error)) => {
                    warn!(error = %error_chain(&error), "the Lease is not renewed yet");
                    RETRY
                }
            };
            sleep(jittered(pause)).await;
        }
    }

    /// Lets another take over at once. Nothing is written after this.
    pub(super) async fn resign(&self, requests: &Requests) {
        if self.until.send_replace(None).is_none() {
            return;
        }
        let api = self.api(requests);
        let released = async {
            let found = requests.read("get", "leases", NAME, api.get_opt(NAME)).await?;
            let Some(mut lease) = found.filter(|lease| holder(lease) == self.identity) else {
                return Ok::<_, RequestError>(());
            };
            lease.spec.get_or_insert_default().holder_identity = Some(String::new());
            let params = PostParams::default();
            let replaced = api.replace(NAME, &params, &lease);
            requests.read("update", "leases", NAME, replaced).await.map(drop)
        };
        if let Err(error) = released.await {
            warn!(error = %error_chain(&error), "others have to wait until the Lease has run out");
        }
    }

    fn api(&self, requests: &Requests) -> Api<Lease> {
        Api::namespaced(requests.client(), requests.namespace())
    }

    /// Makes the Lease this process's, or renews it; else who has it.
    async fn attempt(
        &self,
        requests: &Requests,
        observed: &mut Observed,
    ) -> Result<Result<(), String>, RequestError> {
        let api = self.api(requests);
        let (found, step) = match observed.written.take() {
            Some(lease) => (Some(lease), Step::Renew),
            None => {
                let found = requests.read("get", "leases", NAME, api.get_opt(NAME)).await?;
                let step = observed.step(Instant::now(), &self.identity, found.as_ref());
                (found, step)
            }
        };
        let wanted = next(&self.identity, found.as_ref(), jiff_now());
        let params = PostParams::default();
        let written = match step {
            Step::Wait => return Ok(Err(found.as_ref().map(holder).unwrap_or_default())),
            Step::Create => {
                requests.read("create", "leases", NAME, api.create(&params, &wanted)).await
            }
            Step::Renew | Step::Take => {
                requests.read("update", "leases", NAME, api.replace(NAME, &params, &wanted)).await
            }
        };
        match written {
            Ok(lease) => {
                observed.written = Some(lease);
                Ok(Ok(()))
            }
            // Another was quicker; who, is read the next time.
            Err(error) if error.is(409) && step != Step::Renew => Ok(Err(String::new())),
            Err(error) => Err(error),
        }
    }
}

fn holder(lease: &Lease) -> String {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.holder_identity.clone()).unwrap_or_default()
}

fn jiff_now() -> MicroTime {
    MicroTime(k8s_openapi::jiff::Timestamp::now())
}

/// The Lease as it is to be, over what it was before.
fn next(identity: &str, before: Option<&Lease>, now: MicroTime) -> Lease {
    let mut lease = before.cloned().unwrap_or_else(|| Lease {
        metadata: ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() },
        spec: None,
    });
    let had = lease.spec.take().unwrap_or_default();
    let is_other = had.holder_identity.as_deref() != Some(identity);
    let transitions = had.lease_transitions.unwrap_or_default();
    let acquired = had.acquire_time.filter(|_| !is_other);
    lease.spec = Some(LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
        renew_time: Some(now),
        lease_transitions: Some(transitions + i32::from(is_other && before.is_some())),
        ..LeaseSpec::default()
    });
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, second: i64) -> Lease {
        let now = MicroTime(k8s_openapi::jiff::Timestamp::from_second(second).unwrap());
        next(holder, None, now)
    }

    #[test]
    fn a_lease_is_taken_when_its_holder_is_silent_by_the_own_clock() {
        let start = Instant::now();
        let mut observed = Observed::default();
        let mut step = |second: u64, lease: Option<&Lease>| {
            observed.step(start + Duration::from_secs(second), "me", lease)
        };
        assert_eq!(step(0, None), Step::Create);
        assert_eq!(step(0, Some(&lease("me", 0))), Step::Renew);
        // Whatever the other's clock says.
        assert_eq!(step(0, Some(&lease("other", 0))), Step::Wait);
        assert_eq!(step(14, Some(&lease("other", 0))), Step::Wait);
        assert_eq!(step(15, Some(&lease("other", 14))), Step::Wait, "it was renewed meanwhile");
        assert_eq!(step(29, Some(&lease("other", 14))), Step::Wait);
        assert_eq!(step(30, Some(&lease("other", 14))), Step::Take);
        assert_eq!(step(30, Some(&lease("", 14))), Step::Take, "it resigned");
        let mut patient = lease("other", 14);
        patient.spec.as_mut().unwrap().lease_duration_seconds = Some(40);
        assert_eq!(step(54, Some(&patient)), Step::Wait, "it asks for more time");
        assert_eq!(step(55, Some(&patient)), Step::Take);
    }

    #[test]
    fn transitions_are_counted_and_the_time_of_taking_over_stays() {
        let at = |second| MicroTime(k8s_openapi::jiff::Timestamp::from_second(second).unwrap());
        let facts = |lease: &Lease| {
            let spec = lease.spec.clone().unwrap();
            (spec.lease_transitions, spec.acquire_time, spec.renew_time)
        };
        let first = next("a", None, at(1));
        assert_eq!(facts(&first), (Some(0), Some(at(1)), Some(at(1))));
        let renewed = next("a", Some(&first), at(2));
        assert_eq!(facts(&renewed), (Some(0), Some(at(1)), Some(at(2))));
        let taken = next("b", Some(&renewed), at(30));
        assert_eq!(facts(&taken), (Some(1), Some(at(30)), Some(at(30))));
    }
}
