use std::{collections::BTreeMap, fmt::Write};

use anyhow::{Context, bail};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use twill_ipam::{ClaimFact, ClusterFacts, NumbersFact, PoolFact, check_cluster};
use twill_k8s_api::files::Claim;
use twill_rpc::{
    ClientError,
    message::{Finding, FindingKind, IpamChecked},
};
use twill_types::Block;

use super::{To, args::Check, view::Datastore};
use crate::{output::emit, resources::Resources};

/// The version of a report. It changes when a field changes its meaning or goes.
const VERSION: u32 = 1;

/// What a check finds, as it is printed with `-o json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    pub(super) version: u32,
    /// When, RFC 3339.
    time: String,
    /// The node whose daemon was asked; none, if only the datastore was looked at.
    node: Option<String>,
    looked: Looked,
    /// How many findings of each kind are confirmed.
    counts: BTreeMap<String, usize>,
    pub(super) findings: Vec<Finding>,
    /// What --fix mended.
    fixed: Vec<Finding>,
}

/// At how much was looked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Looked {
    /// Claims of all nodes.
    claims: usize,
    nodes: usize,
    pools: usize,
    /// Of the node: allocations, links of pods, blocks.
    allocations: u32,
    links: u32,
    blocks: u32,
}

/// Looks, mends if told so, and reports.
pub(super) fn run(to: &mut To<'_>, arguments: &Check) -> anyhow::Result<()> {
    let mut own = None;
    if !arguments.datastore_only {
        match (to.connect)() {
            Ok(mut client) => {
                let node = client.welcome()?.node.clone();
                own = Some((node, client.ipam_check(arguments.fix)?));
            }
            // Who asks an API server may be on any machine.
            Err(ClientError::NotRunning { .. }) if to.resources.directory().is_none() => {
                let message =
                    "no twilld runs here: the records and links of nodes are not looked at";
                writeln!(to.err, "twillctl: {message}")?;
            }
            Err(error) => {
                return Err(error).context(
                    "the daemon was not asked, so nothing was checked; `--datastore-only` checks \
                     without it",
                );
            }
        }
    }
    // After the daemon has mended what it can.
    let mut cluster = look(to, true)?;
    let mut fixed = Vec::new();
    if arguments.fix {
        fixed = mend(to.resources, &cluster.1)?;
        if !fixed.is_empty() {
            cluster = look(to, false)?;
        }
    }
    let report = report(cluster, own, fixed);
    if let Some(file) = &arguments.report {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    emit(to.out, arguments.output, &report, |_| text(&report))?;
    match report.counts.values().sum::<usize>() {
        0 => Ok(()),
        1 => bail!("there is one finding"),
        count => bail!("there are {count} findings"),
    }
}

fn look(to: &mut To<'_>, tell: bool) -> anyhow::Result<(Looked, Vec<Finding>)> {
    let all = to.resources.ipam()?;
    for problem in all.manifest_problems.iter().filter(|_| tell) {
        writeln!(to.err, "twillctl: {problem}")?;
    }
    let looked = Looked {
        claims: all.claims.claims.len(),
        nodes: all.nodes.len(),
        pools: all.pools.len(),
        ..Looked::default()
    };
    let silent = all.silent.clone();
    let mut findings = check_cluster(&facts(all));
    // Daemons of an earlier release have no place to tell their numbers.
    let is_silent = |finding: &Finding| {
        finding.kind == FindingKind::MissingNumbers
            && finding.node.as_ref().is_some_and(|node| silent.contains(node))
    };
    findings.retain(|finding| !is_silent(finding));
    if to.resources.directory().is_none() {
        for finding in findings.iter_mut().filter(|f| f.kind == FindingKind::StaleNumbers) {
            if let (Some(node), None) = (&finding.node, finding.range) {
                finding.remedy =
                    format!("nobody reads them; --fix deletes the CalicoNodeStatus {node}");
            }
        }
    }
    Ok((looked, findings))
}

fn facts(all: Datastore) -> ClusterFacts {
    let pool = |pool: super::view::Pool| PoolFact { cidr: pool.cidr, block_size: pool.block_size };
    let numbers = |fill: twill_k8s_api::files::NodeFill| {
        let number = |told: twill_k8s_api::files::BlockFill| NumbersFact {
            block: told.block,
            sum: [told.used, told.free, told.cooling, told.reserved, told.lent].iter().sum(),
        };
        fill.blocks.into_iter().map(number).collect()
    };
    ClusterFacts {
        nodes: all.nodes,
        pools: all
            .pools
            .into_iter()
            .map(|(name, found)| (name, Some(pool(found))))
            .chain(all.broken_pools.into_iter().map(|name| (name, None)))
            .collect(),
        claims: all.claims.claims.into_values().map(claim_fact).collect(),
        damaged: all.claims.problems.iter().map(ToString::to_string).collect(),
        damaged_requests: all.damaged_requests,
        numbers: all.fills.into_iter().map(|(node, fill)| (node, numbers(fill))).collect(),
        settled: all.settled,
    }
}

fn claim_fact(claim: Claim) -> (Block, ClaimFact) {
    let created = claim.created.parse::<Timestamp>().ok();
    let age = created.map(|then| Timestamp::now().duration_since(then).as_secs());
    let parts = claim.delegations.into_iter().map(|part| (part.cidr, part.node)).collect();
    let Claim { block, node, pool, uid, .. } = claim;
    (block, ClaimFact { node, pool, uid, age: age.map(|age| age.max(0).unsigned_abs()), parts })
}

/// What needs no node: numbers that nobody tells any more.
fn mend(resources: &dyn Resources, findings: &[Finding]) -> anyhow::Result<Vec<Finding>> {
    let mut fixed = Vec::new();
    for finding in findings.iter().filter(|finding| finding.kind == FindingKind::StaleNumbers) {
        // Those of a node that exists are its own to mend.
        if let (Some(node), None) = (&finding.node, finding.range)
            && resources.forget_fill(node)?
        {
            fixed.push(Finding { remedy: "removed".to_owned(), ..finding.clone() });
        }
    }
    Ok(fixed)
}

fn report(
    (mut looked, mut findings): (Looked, Vec<Finding>),
    own: Option<(String, IpamChecked)>,
    mut fixed: Vec<Finding>,
) -> Report {
    let node = own.map(|(node, checked)| {
        let IpamChecked { findings: found, fixed: done, records, links, blocks } = checked;
        (looked.allocations, looked.links, looked.blocks) = (records, links, blocks);
        findings.extend(found);
        fixed.extend(done);
        node
    });
    findings.sort();
    findings.dedup();
    fixed.sort();
    let mut counts = BTreeMap::new();
    for finding in findings.iter().filter(|finding| finding.confirmed) {
        *counts.entry(finding.kind.as_str().to_owned()).or_default() += 1;
    }
    let time = Timestamp::now().to_string();
    Report { version: VERSION, time, node, looked, counts, findings, fixed }
}

fn text(report: &Report) -> String {
    let Looked { claims, nodes, pools, allocations, links, blocks } = report.looked;
    let mut text = format!("Looked at {claims} claims, {nodes} nodes and {pools} pools.\n");
    if let Some(node) = &report.node {
        let _ = writeln!(
            text,
            "On {node}: looked at {allocations} allocations, {links} links and {blocks} blocks."
        );
    }
    for finding in &report.fixed {
        let _ = writeln!(
            text,
            "Fixed {}: {}: {}",
            finding.kind.as_str(),
            finding.message,
            finding.remedy
        );
    }
    let (sure, unsure): (Vec<_>, Vec<_>) = report.findings.iter().partition(|f| f.confirmed);
    for finding in &sure {
        let (kind, message) = (finding.kind.as_str(), &finding.message);
        let node = finding.node.as_ref().map_or(String::new(), |node| format!(" on {node}"));
        let _ = writeln!(text, "{kind}{node}: {message}\n  -> {}", finding.remedy);
    }
    if !unsure.is_empty() {
        text.push_str("Perhaps, and not counted:\n");
    }
    for finding in unsure {
        let _ =
            writeln!(text, "  {}: {} ({})", finding.kind.as_str(), finding.message, finding.remedy);
    }
    if sure.is_empty() {
        text.push_str("Nothing is wrong.\n");
        return text;
    }
    text.push('\n');
    for (kind, count) in &report.counts {
        let _ = writeln!(text, "{count:>6} {kind}");
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn sample() -> Report {
        let leak = Finding {
            node: Some("node1".into()),
            range: Some("10.0.0.2/32".parse().unwrap()),
            addresses: vec!["10.0.0.2".parse().unwrap()],
            sequence: Some(7),
            ..Finding::new(
                FindingKind::LeakedAddress,
                "10.0.0.2 of prod/web, n/c2/eth0: the pod has no link any more",
                "--fix releases it",
            )
        };
        let young = Finding {
            confirmed: false,
            sequence: Some(8),
            message: "10.0.0.3 of n/c3/eth0: the pod has no link any more".into(),
            remedy: "look again in 20 s".into(),
            ..leak.clone()
        };
        let told = Finding::new(FindingKind::PublishedDiffers, "m", "written again");
        let looked = Looked { claims: 2, nodes: 2, pools: 1, ..Looked::default() };
        let checked = IpamChecked {
            findings: vec![leak, young],
            fixed: vec![told],
            records: 5,
            links: 4,
            blocks: 1,
        };
        let mut report = report((looked, Vec::new()), Some(("node1".into(), checked)), Vec::new());
        report.time = "2026-11-24T12:00:00Z".into();
        report
    }

    #[test]
    fn findings_for_people() {
        expect![[r#"
            Looked at 2 claims, 2 nodes and 1 pools.
            On node1: looked at 5 allocations, 4 links and 1 blocks.
            Fixed publishedDiffers: m: written again
            leakedAddress on node1: 10.0.0.2 of prod/web, n/c2/eth0: the pod has no link any more
              -> --fix releases it
            Perhaps, and not counted:
              leakedAddress: 10.0.0.3 of n/c3/eth0: the pod has no link any more (look again in 20 s)

                 1 leakedAddress
        "#]].assert_eq(&text(&sample()));
        expect![[r#"
            Looked at 0 claims, 0 nodes and 0 pools.
            Nothing is wrong.
        "#]]
        .assert_eq(&text(&Report::default()));
    }

    #[test]
    fn the_report_has_the_documented_shape() {
        let json = serde_json::to_string_pretty(&sample()).unwrap();
        expect![[r#"
            {
              "version": 1,
              "time": "2026-11-24T12:00:00Z",
              "node": "node1",
              "looked": {
                "claims": 2,
                "nodes": 2,
                "pools": 1,
                "allocations": 5,
                "links": 4,
                "blocks": 1
              },
              "counts": {
                "leakedAddress": 1
              },
              "findings": [
                {
                  "kind": "leakedAddress",
                  "node": "node1",
                  "range": "10.0.0.2/32",
                  "addresses": [
                    "10.0.0.2"
                  ],
                  "sequence": 7,
                  "confirmed": true,
                  "message": "10.0.0.2 of prod/web, n/c2/eth0: the pod has no link any more",
                  "remedy": "--fix releases it"
                },
                {
                  "kind": "leakedAddress",
                  "node": "node1",
                  "range": "10.0.0.2/32",
                  "addresses": [
                    "10.0.0.2"
                  ],
                  "sequence": 8,
                  "confirmed": false,
                  "message": "10.0.0.3 of n/c3/eth0: the pod has no link any more",
                  "remedy": "look again in 20 s"
                }
              ],
              "fixed": [
                {
                  "kind": "publishedDiffers",
                  "confirmed": true,
                  "message": "m",
                  "remedy": "written again"
                }
              ]
            }"#]]
        .assert_eq(&json);
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), sample());
        // One of a later release.
        let later = json
            .replace("publishedDiffers", "madeOfCheese")
            .replace("\"time\"", "\"x\": 1, \"time\"");
        let read: Report = serde_json::from_str(&later).unwrap();
        assert_eq!(read.fixed[0].kind, FindingKind::Other);
    }
}
