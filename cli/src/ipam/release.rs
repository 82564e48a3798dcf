use std::{collections::BTreeMap, fmt::Write};

use anyhow::{Context, bail};
use twill_rpc::{
    Client,
    message::{
        Allocation, Finding, FindingKind, IpamFind, IpamNodeReleased, IpamRelease, IpamReleaseNode,
        IpamReleased,
    },
};
use twill_types::Block;

use super::{To, args::Release, check::Report};
use crate::output::emit;

/// Asks who has what, and has this node's daemon give it back.
pub(super) fn run(to: &mut To<'_>, arguments: &Release) -> anyhow::Result<()> {
    if let Some(node) = &arguments.node {
        let released = match to.resources.release_node(node, arguments.force) {
            Some(released) => released?,
            None => {
                let request = IpamReleaseNode { node: node.clone(), force: arguments.force };
                (to.connect)()?.ipam_release_node(request)?
            }
        };
        emit(to.out, arguments.output, &released, |_| node_text(node, &released))?;
        match released.lent.len() {
            0 => return Ok(()),
            count => bail!("{count} blocks were left alone"),
        }
    }
    let mut client = (to.connect)()?;
    let wanted = match &arguments.from_report {
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            let report: Report = serde_json::from_str(&text)
                .with_context(|| format!("{} is no report of check", file.display()))?;
            let node = client.welcome()?.node.clone();
            let (mine, others) = leaks(report.findings, &node);
            for (other, count) in others {
                writeln!(
                    to.err,
                    "twillctl: {count} leaked addresses are node {other}'s: release them there"
                )?;
            }
            mine
        }
        None => look_up(&mut client, arguments)?,
    };
    if wanted.is_empty() {
        return Ok(writeln!(to.out, "Nothing to release.")?);
    }
    let released = client.ipam_release(IpamRelease { wanted, force: arguments.force })?;
    emit(to.out, arguments.output, &released, |_| text(&released))?;
    let refused = released.outcomes.iter().filter(|outcome| outcome.refused.is_some()).count();
    match refused {
        0 => Ok(()),
        1 => bail!("one attachment was left alone"),
        count => bail!("{count} attachments were left alone"),
    }
}

/// Who has these addresses now, each once.
fn look_up(client: &mut Client, arguments: &Release) -> anyhow::Result<Vec<Allocation>> {
    let addresses = arguments.ip.iter().map(|ip| (ip.to_string(), IpamFind::Address(*ip)));
    let handle = arguments.handle.iter().cloned();
    let handle = handle.map(|handle| (handle.to_string(), IpamFind::Attachment(handle)));
    let mut wanted: Vec<Allocation> = Vec::new();
    for (name, what) in addresses.chain(handle) {
        let Some(holder) = client.ipam_find(what)?.holder else {
            let node = &client.welcome()?.node;
            bail!(
                "nothing was released: {name} is not allocated on node {node} (see twillctl ipam \
                 show --ip)"
            );
        };
        let sequence = arguments.sequence.unwrap_or(holder.sequence);
        let held = Allocation { attachment: holder.attachment, sequence };
        if !wanted.contains(&held) {
            wanted.push(held);
        }
    }
    Ok(wanted)
}

/// The confirmed leaks of one node, and how many others have.
fn leaks(findings: Vec<Finding>, node: &str) -> (Vec<Allocation>, BTreeMap<String, usize>) {
    let (mut mine, mut others) = (Vec::new(), BTreeMap::new());
    let is_leak = |f: &Finding| f.kind == FindingKind::LeakedAddress && f.confirmed;
    for finding in findings.into_iter().filter(is_leak) {
        let owner = finding.node.unwrap_or_default();
        match (finding.attachment, finding.sequence) {
            (Some(attachment), Some(sequence)) if owner == node => {
                mine.push(Allocation { attachment, sequence });
            }
            _ => *others.entry(owner).or_default() += 1,
        }
    }
    (mine, others)
}

