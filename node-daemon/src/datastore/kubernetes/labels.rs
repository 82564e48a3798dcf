//! The label that says how long the prefix of a claim's block is: nodes leave out by it what cannot be in the way
//! of their claims. Those that an older release made have none, and every node lists them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kube::{
    Api,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::sleep};
use tracing::{debug, info};
use twill_types::{Block, Family, error_chain};

use super::{
    access::Access,
    owned::{Held, OwnClaims},
    subject::BLOCK_AFFINITIES,
};
use crate::backoff::Backoff;

/// The first and the longest pause while the API server is silent or has too much to do, as at a start of all nodes.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// The label's name, by the family of the block.
pub(super) fn key(family: Family) -> &'static str {
    match family {
        Family::V4 => "twill.projectcalico.org/ipv4-block-size",
        Family::V6 => "twill.projectcalico.org/ipv6-block-size",
    }
}

/// The labels of the claim of a block.
pub(super) fn of(block: Block) -> BTreeMap<String, String> {
    let prefix = block.prefix();
    BTreeMap::from([(key(prefix.family()).to_owned(), prefix.length().to_string())])
}

/// What a merge makes right: a label of the other family goes.
fn correction(block: Block) -> Value {
    let other = match block.prefix().family() {
        Family::V4 => Family::V6,
        Family::V6 => Family::V4,
    };
    let mut labels = json!(of(block));
    labels[key(other)] = Value::Null;
    labels
}

/// Waits until the API server has told all of this node's claims, and labels those that lack it, each once, or
/// until there is an answer. What is refused is left for the next start: a claim without the label is listed, and harms
/// nobody.
pub(super) async fn add_missing(access: &Access, mut owned: watch::Receiver<Arc<OwnClaims>>) {
    let own = match owned.wait_for(|own| own.is_complete()).await {
        Ok(own) => Arc::clone(&own),
        Err(_) => return,
    };
    let api: Api<DynamicObject> = access.objects(&BLOCK_AFFINITIES.resource());
    let mut backoff = Backoff::new(PAUSES[0], PAUSES[1]);
    for (block, held) in own.blocks().iter().filter(|(block, held)| is_missing(**block, held)) {
        let name = block.claim_name();
        // Of this very claim, not of one that was made in its place.
        let uid = &held.manifest["metadata"]["uid"];
        let patch = json!({"metadata": {"uid": uid, "labels": correction(*block)}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(&patch));
        let what = format!("blockaffinities/{name}");
        loop {
            let request = api.patch(&name, &params, &patch);
            match access.answer_in_turn("patch", &what, request).await {
                Ok(_) => info!(claim = name, "a claim of an older release has its size's label"),
                Err(error) if error.is_passing() => {
                    sleep(backoff.failed()).await;
                    continue;
                }
                Err(error) => {
                    let error = error_chain(&error);
                    debug!(claim = name, error, "a claim of an older release stays without label");
                }
            }
            backoff.succeeded();
            break;
        }
    }
}

fn is_missing(block: Block, held: &Held) -> bool {
    let labels = &held.manifest["metadata"]["labels"];
    let is_wrong = |(key, size): (&String, &Value)| labels[key] != *size;
    let correction = correction(block);
    held.claim.is_ok() && correction.as_object().is_some_and(|all| all.iter().any(is_wrong))
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::{super::fake::Fake, *};

    fn claim(cidr: &str, labels: &Value) -> Value {
        json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
            "metadata": {"name": cidr.parse::<Block>().unwrap().claim_name(), "labels": labels},
            "spec": {"node": "node1", "cidr": cidr, "pool": "a"},
        })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn claims_of_an_older_release_get_their_label_once() {
        let fake = Fake::default();
        let v4 = key(Family::V4);
        let claims = [
            claim("10.0.0.0/26", &json!({"team": "red"})),
            claim("10.0.0.64/26", &json!({v4: "26"})),
            claim("10.0.0.128/26", &json!({v4: "28", key(Family::V6): "26"})),
            claim("fd00::/122", &Value::Null),
        ];
        let stored = claims.map(|claim| {
            let path = format!("blockaffinities/{}", claim["metadata"]["name"].as_str().unwrap());
            fake.with(|objects| objects.put(&path, claim))
        });
        let owned = watch::Sender::new(Arc::new(OwnClaims::default()));
        let (access, told) = (fake.access(), owned.subscribe());
        let adding = tokio::spawn(async move { add_missing(&access, told).await });
        // Claims out of the copy may be another's by now.
        let known = OwnClaims::from_manifests(&stored);
        owned.send_modify(|own| Arc::make_mut(own).set_known(known));
        let tell = |own: &mut OwnClaims| {
            own.begin_list();
            for object in fake.with(|objects| objects.stored.clone()).into_values() {
                own.listed(&serde_json::from_value(object).unwrap());
            }
            own.end_list();
        };
        owned.send_modify(|own| tell(Arc::make_mut(own)));
        adding.await.unwrap();
        let patched = || -> Vec<String> {
            let asked = fake.with(|objects| objects.asked.clone());
            assert!(asked.iter().all(|(method, _)| *method == Method::PATCH), "{asked:?}");
            asked.into_iter().map(|(_, path)| path.replace("blockaffinities/", "")).collect()
        };
        let v6 = "fd00::/122".parse::<Block>().unwrap().claim_name();
        assert_eq!(patched(), ["0a000000-26", "0a000080-26", v6.as_str()]);
        let labels = |name: &str| {
            fake.with(|o| {
                o.stored[&format!("blockaffinities/{name}")]["metadata"]["labels"].clone()
            })
        };
        assert_eq!(labels("0a000000-26"), json!({"team": "red", v4: "26"}));
        assert_eq!(labels("0a000080-26"), json!({v4: "26"}));
        assert_eq!(labels(&v6), json!({key(Family::V6): "122"}));

        // The next start finds them.
        owned.send_modify(|own| tell(Arc::make_mut(own)));
        add_missing(&fake.access(), owned.subscribe()).await;
        assert_eq!(patched().len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_claim_that_a_busy_server_has_no_time_for_is_labelled_later() {
        let fake = Fake::default();
        let name = "0a000000-26";
        let stored = fake.with(|objects| {
            objects.refusals = 3;
            objects.put(&format!("blockaffinities/{name}"), claim("10.0.0.0/26", &Value::Null))
        });
        let mut own = OwnClaims::default();
        own.begin_list();
        own.listed(&serde_json::from_value(stored).unwrap());
        own.end_list();
        let (_told, owned) = watch::channel(Arc::new(own));
        add_missing(&fake.access(), owned).await;
        let labels = fake
            .with(|o| o.stored[&format!("blockaffinities/{name}")]["metadata"]["labels"].clone());
        assert_eq!(labels, json!({key(Family::V4): "26"}));
    }
}
