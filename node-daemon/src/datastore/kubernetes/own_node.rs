//! What a daemon writes to its own Node: where it is, if nobody has said so, and in its conditions what its
//! network is like. docs/adr/0027-pods-and-nodes.md.

mod conditions;

use std::{collections::BTreeMap, future::Future, net::IpAddr, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{sync::watch, task::block_in_place};
use tracing::{info, warn};
use twill_dataplane::node::prefix_length;
use twill_k8s_api::Condition;
use twill_types::{Family, error_chain};

use self::conditions::PATIENCE;
use super::access::{Access, ApiError};
use crate::{
    backoff::Backoff,
    datastore::{DatastoreError, Snapshot},
    problems,
};

/// The pause after a request that failed, or that found nothing on a node which cannot do without.
const AGAIN: Duration = Duration::from_secs(30);

/// The pause where the Node was changed in between, and the first one where nobody answers.
const SOON: Duration = Duration::from_secs(1);

/// The Node of this daemon.
pub(crate) struct ApiNode {
    access: Arc<Access>,
    api: Api<Node>,
    name: String,
    /// Why it has no address; why its conditions cannot be written.
    problems: [watch::Sender<Vec<String>>; 2],
}

/// What was found out about an address that the Node's annotations lack.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    /// With the prefix length that it has on a link.
    Here(IpAddr, u8),
    /// The kubelet says that the node has none of this family.
    None,
    /// The kubelet has not said anything yet.
    Unsaid,
    /// No link has it.
    Elsewhere(IpAddr),
}

impl ApiNode {
    pub(super) fn new(access: &Arc<Access>, name: &str) -> Self {
        Self {
            access: Arc::clone(access),
            api: Api::all(access.client()),
            name: name.to_owned(),
            problems: Default::default(),
        }
    }

    /// What is wrong with it.
    pub(crate) fn problems(&self) -> [watch::Receiver<Vec<String>>; 2] {
        self.problems.each_ref().map(watch::Sender::subscribe)
    }

    /// Runs for ever. `host` is what was found on the machine, gathered; `ready` ends when the network works.
    pub(crate) async fn run(
        self: Arc<Self>,
        resources: watch::Receiver<Arc<Snapshot>>,
        host: watch::Receiver<Option<Condition>>,
        ready: impl Future<Output = ()>,
    ) {
        let say = self.say(resources.clone(), host, ready, PATIENCE);
        tokio::join!(self.keep_addresses(resources), say);
    }

    /// Writes the addresses that the Node lacks.
    async fn keep_addresses(&self, mut resources: watch::Receiver<Arc<Snapshot>>) {
        // Families that need no further look until the daemon starts again.
        let mut settled = Vec::new();
        let mut silence = silence();
        loop {
            let lacks = lacking(&self.name, &resources.borrow_and_update());
            let missing: Vec<Family> =
                lacks.iter().copied().filter(|family| !settled.contains(family)).collect();
            let mut pause = None;
            if !missing.is_empty() {
                // Without any address it cannot do anything; one of two families may be meant so.
                let is_needy = lacks.len() == 2;
                pause = match self.write_addresses(&missing).await {
                    Ok(found) => {
                        silence.succeeded();
                        let is_settled = |found: &Found| match found {
                            // The watch is to tell of it.
                            Found::Here(..) => false,
                            Found::None => true,
                            Found::Unsaid | Found::Elsewhere(_) => !is_needy,
                        };
                        let done = found.iter().filter(|(_, found)| is_settled(found));
                        settled.extend(done.map(|(family, _)| *family));
                        let said = is_needy.then(|| self.trouble(&found)).flatten();
                        problems::tell(&self.problems[0], said.into_iter().collect());
                        is_needy.then_some(AGAIN)
                    }
                    Err(error) => {
                        if !is_conflict(&error) {
                            problems::tell(&self.problems[0], vec![error_chain(&error)]);
                        }
                        Some(pause_after(&error, &mut silence))
                    }
                };
            }
            tokio::select! {
                changed = resources.changed() => if changed.is_err() { return },
                () = sleep(pause), if pause.is_some() => {}
            }
        }
    }

    /// Looks for the addresses of these families, and writes those that are found, unless the Node is
    /// another by then.
    async fn write_addresses(
        &self,
        families: &[Family],
    ) -> Result<BTreeMap<Family, Found>, DatastoreError> {
        let node = self.get().await?;
        let internal = internal_addresses(&node);
        let mut found = BTreeMap::new();
        for family in families {
            let length = |address| block_in_place(|| prefix_length(address));
            let state = find(*family, &internal, length).unwrap_or_else(|error| {
                warn!(error = %error_chain(&error), "cannot look for the node's address");
                Found::Unsaid
            });
            found.insert(*family, state);
        }
        let annotations: BTreeMap<&str, String> = found
            .iter()
            .filter_map(|(family, found)| match found {
                Found::Here(address, length) => {
                    Some((annotation(*family), format!("{address}/{length}")))
                }
                Found::None | Found::Unsaid | Found::Elsewhere(_) => None,
            })
            .filter(|(key, _)| {
                // The watch is behind.
                let known = node.metadata.annotations.as_ref();
                !known.is_some_and(|known| known.contains_key(*key))
            })
            .collect();
        if !annotations.is_empty() {
            // Somebody may be about to say it by hand.
            let version = node.metadata.resource_version;
            let patch =
                json!({"metadata": {"resourceVersion": version, "annotations": annotations}});
            let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
            let request = self.api.patch(&self.name, &params, &patch);
            self.access.answer_out_of_turn("patch", self.what(), request).await?;
            info!(?annotations, "wrote where this node is");
        }
        Ok(found)
    }