fn node_text(node: &str, released: &IpamNodeReleased) -> String {
    let list =
        |blocks: &[Block]| blocks.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let IpamNodeReleased { blocks, parts, lent, requests } = released;
    let mut text = String::new();
    if blocks.is_empty() && parts.is_empty() && lent.is_empty() && *requests == 0 {
        let _ = writeln!(text, "Node {node} has no block");
    }
    if !blocks.is_empty() {
        let _ = writeln!(text, "Released {} of node {node}", list(blocks));
    }
    if !parts.is_empty() {
        let _ = writeln!(text, "Returned {} that node {node} had borrowed", list(parts));
    }
    match requests {
        0 => {}
        1 => text.push_str("Settled 1 request for a part of a block\n"),
        many => drop(writeln!(text, "Settled {many} requests for parts of blocks")),
    }
    if !lent.is_empty() {
        let _ = writeln!(text, "Left alone: {}: other nodes have parts of it", list(lent));
    }
    text
}

fn text(released: &IpamReleased) -> String {
    let mut text = String::new();
    for outcome in &released.outcomes {
        let pod = outcome.pod.as_ref().map_or(String::new(), |pod| format!("{pod}, "));
        let owner = format!("{pod}{}", outcome.attachment);
        let addresses: Vec<_> = outcome.addresses.iter().map(ToString::to_string).collect();
        let _ = match &outcome.refused {
            Some(why) => writeln!(text, "Left alone: {owner}: {why}"),
            None if addresses.is_empty() => {
                writeln!(text, "Released nothing of {owner}: somebody else did meanwhile")
            }
            None => writeln!(text, "Released {} of {owner}", addresses.join(", ")),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use twill_rpc::message::ReleaseOutcome;
    use twill_types::AttachmentId;

    use super::*;

    fn id(n: u8) -> AttachmentId {
        AttachmentId { network: "n".into(), container_id: format!("c{n}"), ifname: "eth0".into() }
    }

    #[test]
    fn of_a_report_only_the_confirmed_leaks_of_this_node_are_released() {
        let leak = |n: u8, node: &str, confirmed| Finding {
            node: Some(node.into()),
            attachment: Some(id(n)),
            sequence: Some(n.into()),
            confirmed,
            ..Finding::new(FindingKind::LeakedAddress, "m", "r")
        };
        let route = Finding { kind: FindingKind::MissingRoute, ..leak(4, "node1", true) };
        let all =
            vec![leak(1, "node1", true), leak(2, "node1", false), leak(3, "node2", true), route];
        let (mine, others) = leaks(all, "node1");
        assert_eq!(mine, [Allocation { attachment: id(1), sequence: 1 }]);
        assert_eq!(others, BTreeMap::from([("node2".to_owned(), 1)]));
    }

    #[test]
    fn what_came_of_a_node_is_told() {
        let block = |text: &str| text.parse::<Block>().unwrap();
        let nothing = IpamNodeReleased::default();
        assert_eq!(node_text("n", &nothing), "Node n has no block\n");
        let one = IpamNodeReleased { requests: 1, ..nothing.clone() };
        assert_eq!(node_text("n", &one), "Settled 1 request for a part of a block\n");
        let all = IpamNodeReleased {
            blocks: vec![block("10.0.0.0/28")],
            parts: vec![block("10.0.0.16/29")],
            lent: vec![block("10.0.0.32/28")],
            requests: 2,
        };
        assert_eq!(
            node_text("n", &all),
            "Released 10.0.0.0/28 of node n\nReturned 10.0.0.16/29 that node n had borrowed\n\
             Settled 2 requests for parts of blocks\n\
             Left alone: 10.0.0.32/28: other nodes have parts of it\n"
        );
    }

    #[test]
    fn what_came_of_each_is_told() {
        let outcome = |n: u8, addresses: &[&str], refused: Option<&str>| ReleaseOutcome {
            attachment: id(n),
            pod: (n == 1).then(|| "prod/web".to_owned()),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            refused: refused.map(str::to_owned),
        };
        let outcomes = vec![
            outcome(1, &["10.0.0.1", "fd00::1"], None),
            outcome(2, &[], Some("its pod lives; delete that, or say --force")),
            outcome(3, &[], None),
        ];
        assert_eq!(
            text(&IpamReleased { outcomes }),
            "Released 10.0.0.1, fd00::1 of prod/web, n/c1/eth0\n\
             Left alone: n/c2/eth0: its pod lives; delete that, or say --force\n\
             Released nothing of n/c3/eth0: somebody else did meanwhile\n"
        );
    }
}
