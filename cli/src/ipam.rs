//! `twillctl ipam show`.

use std::{collections::BTreeMap, fmt::Write};

use twill_rpc::message::{BlockStatus, IpamStatus, PoolStatus};
use twill_types::Block;

use crate::table::framed;

/// A block that some node owns.
struct Claimed<'a> {
    node: &'a str,
    pool: &'a str,
    /// What this node knows about its own.
    own: Option<&'a BlockStatus>,
}

/// Draws the pools, and with `show_blocks` the blocks below them. How much of another node's block
/// is in use only that node knows, so those count as a whole.
pub(crate) fn table(status: &IpamStatus, node: &str, show_blocks: bool, wide: bool) -> String {
    let mut blocks: BTreeMap<Block, Claimed<'_>> = BTreeMap::new();
    for claim in &status.claims {
        blocks.insert(claim.block, Claimed { node: &claim.node, pool: &claim.pool, own: None });
    }
    for own in &status.blocks {
        blocks.insert(own.block, Claimed { node, pool: &own.pool, own: Some(own) });
    }
    let mut rows = Vec::new();
    for pool in &status.pools {
        let of_pool = blocks.iter().filter(|(_, claimed)| claimed.pool == pool.name);
        rows.push(pool_row(pool, of_pool.clone().map(|(block, claimed)| (*block, claimed))));
        if show_blocks {
            rows.extend(of_pool.map(|(block, claimed)| block_row(*block, claimed)));
        }
    }
    // A pool that was deleted while nodes still own blocks of it.
    let orphans = blocks.iter().filter(|(_, c)| status.pools.iter().all(|p| p.name != c.pool));
    if show_blocks {
        rows.extend(orphans.map(|(block, claimed)| block_row(*block, claimed)));
    }

    let mut header = vec![
        "GROUPING",
        "CIDR",
        "NODE",
        "POOL",
        "IPS TOTAL",
        "IPS IN USE",
        "OTHER NODES",
        "IPS FREE",
    ];
    for (name, shown) in [("POOL", wide), ("NODE", show_blocks)] {
        if let Some(column) = header.iter().position(|title| *title == name).filter(|_| !shown) {
            header.remove(column);
            rows.iter_mut().for_each(|row| _ = row.remove(column));
        }
    }
    let mut text = framed(&header, &["IPS TOTAL"], rows);
    for pool in &status.pools {
        if let Err(reason) = &pool.eligible {
            let _ = writeln!(text, "{} gives no addresses on {node}: {reason}", pool.name);
        }
    }
    for block in status.blocks.iter().filter(|block| !block.assignable) {
        let _ = writeln!(text, "{} of {node} gives no new addresses", block.block);
    }
    text
}

fn pool_row<'a>(
    pool: &PoolStatus,
    blocks: impl Iterator<Item = (Block, &'a Claimed<'a>)>,
) -> Vec<String> {
    let total = pool.cidr.size();
    let (mut used, mut other, mut unclaimed, mut free) = (0, 0, total, 0);
    for (block, claimed) in blocks {
        let size = u128::from(block.size());
        unclaimed = unclaimed.saturating_sub(size);
        match claimed.own {
            Some(own) => {
                used += u128::from(own.used);
                free += u128::from(own.free);
            }
            None => other += size,
        }
    }
    vec![
        "IP Pool".to_owned(),
        pool.cidr.to_string(),
        String::new(),
        pool.name.clone(),
        count(total),
        share(used, total),
        share(other, total),
        share(unclaimed + free, total),
    ]
}

fn block_row(block: Block, claimed: &Claimed<'_>) -> Vec<String> {
    let size = u128::from(block.size());
    let [used, other, free] = match claimed.own {
        Some(own) => [share(own.used.into(), size), share(0, size), share(own.free.into(), size)],
        None => ["-".to_owned(), share(size, size), "-".to_owned()],
    };
    vec![
        "Block".to_owned(),
        block.to_string(),
        claimed.node.to_owned(),
        claimed.pool.to_owned(),
        count(size),
        used,
        other,
        free,
    ]
}

