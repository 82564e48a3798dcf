//! What people ask about addresses, and ask to have mended: one address, a release by hand, a check of
//! everything. [`twill_ipam::check_node`] finds; here is the looking and the mending.
//!
//! Nothing here locks anything for longer than one request of a pod would: each repair is fenced by
//! the number of the assignment or the uid of the claim that it is about.

use std::time::Duration;

use anyhow::Context;
use tokio::{sync::oneshot, task::block_in_place};
use tracing::{info, warn};
use twill_dataplane::pod::{host_links, living_pods};
use twill_ipam::{ClaimFact, NodeFacts, Record, check_node, in_both};
use twill_ipam_store::now_ms;
use twill_k8s_api::files::Claim;
use twill_rpc::message::{
    AddressStatus, Allocation, ErrorKind, Finding, FindingKind, Holder, IpamChecked, IpamFind,
    IpamFound, IpamRelease, IpamReleased, Life, ReleaseOutcome, ReleaseRequest, RpcError,
};
use twill_types::{Block, LivingPod, error_chain};

use crate::{
    api::Api,
    claims,
    ipam::again,
    look::{Lives, Look},
};

/// Between the two looks: what is under way in one step of an ADD, a DEL or a claim is over then.
const SECOND_LOOK: Duration = Duration::from_millis(300);

/// Looks after a repair, while DELs and ADDs may be under way.
const LOOKS: usize = 3;

impl Api {
    /// What there is to say about an address or an attachment.
    pub(crate) fn find(&self, what: &IpamFind) -> Result<IpamFound, RpcError> {
        let service = &self.ipam.service;
        let (address, record) = match what {
            IpamFind::Address(address) => {
                let look = service.look(*address).map_err(|error| again(&error))?;
                let status = AddressStatus {
                    block: look.block.as_ref().map(|summary| summary.block),
                    dedication: look.block.and_then(|summary| summary.dedication),
                    held: look.held,
                    resting: look.resting,
                    reserved: look.reserved,
                    lent: look.lent,
                };
                (Some(status), look.record)
            }
            IpamFind::Attachment(attachment) => {
                (None, service.lookup(attachment).map_err(|error| again(&error))?)
            }
        };
        let holder = match record {
            Some(record) => {
                let look = block_in_place(|| self.looker.look(false)).map_err(|e| failed(&e))?;
                Some(holder(record, &look))
            }
            None => None,
        };
        Ok(IpamFound { address, holder })
    }

    /// Gives addresses back by hand.
    pub(crate) fn release_by_hand(&self, request: &IpamRelease) -> Result<IpamReleased, RpcError> {
        let look = block_in_place(|| self.looker.look(false)).map_err(|error| failed(&error))?;
        let mut released = IpamReleased::default();
        for held in &request.wanted {
            released.outcomes.push(self.release_one(held, request.force, &look)?);
        }
        self.parked.note_any();
        self.parked.reap();
        Ok(released)
    }

    fn release_one(
        &self,
        wanted: &Allocation,
        force: bool,
        look: &Look,
    ) -> Result<ReleaseOutcome, RpcError> {
        let Allocation { attachment, sequence } = wanted;
        let mut outcome = ReleaseOutcome {
            attachment: attachment.clone(),
            pod: None,
            addresses: Vec::new(),
            refused: None,
        };
        let records = look.facts.records.iter().map(|fact| &fact.record);
        let Some(record) = records.clone().find(|record| record.attachment == *attachment) else {
            outcome.refused = Some("it has no address".to_owned());
            return Ok(outcome);
        };
        outcome.pod.clone_from(&record.pod);
        outcome.refused = match look.lives(attachment) {
            _ if record.sequence != *sequence => Some(format!(
                "its addresses are those of ADD {} by now, not of {sequence}",
                record.sequence
            )),
            Lives::Yes if !force => Some("its pod lives; delete that, or say --force".to_owned()),
            Lives::Unclear if !force => Some(
                "whether its pod lives cannot be told from here, or not yet; if it is gone, say --force"
                    .to_owned(),
            ),
            Lives::Yes | Lives::Unclear | Lives::No => None,
        };
        if outcome.refused.is_none() {
            let request = ReleaseRequest {
                attachment: attachment.clone(),
                sequence: Some(*sequence),
                netns_cookie: None,
            };
            let done = self.ipam.unblocked(|service| service.release(request));
            let done = done.map_err(|error| again(&error))?;
            info!(%attachment, sequence, force, addresses = ?done.addresses, "released by hand");
            outcome.addresses = done.addresses;
        }
        Ok(outcome)
    }

