//! How full this node's blocks are, told to the cluster: the datastore has it, so that who wants to
//! see all nodes' addresses need not ask any of them.

use std::{
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::block_in_place};
use tracing::warn;
use twill_ipam::BlockSummary;
use twill_ipam_store::{Service, StoreError};
use twill_k8s_api::files::{BlockFill, NodeFill};
use twill_types::error_chain;

use crate::{
    datastore::{DatastoreError, Fills, Snapshot},
    ipam::View,
};

/// Interval at which fill numbers are compared with those written last. Both are in memory.
const LOOK: Duration = Duration::from_secs(1);

/// Interval at which the written numbers are read back, in case somebody changed or deleted them.
const REREAD: Duration = Duration::from_secs(60);

/// Why the numbers could not be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    #[error("the address store failed")]
    Store(#[from] StoreError),
    #[error("cannot write how full the blocks are")]
    Write(#[source] DatastoreError),
}

/// Who tells it.
pub(crate) struct Publisher {
    node: String,
    /// Where; `None` if nowhere.
    fills: Option<Arc<dyn Fills>>,
    service: Arc<Service>,
    resources: watch::Receiver<Arc<Snapshot>>,
    /// What was told last.
    told: Mutex<Option<NodeFill>>,
}

impl Publisher {
    pub(crate) fn new(
        node: String,
        fills: Option<Arc<dyn Fills>>,
        service: Arc<Service>,
        resources: watch::Receiver<Arc<Snapshot>>,
    ) -> Self {
        let told = fills.as_ref().and_then(|fills| fills.read(&node));
        let told = Mutex::new(told);
        Self { node, fills, service, resources, told }
    }

    /// Runs for ever, from when the node knows its blocks.
    pub(crate) async fn run(self: Arc<Self>, mut view: watch::Receiver<Arc<View>>) {
        if view.wait_for(|view| view.ready).await.is_err() {
            return;
        }
        let Some(period) = self.fills.as_ref().map(|fills| fills.period()) else {
            return pending().await;
        };
        let mut looks = tokio::time::interval(LOOK);
        let mut written: Option<Instant> = None;
        let mut fails = false;
        let mut read = Instant::now();
        loop {
            looks.tick().await;
            if written.is_some_and(|when| when.elapsed() < period) {
                continue;
            }
            let anyway = read.elapsed() >= REREAD && {
                read = Instant::now();
                !block_in_place(|| self.stands())
            };
            match block_in_place(|| self.publish(anyway)) {
                Ok(wrote) => {
                    written = wrote.then(Instant::now);
                    fails = false;
                }
                Err(error) => {
                    if !fails {
                        warn!(error = %error_chain(&error), "the cluster's view is out of date");
                    }
                    written = Some(Instant::now());
                    fails = true;
                }
            }
        }
    }

    /// Tells the numbers if they are others than were told last, or in any case if `anyway`; whether
    /// it wrote. A node that is none of the cluster's (any more) tells nothing.
    pub(crate) fn publish(&self, anyway: bool) -> Result<bool, PublishError> {
        let Some(fills) = &self.fills else { return Ok(false) };
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.resources.borrow().nodes.contains_key(&self.node) {
            if told.take().is_some() {
                return fills.remove(&self.node).map_err(PublishError::Write);
            }
            return Ok(false);
        }
        let blocks: Vec<BlockFill> = self.service.blocks()?.into_iter().map(fill).collect();
        if !anyway && told.as_ref().is_some_and(|told| told.blocks == blocks) {
            return Ok(false);
        }
        let since = jiff::Timestamp::now().to_string();
        let new = NodeFill { node: self.node.clone(), since, blocks };
        let wrote = fills.write(&new).map_err(PublishError::Write)?;
        if wrote {
            *told = Some(new);
        }
        Ok(wrote)
    }

    /// Whether the datastore says what was told last.
    pub(crate) fn stands(&self) -> bool {
        // The lock keeps the file from being written meanwhile.
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        self.fills.as_ref().is_none_or(|fills| fills.stands(told.as_ref(), &self.node))
    }
}

fn fill(summary: BlockSummary) -> BlockFill {
    let BlockSummary { block, pool, used, free, held, resting, reserved, delegated, .. } = summary;
    BlockFill {
        block,
        pool,
        size: block.size().into(),
        used: used.into(),
        free: free.into(),
        cooling: u32::from(held) + u32::from(resting),
        reserved: reserved.into(),
        lent: delegated.into(),
        dedication: summary.dedication,
    }
}

#[cfg(test)]
mod tests {
    use twill_ipam::OwnedBlock;
    use twill_ipam_store::Options;
    use twill_k8s_api::files::read_fill;

    use super::*;
    use crate::datastore::FileFills;

    const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n";

    #[test]
    fn numbers_are_written_when_they_change_and_go_with_the_node() {
        let (root, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(root.path().join("node1.yaml"), NODE).unwrap();
        let options = Options { boot_id: "b".into(), hold_freed: true };
        let service = Arc::new(Service::open(&store.path().join("store"), options).unwrap().0);
        let resources = crate::datastore::watch::watch(root.path(), true).unwrap();
        let publisher = || {
            let (service, resources) = (Arc::clone(&service), resources.clone());
            let fills: Arc<dyn Fills> = Arc::new(FileFills { directory: root.path().to_owned() });
            Publisher::new("node1".into(), Some(fills), service, resources)
        };
        let first = publisher();
        assert!(first.publish(false).unwrap(), "no blocks is something to say, too");
        assert!(!first.publish(false).unwrap());
        let block = "10.0.0.0/30".parse().unwrap();
        let owned = OwnedBlock { block, pool: "a".into(), dedication: None };
        service.set_block(owned, true).unwrap();
        assert!(first.publish(false).unwrap());
        let told = read_fill(root.path(), "node1").unwrap();
        assert_eq!((told.blocks[0].size, told.blocks[0].free), (4, 4));
        assert!(first.stands());
        // Another process goes on with what it finds.
        assert!(!publisher().publish(false).unwrap());
        std::fs::write(root.path().join("status/node1/ipam.json"), "{").unwrap();
        assert!(!first.stands());
        assert!(!first.publish(false).unwrap(), "it does not read what it writes");
        assert!(first.publish(true).unwrap() && first.stands());

        std::fs::remove_file(root.path().join("node1.yaml")).unwrap();
        let gone = Instant::now() + Duration::from_secs(20);
        while resources.borrow().nodes.contains_key("node1") && Instant::now() < gone {
            std::thread::yield_now();
        }
        assert!(first.publish(false).unwrap());
        assert_eq!(read_fill(root.path(), "node1"), None);
    }
}