/// A number; what is larger than all of IPv4 in five digits, as `calicoctl` has it (`1.2089e+24`).
#[expect(clippy::cast_precision_loss, reason = "five digits are shown")]
fn count(number: u128) -> String {
    if number <= 1 << 32 {
        return number.to_string();
    }
    let text = format!("{:.4e}", number as f64);
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e+{exponent:0>2}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// `5 (8%)`.
#[expect(clippy::cast_precision_loss, reason = "whole percents are shown")]
fn share(part: u128, of: u128) -> String {
    format!("{} ({:.0}%)", count(part), part as f64 * 100.0 / of.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use twill_rpc::message::ClaimStatus;

    use super::*;

    fn status() -> IpamStatus {
        let claim = |block: &str, node: &str, pool: &str| ClaimStatus {
            block: block.parse().unwrap(),
            node: node.into(),
            pool: pool.into(),
        };
        let pool = |name: &str, cidr: &str, eligible| PoolStatus {
            name: name.into(),
            cidr: cidr.parse().unwrap(),
            eligible,
        };
        IpamStatus {
            pools: vec![
                pool("app-pool", "10.10.0.0/20", Ok(())),
                pool("v6", "fd5f:abcd:64::/48", Err("it is disabled".into())),
            ],
            blocks: vec![BlockStatus {
                block: "10.10.0.64/26".parse().unwrap(),
                pool: "app-pool".into(),
                used: 3,
                free: 60,
                assignable: false,
                dedication: None,
            }],
            claims: vec![
                claim("10.10.0.64/26", "node1", "app-pool"),
                claim("10.10.3.0/26", "node2", "app-pool"),
                claim("10.99.0.0/26", "node2", "gone"),
            ],
        }
    }

    #[test]
    fn pools_alone() {
        expect![[r#"
            +----------+-------------------+------------+------------+-------------+-------------------+
            | GROUPING |        CIDR       |  IPS TOTAL | IPS IN USE | OTHER NODES |      IPS FREE     |
            +----------+-------------------+------------+------------+-------------+-------------------+
            | IP Pool  | 10.10.0.0/20      |       4096 | 3 (0%)     | 64 (2%)     | 4028 (98%)        |
            | IP Pool  | fd5f:abcd:64::/48 | 1.2089e+24 | 0 (0%)     | 0 (0%)      | 1.2089e+24 (100%) |
            +----------+-------------------+------------+------------+-------------+-------------------+
            v6 gives no addresses on node1: it is disabled
            10.10.0.64/26 of node1 gives no new addresses
        "#]].assert_eq(&table(&status(), "node1", false, false));
    }

    #[test]
    fn blocks_of_all_nodes() {
        expect![[r#"
            +----------+-------------------+-------+----------+------------+------------+-------------+-------------------+
            | GROUPING |        CIDR       |  NODE |   POOL   |  IPS TOTAL | IPS IN USE | OTHER NODES |      IPS FREE     |
            +----------+-------------------+-------+----------+------------+------------+-------------+-------------------+
            | IP Pool  | 10.10.0.0/20      |       | app-pool |       4096 | 3 (0%)     | 64 (2%)     | 4028 (98%)        |
            | Block    | 10.10.0.64/26     | node1 | app-pool |         64 | 3 (5%)     | 0 (0%)      | 60 (94%)          |
            | Block    | 10.10.3.0/26      | node2 | app-pool |         64 | -          | 64 (100%)   | -                 |
            | IP Pool  | fd5f:abcd:64::/48 |       | v6       | 1.2089e+24 | 0 (0%)     | 0 (0%)      | 1.2089e+24 (100%) |
            | Block    | 10.99.0.0/26      | node2 | gone     |         64 | -          | 64 (100%)   | -                 |
            +----------+-------------------+-------+----------+------------+------------+-------------+-------------------+
            v6 gives no addresses on node1: it is disabled
            10.10.0.64/26 of node1 gives no new addresses
        "#]].assert_eq(&table(&status(), "node1", true, true));
    }

    #[test]
    fn large_numbers_as_calicoctl_prints_them() {
        assert_eq!(count(65_536), "65536");
        assert_eq!(count(1 << 80), "1.2089e+24");
        assert_eq!(count(1_000_000_000_000), "1e+12");
    }
}
