//! `twilld --role controller`: the work for a whole cluster, with Kubernetes' API server as the datastore.
//! docs/adr/0023-controller.md says why it is as it is.
//!
//! ```text
//!  election ──(until when it may write)──────────────┐
//!                                                    v
//!  watches ──> world ──> rollup, sense, pools ──> leader ──> status, Events, finalizers
//!                  └───> departed (with gone) ──────────────> claims, requests, Leases of nodes that are gone
//! ```
//!
//! Promises:
//!
//! - Nodes do without it: it decides nothing about addresses, routes or sessions.
//! - It writes only while it leads.
//! - It does not begin where Calico's objects are (`foreign_definitions`).
//! - It frees what a node had only when the API server has just said that the Node is gone, and that
//!   its daemon's Lease was not renewed for the grace period.
//!
//! Judgement is in pure functions: `conditions`, `rollup`, `sense`, `passing`, `pools`,
//! [`crate::gone`].

mod backlog;
mod borrowing;
mod conditions;
mod departed;
mod election;
mod foreign_definitions;
mod kinds;
mod leader;
mod metrics;
mod of_nodes;
mod passing;
mod pools;
mod requests;
mod rollup;
#[cfg(test)]
mod samples;
mod sense;
mod serve;
mod watching;
mod world;

use std::{sync::Arc, time::Duration};

use anyhow::{Context, bail};
use tokio::{net::TcpListener, sync::watch};
use tracing::info;

use self::{
    election::{Election, LINE},
    leader::Leader,
    metrics::Metrics,
    requests::Requests,
    serve::Served,
};
use crate::{
    config::{Config, DatastoreKind},
    datastore::{kubernetes::Access, new_uid},
};

/// Runs until it is told to stop; an error if it does not lead any more: whoever starts it again gives
/// it a state without anything left of the last.
pub(crate) async fn run(config: &Config, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
    if config.datastore.kind != DatastoreKind::Kubernetes {
        bail!(
            "--role controller needs datastore.type kubernetes; with files, one of the node daemons \
             does this work"
        );
    }
    let access = Access::open(config.datastore.kubeconfig.as_deref(), LINE)
        .await
        .context("cannot use the datastore")?;
    let metrics = Metrics::default();
    let identity = format!("{}_{}", config.node_name()?, new_uid());
    let (until, may_write) = watch::channel(None);
    let requests = Requests::new(access.client(), access.namespace(), may_write, metrics.clone());
    let requests = Arc::new(requests);
    let (asked, problems) = (watch::Sender::new(None), watch::Sender::new(Vec::new()));
    if let Some(address) = config.controller.listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (controller.listen)"))?;
        let served = Served {
            identity: identity.clone(),
            metrics: metrics.clone(),
            until: until.subscribe(),
            asked: asked.subscribe(),
            problems: problems.subscribe(),
        };
        tokio::spawn(serve::serve(listener, served));
    }
    let election = Election { identity: identity.clone(), until, asked, metrics: metrics.clone() };
    let grace = Duration::from_secs(config.ipam.gone_node_grace_seconds);
    let leader = Leader::new(Arc::clone(&requests), metrics, &identity, grace, problems.clone());
    info!(identity, "ready");
    let lead = async {
        foreign_definitions::outlast(&access, &election.asked, &problems).await;
        election.win(&requests).await;
        tokio::select! {
            lost = election.keep(&requests) => {
                Err(anyhow::Error::from(lost).context("this controller leads no more"))
            }
            () = leader.run() => bail!("a task ended without being told to"),
        }
    };
    // What is being written when it ends is over with its future.
    let outcome = tokio::select! {
        outcome = lead => outcome,
        () = stop => Ok(()),
    };
    election.resign(&requests).await;
    info!("stopped");
    outcome
}