    /// Compares everything, and mends what can be mended here.
    pub(crate) async fn check_addresses(&self, fix: bool) -> Result<IpamChecked, RpcError> {
        let mut checked = self.look_twice().await?;
        for _ in 0..LOOKS {
            if !fix || !checked.findings.iter().any(|finding| finding.confirmed) {
                break;
            }
            let done = self.mend(&checked.findings).await?;
            if done.is_empty() {
                break;
            }
            let fixed = [std::mem::take(&mut checked.fixed), done].concat();
            checked = IpamChecked { fixed, ..self.look_twice().await? };
        }
        Ok(checked)
    }

    /// Facts of several places are never of one moment: only what two looks find counts.
    async fn look_twice(&self) -> Result<IpamChecked, RpcError> {
        let (first, mut checked) = block_in_place(|| self.look_once())?;
        if !first.is_empty() {
            tokio::time::sleep(SECOND_LOOK).await;
            let (second, again) = block_in_place(|| self.look_once())?;
            checked = IpamChecked { findings: in_both(&first, second), ..again };
        }
        Ok(checked)
    }

    fn look_once(&self) -> Result<(Vec<Finding>, IpamChecked), RpcError> {
        // Before the store is looked at: a claim is made first.
        let held = self.ipam.service.blocks().map_err(|error| again(&error))?;
        let held: Vec<Block> = held.into_iter().map(|held| held.block).collect();
        let claims = self.claims.known(&held).map_err(|error| failed(&error.into()))?;
        let look = self.looker.look(true).map_err(|error| failed(&error))?;
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        let checked = IpamChecked {
            findings: Vec::new(),
            fixed: Vec::new(),
            records: count(look.facts.records.len()),
            links: count(look.facts.links.len()),
            blocks: count(look.blocks.len()),
        };
        let facts = NodeFacts {
            node: self.node.clone(),
            facts: look.facts,
            verdict: look.verdict,
            routes: look.routes,
            blocks: look.blocks,
            claims: claims.claims.into_values().map(claim_fact).collect(),
            told: self.publisher.stands(),
            now_ms: now_ms(),
            grace_ms: self.looker.grace_ms(),
        };
        Ok((check_node(&facts), checked))
    }

    /// Mends what it can of the confirmed findings; answers what it did.
    async fn mend(&self, findings: &[Finding]) -> Result<Vec<Finding>, RpcError> {
        let of =
            |kind| findings.iter().filter(move |finding| finding.confirmed && finding.kind == kind);
        let done =
            |finding: &Finding, what: &str| Finding { remedy: what.to_owned(), ..finding.clone() };
        let mut fixed = block_in_place(|| self.mend_addresses(findings))?;
        let lines = [FindingKind::BlockWithoutClaim, FindingKind::ClaimNotTaken];
        if lines.iter().any(|kind| of(*kind).next().is_some()) {
            self.bring_claims_in_line().await;
            let had: Vec<&Finding> = lines.iter().flat_map(|kind| of(*kind)).collect();
            let (now, _) = block_in_place(|| self.look_once())?;
            let stays = |finding: &Finding| {
                now.iter().any(|other| (other.kind, other.range) == (finding.kind, finding.range))
            };
            let mended = had.into_iter().filter(|finding| !stays(finding));
            fixed.extend(mended.map(|finding| done(finding, "claims and store agree again")));
        }
        for finding in of(FindingKind::PublishedDiffers) {
            block_in_place(|| self.publisher.publish(true)).map_err(|e| failed(&e.into()))?;
            fixed.push(done(finding, "written again"));
        }
        Ok(fixed)
    }

    async fn bring_claims_in_line(&self) {
        let (reply, answer) = oneshot::channel();
        if self.ipam.claims.send(claims::Command::BringInLine { reply }).await.is_ok() {
            let _ = answer.await;
        }
    }

