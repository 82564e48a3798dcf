//! The pods' way out: `natOutgoing` of the pools, made true in the packet filter.
//!
//! A pool counts whether it gives addresses or not (`disabled`, another node's, one that overlaps): its
//! pods may run. The table stays when the daemon ends, as the pods do.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, task::block_in_place, time::sleep};
use tracing::{debug, info};
use twill_dataplane::{
    Error,
    nat::{Masquerade, Nat, RulesEvent, RulesEvents},
};
use twill_types::error_chain;

use crate::{datastore::Snapshot, metrics::Metrics, problems::tell};

/// When is tried again what the kernel did not take: the daemon before this one may own the table for a
/// moment still.
const RETRY: Duration = Duration::from_secs(1);

/// The least time between two writes that others ask for: somebody who removes the table in a loop does
/// not keep this process busy.
const PAUSE: Duration = Duration::from_millis(100);

/// The task.
pub(crate) struct OutgoingNat {
    pub(crate) resources: watch::Receiver<Arc<Snapshot>>,
    pub(crate) problems: watch::Sender<Vec<String>>,
    pub(crate) metrics: Metrics,
    /// Set when others have changed the packet filter.
    pub(crate) rules_changed: Arc<AtomicBool>,
}

/// What the pools ask for.
fn masquerade(snapshot: &Snapshot) -> Masquerade {
    let pools = || snapshot.pools.values().map(|pool| &pool.spec);
    Masquerade {
        sources: pools()
            .filter(|spec| spec.nat_outgoing == Some(true) && spec.is_for_workloads())
            .map(|spec| spec.cidr)
            .collect(),
        pools: pools().map(|spec| spec.cidr).collect(),
    }
}

impl OutgoingNat {
    /// Runs for ever. Without a packet filter in the kernel a node still has pods and routes, so nothing
    /// here ends the process.
    pub(crate) async fn run(mut self) {
        loop {
            if let Err(error) = self.follow().await {
                self.failed(&error);
                sleep(RETRY).await;
            }
        }
    }

    /// Keeps the table, until the kernel fails us.
    async fn follow(&mut self) -> Result<(), Error> {
        let mut nat = Nat::open()?;
        let mut events = RulesEvents::open(nat.port()?)?;
        let mut written = None;
        loop {
            let wanted = masquerade(&self.resources.borrow_and_update());
            let mut failed = false;
            if written.as_ref() != Some(&wanted) {
                match block_in_place(|| nat.apply(&wanted)) {
                    Ok(()) => {
                        debug!(pools = ?wanted.sources, "pods leave these pools by the node's address");
                        tell(&self.problems, Vec::new());
                        written = Some(wanted);
                    }
                    Err(error) => {
                        failed = true;
                        self.failed(&error);
                    }
                }
            }
            tokio::select! {
                changed = self.resources.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
                event = events.next() => {
                    let RulesEvent { ours, others } = event?;
                    self.rules_changed.fetch_or(others, Ordering::Relaxed);
                    if ours && let Some(before) = written.take() {
                        if !before.sources.is_empty() {
                            info!("somebody else changed or removed the table inet twill: it is made again");
                            self.metrics.nat_repaired();
                        }
                        // Each further event of the same change is for nothing.
                        sleep(PAUSE).await;
                    }
                }
                () = sleep(RETRY), if failed => {}
            }
        }
    }

    fn failed(&self, error: &Error) {
        let wanted = masquerade(&self.resources.borrow());
        let mut problems = Vec::new();
        if !wanted.sources.is_empty() {
            let names: Vec<_> = wanted.sources.iter().map(ToString::to_string).collect();
            problems.push(format!(
                "pods of {} have no way out of the pools (natOutgoing): {}{}",
                names.join(", "),
                error_chain(error),
                remedy(error),
            ));
        }
        if problems.is_empty() {
            debug!(error = %error_chain(error), "the packet filter cannot be written or watched");
        }
        tell(&self.problems, problems);
    }
}

/// What to do about an error, where the error does not say so itself.
fn remedy(error: &Error) -> &'static str {
    use nix::errno::Errno::{ENOENT, EOPNOTSUPP, EPERM, EPROTONOSUPPORT};
    match error.errno() {
        Some(EPERM) => {
            "; another process owns the table (`nft list table inet twill` names it), or twilld \
             lacks CAP_NET_ADMIN"
        }
        Some(ENOENT | EOPNOTSUPP | EPROTONOSUPPORT) => {
            "; load the kernel modules nf_tables, nft_chain_nat and nft_masq"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use twill_k8s_api::{files::catalog, load_manifests};

    use super::*;

    fn wanted(pools: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
        let mut text = String::new();
        for (index, (cidr, more)) in pools.iter().enumerate() {
            text += &format!(
                "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: p{index}}}\n\
                 spec: {{cidr: \"{cidr}\"{more}}}\n---\n"
            );
        }
        let snapshot = Snapshot::new(catalog([&load_manifests(&text, "m.yaml")]));
        let Masquerade { sources, pools } = masquerade(&snapshot);
        let texts = |prefixes: std::collections::BTreeSet<twill_types::Prefix>| {
            prefixes.iter().map(ToString::to_string).collect()
        };
        (texts(sources), texts(pools))
    }

    #[test]
    fn every_pool_counts_and_those_with_nat_are_masqueraded() {
        let (sources, pools) = wanted(&[
            ("10.10.0.0/20", ", natOutgoing: true"),
            ("10.20.0.0/20", ", natOutgoing: true, disabled: true"),
            ("10.30.0.0/20", ""),
            ("fd00:10::/112", ", natOutgoing: true, nodeSelector: \"rack == 'other'\""),
        ]);
        assert_eq!(sources, ["10.10.0.0/20", "10.20.0.0/20", "fd00:10::/112"]);
        assert_eq!(pools, ["10.10.0.0/20", "10.20.0.0/20", "10.30.0.0/20", "fd00:10::/112"]);
        assert_eq!(wanted(&[("10.10.0.0/20", ", natOutgoing: false")]).0, [""; 0]);
    }
}
