//! What the API server has refused this daemon. Only people can do something about it: it is said as long as it
//! lasts, and not asked for again with every pod that wants it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tracing::warn;

use super::access::{Account, ApiError};

/// The pause where only people can help: a permission or a definition is missing.
pub(super) const REFUSED: Duration = Duration::from_secs(30);

/// A refusal not met again for this long is dropped from the status; the right may have been granted.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Verb and resource, a subresource with it.
type Kind = (&'static str, String);

#[derive(Debug)]
struct Refusal {
    /// When it was met last.
    when: Instant,
    message: String,
    /// What is said, as long as it lasts.
    text: String,
}

/// The refusals that stand.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    standing: Mutex<BTreeMap<Kind, Refusal>>,
    said: watch::Sender<Vec<String>>,
}

impl Refusals {
    /// What is refused, for people.
    pub(super) fn said(&self) -> watch::Receiver<Vec<String>> {
        self.said.subscribe()
    }

    /// The refusal that `what` (`resource/name/subresource`) would meet again, if one of its kind was met lately.
    pub(super) fn expect(
        &self,
        verb: &'static str,
        what: &str,
        now: Instant,
    ) -> Result<(), ApiError> {
        let standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let refusal = standing.get(&(verb, resource(what)));
        match refusal.filter(|refusal| now.duration_since(refusal.when) < REFUSED) {
            None => Ok(()),
            Some(Refusal { message, .. }) => {
                let (what, message) = (what.to_owned(), message.clone());
                Err(ApiError::Forbidden { account: Account::Node, verb, what, message })
            }
        }
    }

    /// Takes note of an answer.
    pub(super) fn note(
        &self,
        verb: &'static str,
        what: &str,
        outcome: Result<(), &ApiError>,
        now: Instant,
    ) {
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = (verb, resource(what));
        match outcome {
            Err(error @ ApiError::Forbidden { message, .. }) if is_of_kind(verb, message) => {
                let refusal = standing.entry(kind).or_insert_with(|| {
                    let text = error.to_string();
                    warn!("{text}");
                    Refusal { when: now, message: message.clone(), text }
                });
                refusal.when = now;
            }
            // Who may not ask does not hear that there is none.
            Err(error) if !error.is(404) && !error.is(409) => {}
            _ => drop(standing.remove(&kind)),
        }
        standing.retain(|_, refusal| now.duration_since(refusal.when) < FORGOTTEN);
        let texts: Vec<String> = standing.values().map(|refusal| refusal.text.clone()).collect();
        self.said.send_if_modified(|said| {
            let changed = *said != texts;
            *said = texts;
            changed
        });
    }
}

/// `caliconodestatuses/status` of `caliconodestatuses/node1/status`, as RBAC has it.
fn resource(what: &str) -> String {
    let mut parts = what.split('/');
    let resource = parts.next().unwrap_or_default();
    match parts.nth(1) {
        None => resource.to_owned(),
        Some(subresource) => format!("{resource}/{subresource}"),
    }
}

/// Whether whatever else is asked for by this verb of this resource is refused as well: where RBAC says so, and
/// where nothing can be made, as a daemon makes only what is its node's. A policy may refuse one change of an object
/// and let another one pass.
fn is_of_kind(verb: &str, message: &str) -> bool {
    verb == "create" || message.contains(&format!("cannot {verb} resource \""))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BY_RBAC: &str = "caliconodestatuses \"node1\" is forbidden: User \"me\" cannot patch resource \
                           \"caliconodestatuses/status\" in API group \"projectcalico.org\"";
    const BY_POLICY: &str = "caliconodestatuses \"node1\" is forbidden: ValidatingAdmissionPolicy 'twill-node' \
                             denied request";
    const OWN: &str = "caliconodestatuses/node1/status";

    fn refused(verb: &'static str, what: &str, message: &str) -> ApiError {
        let (what, message) = (what.to_owned(), message.to_owned());
        ApiError::Forbidden { account: Account::Node, verb, what, message }
    }

    fn answered(code: u16) -> ApiError {
        let (what, message) = (OWN.to_owned(), String::new());
        ApiError::Refused { verb: "patch", what, code, message, after: None }
    }

    #[test]
    fn what_is_refused_is_not_asked_for_and_said_until_it_is_granted() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let said = refusals.said();
        let error = refused("patch", OWN, BY_RBAC);
        refusals.note("patch", OWN, Err(&error), start);
        assert_eq!(*said.borrow(), [error.to_string()]);
        let other = "caliconodestatuses/node2/status";
        let expected = refusals.expect("patch", other, start).unwrap_err();
        assert_eq!(expected.to_string(), refused("patch", other, BY_RBAC).to_string());
        for (verb, what) in [
            ("create", OWN),
            ("patch", "caliconodestatuses/node1"),
            ("patch", "blockrequests/r/status"),
        ] {
            refusals.expect(verb, what, start).unwrap();
        }

        let later = start + REFUSED;
        refusals.expect("patch", OWN, later).unwrap();
        // No answer, and one of who has not come to the rights, say nothing about them.
        let late = ApiError::Late { verb: "patch", what: OWN.to_owned() };
        for outcome in [&late, &answered(500)] {
            refusals.note("patch", OWN, Err(outcome), later);
            assert_eq!(said.borrow().len(), 1, "{outcome}");
        }
        refusals.note("patch", OWN, Err(&error), later);
        refusals.expect("patch", OWN, later).unwrap_err();

        for granted in [Ok(()), Err(&answered(404)), Err(&answered(409))] {
            refusals.note("patch", OWN, Err(&error), later);
            refusals.note("patch", OWN, granted, later);
            refusals.expect("patch", OWN, later).unwrap();
            assert!(said.borrow().is_empty(), "{granted:?}");
        }
    }

    #[test]
    fn a_policy_that_refuses_one_change_says_nothing_of_another() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        refusals.note("patch", OWN, Err(&refused("patch", OWN, BY_POLICY)), now);
        refusals.expect("patch", OWN, now).unwrap();
        // A token that is bound to no node can make no claim at all.
        let claim = "blockaffinities/0a0a0000-26";
        refusals.note("create", claim, Err(&refused("create", claim, BY_POLICY)), now);
        refusals.expect("create", "blockaffinities/0a0a0040-26", now).unwrap_err();
    }

    #[test]
    fn what_nobody_meets_again_is_forgotten() {
        let (refusals, now) = (Refusals::default(), Instant::now());
        let claim = "blockaffinities/0a0a0000-26";
        refusals.note("create", claim, Err(&refused("create", claim, "no")), now);
        refusals.note("update", "leases/x", Ok(()), now + FORGOTTEN / 2);
        assert_eq!(refusals.said().borrow().len(), 1);
        refusals.note("update", "leases/x", Ok(()), now + FORGOTTEN);
        assert!(refusals.said().borrow().is_empty());
    }
}
