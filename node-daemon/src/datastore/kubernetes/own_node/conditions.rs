//! What a daemon says in the conditions of its own Node: that its network works, and whether anything on
//! the machine is in the way of pods' packets. Written when it changes.

use std::{future::Future, pin::pin, slice, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::{sync::watch, time::timeout};
use tracing::info;
use twill_k8s_api::{Condition, ConditionStatus};
use twill_types::error_chain;

use super::{ApiNode, is_conflict, is_forbidden, pause_after, silence};
use crate::{
    datastore::{DatastoreError, Snapshot},
    problems,
};

/// A Node's condition that keeps pods away while it is true.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
const IS_UP: &str = "TwillIsUp";

/// How long what was found on the machine waits for the network to work: some of it is put right at a start,
/// and what keeps the network from working is to be told all the same.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

impl ApiNode {
    /// Says it, and once more of a Node that is made again: that says of itself what its maker says, and may
    /// keep pods away. `ready` ends when the network works, and `host` is gathered already.
    pub(super) async fn say(
        &self,
        mut resources: watch::Receiver<Arc<Snapshot>>,
        mut host: watch::Receiver<Option<Condition>>,
        ready: impl Future<Output = ()>,
        patience: Duration,
    ) {
        let mut ready = pin!(ready);
        let mut is_up = timeout(patience, &mut ready).await.is_ok();
        // The uid of the Node, and what was said of it.
        let mut said: Option<(Option<String>, Vec<Condition>)> = None;
        let mut silence = silence();
        loop {
            let own = resources.borrow_and_update().nodes.get(&self.name).cloned();
            let wanted = wanted(is_up, host.borrow_and_update().as_ref());
            let is_said = said.as_ref().is_some_and(|(uid, conditions)| {
                let now = own.as_ref().and_then(|own| own.metadata.uid.as_ref());
                *conditions == wanted && (now.is_none() || now == uid.as_ref())
            });
            if !is_said && !wanted.is_empty() {
                match self.set_conditions(&wanted).await {
                    Ok(uid) => {
                        said = Some((uid, wanted));
                        silence.succeeded();
                        problems::tell(&self.problems[1], Vec::new());
                    }
                    Err(error) => {
                        let up = wanted.split_first().filter(|_| is_up);
                        if let Some((up, [_, ..])) = up
                            && is_forbidden(&error)
                        {
                            // A policy of before there was the other condition refuses both, and
                            // without this one a node of a cloud takes no pods.
                            drop(self.set_conditions(slice::from_ref(up)).await);
                        }
                        if !is_conflict(&error) {
                            problems::tell(&self.problems[1], vec![error_chain(&error)]);
                        }
                        // With what works by then there may be less to refuse.
                        tokio::select! {
                            () = tokio::time::sleep(pause_after(&error, &mut silence)) => {}
                            () = &mut ready, if !is_up => is_up = true,
                        }
                        continue;
                    }
                }
            }
            let changed = tokio::select! {
                changed = resources.changed() => changed,
                changed = host.changed() => changed,
                () = &mut ready, if !is_up => {
                    is_up = true;
                    Ok(())
                }
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// The uid of the Node of which it stands there now.
    async fn set_conditions(&self, wanted: &[Condition]) -> Result<Option<String>, DatastoreError> {
        let node = self.get().await?;
        let now = jiff::Timestamp::now().to_string();
        let Some(patch) = missing(&node, wanted, &now) else { return Ok(node.metadata.uid) };
        let (params, patch) = (PatchParams::default(), Patch::Strategic(&patch));
        let request = self.api.patch_status(&self.name, &params, &patch);
        let what = format!("{}/status", self.what());
        self.access.answer_out_of_turn("patch", what, request).await?;
        for Condition { kind, status, message, .. } in wanted {
            info!(kind, ?status, message, "said what this node's network is like");
        }
        Ok(node.metadata.uid)
    }
}

/// What is to stand there.
fn wanted(is_up: bool, host: Option<&Condition>) -> Vec<Condition> {
    let up = is_up
        .then(|| Condition::fails(NETWORK_UNAVAILABLE, IS_UP, "Twill is running on this node"));
    up.into_iter().chain(host.cloned()).collect()
}

/// What has to be written for that; `None` if it stands there. Others' conditions are not touched.
fn missing(node: &Node, wanted: &[Condition], now: &str) -> Option<Value> {
    let known = |kind: &str| -> Option<&NodeCondition> {
        node.status.as_ref()?.conditions.as_ref()?.iter().find(|known| known.type_ == kind)
    };
    let write = |wanted: &Condition| {
        let Condition { kind, reason, message, .. } = wanted;
        let status = match wanted.status {
            ConditionStatus::True => "True",
            ConditionStatus::False => "False",
            ConditionStatus::Unknown => "Unknown",
        };
        let before = known(kind);
        let is_text = |known: &Option<String>, text: &String| known.as_ref() == Some(text);
        let is_same = before.is_some_and(|known| {
            known.status == status
                && is_text(&known.reason, reason)
                && is_text(&known.message, message)
        });
        let since = before.filter(|known| known.status == status);
        let since = since.and_then(|known| known.last_transition_time.as_ref());
        let since = since.map_or_else(|| now.to_owned(), |time| time.0.to_string());
        (!is_same).then(|| {
            json!({
                "type": kind, "status": status, "reason": reason, "message": message,
                "lastTransitionTime": since, "lastHeartbeatTime": now,
            })
        })
    };
    let conditions: Vec<Value> = wanted.iter().filter_map(write).collect();
    (!conditions.is_empty()).then(|| json!({"status": {"conditions": conditions}}))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use axum::http::Method;

    use super::{super::super::fake::Fake, *};

    const SOON: Duration = Duration::ZERO;

    fn node(status: &Value) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "n1"}, "status": status})).unwrap()
    }

    fn snapshot(uid: &str) -> Arc<Snapshot> {
        let text = format!("apiVersion: v1\nkind: Node\nmetadata: {{name: n1, uid: {uid}}}\n");
        let loaded = twill_k8s_api::load_manifests(&text, "test");
        Arc::new(Snapshot::new(twill_k8s_api::files::catalog([&loaded])))
    }

    /// A Node as a cloud makes one.
    fn make(fake: &Fake, uid: &str) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": uid},
            "status": {"conditions": [{"type": NETWORK_UNAVAILABLE, "status": "True"}]},
        });
        fake.with(|objects| objects.put("nodes/n1", node));
    }

    /// The conditions as `type=status/reason`, once they are these. The fake merges as RFC 7386 says, so the
    /// whole list is what was written last.
    async fn said(fake: &Fake, expected: &[&str]) {
        let conditions = || {
            let object = fake.with(|objects| objects.stored["nodes/n1"].clone());
            let all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let text = |c: &Value| {
                format!("{}={}/{}", c["type"], c["status"], c["reason"]).replace('"', "")
            };
            all.iter().map(text).collect::<Vec<_>>()
        };
        // By the clock of the machine: that of tokio stands still in some tests.
        let begun = std::time::Instant::now();
        while conditions() != expected {
            assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", conditions());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_is_made_again_is_said_to_work() {
        let fake = Fake::default();
        make(&fake, "u1");
        let resources = watch::Sender::new(snapshot("u1"));
        let checked = Condition::holds("TwillDataplaneReady", "ChecksPass", "");
        let host = watch::Sender::new(Some(checked));
        let own_node = ApiNode::new(&fake.access(), "n1");
        let (of_node, of_host) = (resources.subscribe(), host.subscribe());
        let task =
            tokio::spawn(async move { own_node.say(of_node, of_host, ready(()), SOON).await });
        let both = ["NetworkUnavailable=False/TwillIsUp", "TwillDataplaneReady=True/ChecksPass"];
        said(&fake, &both).await;
        make(&fake, "u2");
        resources.send_replace(snapshot("u2"));
        said(&fake, &both).await;
        // What changes elsewhere is no reason to ask.
        let asked = fake.with(|objects| objects.asked.len());
        resources.send_replace(snapshot("u2"));
        drop(resources);
        task.await.unwrap();
        assert_eq!(fake.with(|objects| objects.asked.len()), asked);
        let writes = fake.with(|objects| {
            objects.asked.iter().filter(|(method, _)| *method == Method::PATCH).count()
        });
        assert_eq!(writes, 2, "one for each Node");
    }

    #[tokio::test]
    async fn what_is_in_the_way_is_said_also_where_the_network_never_works() {
        let fake = Fake::default();
        make(&fake, "u1");
        let resources = watch::Sender::new(snapshot("u1"));
        let condition = Condition::fails("TwillDataplaneReady", "ChecksFailed", "node-address");
        let host = watch::Sender::new(Some(condition.clone()));
        let own_node = ApiNode::new(&fake.access(), "n1");
        let (of_node, of_host) = (resources.subscribe(), host.subscribe());
        let task =
            tokio::spawn(async move { own_node.say(of_node, of_host, pending(), SOON).await });
        said(&fake, &["TwillDataplaneReady=False/ChecksFailed"]).await;
        let asked = || fake.with(|objects| objects.asked.len());
        let before = asked();
        host.send_replace(Some(Condition::holds("TwillDataplaneReady", "ChecksPass", "")));
        said(&fake, &["TwillDataplaneReady=True/ChecksPass"]).await;
        assert_eq!(asked(), before + 2, "it is read, and written once");
        drop(host);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn a_node_that_somebody_else_writes_to_meanwhile_is_said_to_work_soon() {
        let fake = Fake::default();
        make(&fake, "u1");
        fake.with(|objects| objects.conflicts = 1);
        let resources = watch::Sender::new(snapshot("u1"));
        let host = watch::Sender::new(None);
        let own_node = ApiNode::new(&fake.access(), "n1");
        let [_, problems] = own_node.problems();
        let (of_node, of_host) = (resources.subscribe(), host.subscribe());
        let task =
            tokio::spawn(async move { own_node.say(of_node, of_host, ready(()), SOON).await });
        said(&fake, &["NetworkUnavailable=False/TwillIsUp"]).await;
        assert!(problems.borrow().is_empty(), "nobody has anything to mend");
        task.abort();
    }

    /// A policy of an older release knows one of the conditions alone.
    #[tokio::test]
    async fn a_policy_that_refuses_what_was_found_does_not_keep_pods_away() {
        let fake = Fake::default();
        make(&fake, "u1");
        fake.with(|objects| {
            objects.forbids = Some(|_, body| body.to_string().contains("TwillDataplaneReady"));
        });
        let resources = watch::Sender::new(snapshot("u1"));
        let checked = Condition::holds("TwillDataplaneReady", "ChecksPass", "");
        let host = watch::Sender::new(Some(checked));
        let own_node = Arc::new(ApiNode::new(&fake.access(), "n1"));
        let [_, mut problems] = own_node.problems();
        let (of_node, of_host) = (resources.subscribe(), host.subscribe());
        let saying = Arc::clone(&own_node);
        let task = tokio::spawn(async move { saying.say(of_node, of_host, ready(()), SOON).await });
        said(&fake, &["NetworkUnavailable=False/TwillIsUp"]).await;
        // What is refused is told as long as it is.
        let told = problems.wait_for(|problems| !problems.is_empty());
        let told = timeout(Duration::from_secs(20), told).await.unwrap().unwrap().join(" ");
        assert!(told.contains("may not patch nodes/n1/status"), "{told}");
        task.abort();
    }

    #[tokio::test]
    async fn a_network_that_works_after_a_refusal_is_said_to() {
        let fake = Fake::default();
        make(&fake, "u1");
        fake.with(|objects| {
            objects.forbids = Some(|_, body| body.to_string().contains("TwillDataplaneReady"));
        });
        let resources = watch::Sender::new(snapshot("u1"));
        let checked = Condition::fails("TwillDataplaneReady", "ChecksFailed", "node-address");
        let host = watch::Sender::new(Some(checked));
        let own_node = Arc::new(ApiNode::new(&fake.access(), "n1"));
        let [_, mut problems] = own_node.problems();
        let (of_node, of_host) = (resources.subscribe(), host.subscribe());
        let (works, ready) = tokio::sync::oneshot::channel::<()>();
        let ready = async move { ready.await.unwrap() };
        let saying = Arc::clone(&own_node);
        let task = tokio::spawn(async move { saying.say(of_node, of_host, ready, SOON).await });
        let told = problems.wait_for(|problems| !problems.is_empty());
        timeout(Duration::from_secs(20), told).await.unwrap().unwrap();
        works.send(()).unwrap();
        said(&fake, &["NetworkUnavailable=False/TwillIsUp"]).await;
        task.abort();
    }

    #[test]
    fn only_what_differs_is_written_and_the_time_of_a_turn_stays() {
        let (first, later) = ("2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z");
        let bad = |message: &str| Condition::fails("TwillDataplaneReady", "ChecksFailed", message);
        let wanted = |message: &str| wanted(true, Some(&bad(message)));
        let written = missing(&node(&json!({})), &wanted("a"), first).unwrap();
        assert_eq!(written["status"]["conditions"].as_array().unwrap().len(), 2);
        let mut stands = written["status"].clone();
        let ready = json!({"type": "Ready", "status": "True", "reason": "KubeletReady"});
        stands["conditions"].as_array_mut().unwrap().push(ready);
        let stands = node(&stands);
        assert_eq!(missing(&stands, &wanted("a"), later), None);
        let only = |patch: Option<Value>| {
            let patch = patch.unwrap()["status"]["conditions"].clone();
            assert_eq!(patch.as_array().unwrap().len(), 1, "{patch}");
            patch[0].clone()
        };
        let told = only(missing(&stands, &wanted("b"), later));
        assert_eq!((&told["message"], &told["lastTransitionTime"]), (&json!("b"), &json!(first)));
        let good = Condition::holds("TwillDataplaneReady", "ChecksPass", "");
        let told = only(missing(&stands, &super::wanted(true, Some(&good)), later));
        assert_eq!((&told["status"], &told["lastTransitionTime"]), (&json!("True"), &json!(later)));
        assert_eq!(super::wanted(false, None), []);
        // Calico's says something else.
        let calicos = node(&json!({"conditions": [{
            "type": NETWORK_UNAVAILABLE, "status": "True", "reason": "CalicoIsDown",
        }]}));
        assert!(missing(&calicos, &super::wanted(true, None), later).is_some());
    }
}