    /// For people, on a node that has no address at all.
    fn trouble(&self, found: &BTreeMap<Family, Found>) -> Option<String> {
        let is_here = |found: &Found| matches!(found, Found::Here(..));
        if found.values().any(is_here) {
            return None;
        }
        let elsewhere = found.values().find_map(|found| match found {
            Found::Elsewhere(address) => Some(*address),
            Found::Here(..) | Found::None | Found::Unsaid => None,
        });
        let why = match elsewhere {
            Some(address) => {
                format!("no link here has the address {address} that its status gives it")
            }
            None => "its status has no InternalIP yet".to_owned(),
        };
        Some(format!(
            "Node {} has no address to speak BGP with: {why}; annotate it with {}",
            self.name,
            annotation(Family::V4)
        ))
    }

    async fn get(&self) -> Result<Node, ApiError> {
        self.access.answer_out_of_turn("get", self.what(), self.api.get(&self.name)).await
    }

    fn what(&self) -> String {
        format!("nodes/{}", self.name)
    }
}

async fn sleep(pause: Option<Duration>) {
    tokio::time::sleep(pause.unwrap_or_default()).await;
}

/// The pauses while nobody answers.
fn silence() -> Backoff {
    Backoff::new(SOON, AGAIN)
}

/// How long to wait after a request that failed: not long for what may be over in a moment.
fn pause_after(error: &DatastoreError, silence: &mut Backoff) -> Duration {
    match error {
        DatastoreError::Api(error) if error.is_passing() => silence.failed(),
        error if is_conflict(error) => SOON,
        _ => AGAIN,
    }
}

fn is_conflict(error: &DatastoreError) -> bool {
    matches!(error, DatastoreError::Api(error) if error.is(409))
}

/// Whether RBAC or an admission policy is in the way.
fn is_forbidden(error: &DatastoreError) -> bool {
    matches!(error, DatastoreError::Api(ApiError::Forbidden { .. }))
}

/// Calico's annotation for the address of a family.
fn annotation(family: Family) -> &'static str {
    twill_k8s_api::Node::address_annotation(family)
}

/// The families without an annotation, right or wrong, if there is a Node.
fn lacking(name: &str, snapshot: &Snapshot) -> Vec<Family> {
    let Some(own) = snapshot.nodes.get(name) else { return Vec::new() };
    let has = |family: &Family| own.metadata.annotations.contains_key(annotation(*family));
    [Family::V4, Family::V6].into_iter().filter(|family| !has(family)).collect()
}

/// The addresses that other nodes reach this one by, as the kubelet says.
fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let internal = addresses.filter(|address| address.type_ == "InternalIP");
    internal.filter_map(|address| address.address.parse().ok()).collect()
}

fn find<E>(
    family: Family,
    internal: &[IpAddr],
    length: impl Fn(IpAddr) -> Result<Option<u8>, E>,
) -> Result<Found, E> {
    let Some(address) = internal.iter().find(|address| Family::of(**address) == family) else {
        return Ok(if internal.is_empty() { Found::Unsaid } else { Found::None });
    };
    Ok(match length(*address)? {
        Some(length) => Found::Here(*address, length),
        None => Found::Elsewhere(*address),
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use serde_json::Value;

    use super::*;

    fn node(status: &Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": status})).unwrap()
    }

    #[test]
    fn only_what_people_have_to_mend_waits_long() {
        let what = "nodes/n1/status";
        let refused = |code| {
            let (what, message) = (what.to_owned(), String::new());
            DatastoreError::Api(ApiError::Refused {
                verb: "patch",
                what,
                code,
                message,
                after: None,
            })
        };
        let late = DatastoreError::Api(ApiError::Late { verb: "patch", what: what.to_owned() });
        let mut silence = silence();
        assert_eq!(pause_after(&refused(409), &mut silence), SOON);
        assert_eq!(pause_after(&refused(422), &mut silence), AGAIN);
        assert!(pause_after(&late, &mut silence) <= SOON);
        let pauses: Vec<_> = (0..8).map(|_| pause_after(&late, &mut silence)).collect();
        assert!(pauses[0] <= 2 * SOON && pauses[7] >= AGAIN / 2, "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= AGAIN), "{pauses:?}");
        for busy in [429, 503, 504] {
            silence.succeeded();
            assert!(pause_after(&refused(busy), &mut silence) <= SOON, "{busy}");
        }
    }

    #[test]
    fn the_internal_address_that_a_link_has_is_the_nodes() {
        let on_links = |address: IpAddr| -> Result<Option<u8>, Infallible> {
            Ok((address.to_string() == "192.0.2.11").then_some(24))
        };
        let check = |family, addresses: Value, expected: Found| {
            let internal = internal_addresses(&node(&json!({"addresses": addresses})));
            assert_eq!(find(family, &internal, on_links).unwrap(), expected, "{addresses}");
        };
        let address = |kind: &str, address: &str| json!({"type": kind, "address": address});
        let own = address("InternalIP", "192.0.2.11");
        check(Family::V4, json!([]), Found::Unsaid);
        check(Family::V4, json!([address("Hostname", "n1")]), Found::Unsaid);
        check(
            Family::V4,
            json!([address("ExternalIP", "192.0.2.99"), own]),
            Found::Here("192.0.2.11".parse().unwrap(), 24),
        );
        check(Family::V6, json!([own]), Found::None);
        let other = "192.0.2.12".parse().unwrap();
        check(Family::V4, json!([address("InternalIP", "192.0.2.12")]), Found::Elsewhere(other));
    }
}
