//! What is wrong with addresses and blocks: from facts to findings. What is done about them is the
//! daemon's to decide.
//!
//! Promise: what may be an ADD or a DEL that is under way is no confirmed finding of a leak. Of the
//! rest, who asks takes only what two looks found ([`in_both`]): facts of several places are never of
//! one moment.

mod cluster;
mod node;

use twill_types::{Finding, FindingKind, Prefix};

pub use cluster::{ClaimFact, ClusterFacts, NumbersFact, PoolFact, check_cluster};
pub use node::{NodeFacts, check_node};

/// What the second look found, if the first one found it too.
pub fn in_both(first: &[Finding], second: Vec<Finding>) -> Vec<Finding> {
    let key = |finding: &Finding| {
        let Finding { kind, node, range, attachment, sequence, link, uid, .. } = finding.clone();
        (kind, node, range, attachment, sequence, link, uid)
    };
    let found: std::collections::BTreeSet<_> = first.iter().map(key).collect();
    second.into_iter().filter(|finding| found.contains(&key(finding))).collect()
}

fn finding(
    kind: FindingKind,
    node: &str,
    range: Option<Prefix>,
    message: String,
    remedy: impl Into<String>,
) -> Finding {
    Finding { node: Some(node.to_owned()), range, ..Finding::new(kind, message, remedy) }
}

#[cfg(test)]
mod tests;