    fn mend_addresses(&self, findings: &[Finding]) -> Result<Vec<Finding>, RpcError> {
        let mut fixed = Vec::new();
        let is = |kind| move |finding: &&Finding| finding.confirmed && finding.kind == kind;
        let with =
            |finding: &Finding, what: &str| Finding { remedy: what.to_owned(), ..finding.clone() };
        if findings.iter().any(|f| {
            f.confirmed && matches!(f.kind, FindingKind::LeakedAddress | FindingKind::LeftoverLink)
        }) {
            // A look of its own: only what is dead now goes.
            let look = self.looker.look(false).map_err(|error| failed(&error))?;
            let released = self.looker.release(&look.verdict.dead);
            for finding in findings.iter().filter(is(FindingKind::LeakedAddress)) {
                let is_it = |r: &&Record| {
                    finding.attachment.as_ref() == Some(&r.attachment)
                        && finding.sequence == Some(r.sequence)
                };
                fixed.extend(released.iter().find(is_it).map(|_| with(finding, "released")));
            }
            for (index, why) in &look.verdict.leftovers {
                let link = look.links.iter().find(|link| link.index == *index);
                if let Some(link) = link.filter(|link| self.looker.remove(link, *why)) {
                    let named = |f: &&Finding| f.link.as_ref() == Some(&link.name);
                    fixed.extend(
                        findings
                            .iter()
                            .filter(is(FindingKind::LeftoverLink))
                            .find(named)
                            .map(|finding| with(finding, "removed")),
                    );
                }
            }
            self.parked.note_any();
            self.parked.reap();
        }
        let lost: Vec<&Finding> = findings
            .iter()
            .filter(is(FindingKind::InUseNotAllocated))
            .filter(|finding| finding.attachment.is_some() && finding.sequence.is_some())
            .collect();
        if !lost.is_empty() {
            let adopted = self.adopt(&lost).map_err(|error| failed(&error))?;
            fixed.extend(adopted.into_iter().map(|finding| with(finding, "written down again")));
        }
        Ok(fixed)
    }

    /// Writes the records of pods that live and have none.
    fn adopt<'a>(&self, lost: &[&'a Finding]) -> anyhow::Result<Vec<&'a Finding>> {
        let service = &self.ipam.service;
        let is_lost = |pod: &LivingPod| {
            lost.iter().any(|finding| {
                finding.attachment.as_ref() == Some(&pod.attachment)
                    && finding.sequence == Some(pod.sequence)
            })
        };
        let pods = living_pods().context("cannot list the pods' links")?;
        let pods: Vec<LivingPod> = pods.into_iter().filter(is_lost).collect();
        let links = host_links().context("cannot list the pods' links")?;
        // Numbers of later ADDs go on after those of the links.
        service.misses(links.iter().filter_map(twill_dataplane::Link::twill_alias).collect())?;
        service.rebuild(pods.clone())?;
        // A DEL in between found nothing to release. Its link is gone now, and so goes the record.
        let living = living_pods().context("cannot list the pods' links")?;
        let mut adopted = Vec::new();
        for pod in pods {
            let LivingPod { attachment, sequence, .. } = &pod;
            let has_it = |held: &Record| held.sequence == *sequence;
            if !service.lookup(attachment)?.as_ref().is_some_and(has_it) {
                continue;
            }
            if living.iter().any(|l| (&l.attachment, l.sequence) == (attachment, *sequence)) {
                adopted.extend(lost.iter().filter(|f| f.attachment.as_ref() == Some(attachment)));
                continue;
            }
            let request = ReleaseRequest {
                attachment: attachment.clone(),
                sequence: Some(*sequence),
                netns_cookie: None,
            };
            if let Err(error) = service.release(request) {
                // The reconcile finds it.
                warn!(%attachment, error = %error_chain(&error), "cannot release again");
            }
        }
        Ok(adopted)
    }
}

fn holder(record: Record, look: &Look) -> Holder {
    let life = match look.lives(&record.attachment) {
        Lives::Yes => Life::Lives,
        Lives::No => Life::Gone,
        Lives::Unclear => Life::Unclear,
    };
    let Record { attachment, addresses, sequence, netns, pod, foreign, created_ms, .. } = record;
    Holder { attachment, addresses, sequence, pod, netns, foreign, created_ms, life }
}

fn claim_fact(claim: Claim) -> (Block, ClaimFact) {
    let parts = claim.delegations.into_iter().map(|part| (part.cidr, part.node)).collect();
    let Claim { block, node, pool, uid, .. } = claim;
    (block, ClaimFact { node, pool, uid, age: None, parts })
}

fn failed(error: &anyhow::Error) -> RpcError {
    RpcError { kind: ErrorKind::Internal, message: format!("{error:#}") }
}
