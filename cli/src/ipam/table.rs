use std::fmt::Write;

use jiff::Timestamp;

use super::view::{BlockView, PoolView, View};
use crate::table::{age, framed};

/// Draws the pools, and with `show_blocks` the blocks below them.
pub(super) fn table(view: &View, now: Timestamp, show_blocks: bool, wide: bool) -> String {
    let mut rows = Vec::new();
    for pool in &view.pools {
        rows.push(pool_row(pool));
        if show_blocks {
            let of_pool = view.blocks.iter().filter(|block| block.pool == pool.name);
            rows.extend(of_pool.map(|block| block_row(block, now)));
        }
    }
    // Of pools that were deleted while nodes still own blocks of them.
    let is_orphan = |b: &&BlockView| view.pools.iter().all(|pool| pool.name != b.pool);
    if show_blocks {
        rows.extend(view.blocks.iter().filter(is_orphan).map(|block| block_row(block, now)));
    }
    let mut header = vec![
        "GROUPING",
        "CIDR",
        "NODE",
        "POOL",
        "IPS TOTAL",
        "IPS IN USE",
        "COOLING",
        "RESERVED",
        "LENT",
        "IPS FREE",
        "SINCE",
    ];
    let columns = [
        ("NODE", show_blocks),
        ("POOL", wide),
        ("COOLING", wide),
        ("RESERVED", wide),
        ("LENT", wide),
        ("SINCE", wide && show_blocks),
    ];
    for (name, shown) in columns {
        if let Some(column) = header.iter().position(|title| *title == name).filter(|_| !shown) {
            header.remove(column);
            rows.iter_mut().for_each(|row| _ = row.remove(column));
        }
    }
    let mut text = framed(&header, &["IPS TOTAL", "COOLING", "RESERVED", "LENT"], rows);
    text.push_str(&notes(view));
    text
}

/// What the numbers leave out.
fn notes(view: &View) -> String {
    let mut text = String::new();
    let own = view.node.as_deref().unwrap_or("this node");
    for pool in &view.pools {
        if let Some(Err(reason)) = &pool.eligible {
            let _ = writeln!(text, "{} gives no addresses on {own}: {reason}", pool.name);
        }
    }
    for block in &view.blocks {
        let BlockView { block: range, node, .. } = block;
        if block.assignable == Some(false) {
            let _ = writeln!(text, "{range} of {node} gives no new addresses");
        }
        if !block.node_exists {
            let _ = writeln!(text, "{range} is claimed by {node}, which does not exist");
        } else if block.numbers.is_none() {
            let _ = writeln!(text, "{node} does not say how full {range} is; it counts as in use");
        }
    }
    for problem in &view.problems {
        let _ = writeln!(text, "{problem}");
    }
    text
}

fn pool_row(pool: &PoolView) -> Vec<String> {
    let PoolView { total, used, free, cooling, reserved, .. } = *pool;
    vec![
        "IP Pool".to_owned(),
        pool.cidr.to_string(),
        String::new(),
        pool.name.clone(),
        count(total),
        share(used, total),
        count(cooling),
        count(reserved),
        String::new(),
        share(free, total),
        String::new(),
    ]
}

fn block_row(block: &BlockView, now: Timestamp) -> Vec<String> {
    let size = u128::from(block.block.size());
    let number = |value: Option<u32>| value.map_or("-".to_owned(), |value| value.to_string());
    let of = |value: Option<u32>| value.map_or("-".to_owned(), |value| share(value.into(), size));
    let numbers = block.numbers.as_ref();
    vec![
        if block.lent_by.is_some() { "Borrowed" } else { "Block" }.to_owned(),
        block.block.to_string(),
        block.node.clone(),
        block.pool.clone(),
        count(size),
        of(numbers.map(|n| n.used)),
        number(numbers.map(|n| n.cooling)),
        number(numbers.map(|n| n.reserved)),
        number(numbers.map(|n| n.lent)),
        of(numbers.map(|n| n.free)),
        match (&block.since, numbers) {
            (Some(since), _) => since_text(since, now),
            (None, Some(_)) => "now".to_owned(),
            (None, None) => "-".to_owned(),
        },
    ]
}

fn since_text(since: &str, now: Timestamp) -> String {
    let then = since.parse::<Timestamp>().ok();
    let ms = then.and_then(|then| u64::try_from(then.as_millisecond()).ok());
    ms.map_or("-".to_owned(), |ms| age(ms, now))
}

/// Draws what nodes have of blocks of others.
pub(super) fn borrowed(view: &View) -> String {
    let parts: Vec<&BlockView> = view.blocks.iter().filter(|b| b.lent_by.is_some()).collect();
    if parts.is_empty() {
        return "No node has borrowed a part of another's block.\n".to_owned();
    }
    let row = |part: &&BlockView| {
        let size = u128::from(part.block.size());
        let used = part.numbers.as_ref().map(|numbers| share(numbers.used.into(), size));
        vec![
            part.block.to_string(),
            part.node.clone(),
            part.lent_by.as_ref().map_or(String::new(), |lender| lender.block.to_string()),
            part.lent_by.as_ref().map_or(String::new(), |lender| lender.node.clone()),
            count(size),
            used.unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let header = ["PART", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "IPS TOTAL", "IPS IN USE"];
    framed(&header, &["IPS TOTAL"], parts.iter().map(row).collect())
}

/// A number; what is larger than all of IPv4 in five digits, as `calicoctl` has it (`1.2089e+24`).
#[expect(clippy::cast_precision_loss, reason = "five digits are shown")]
pub(super) fn count(number: u128) -> String {
    if number <= 1 << 32 {
        return number.to_string();
    }
    let text = format!("{:.4e}", number as f64);
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e+{exponent:0>2}", digits.trim_end_matches('0').trim_end_matches('.'))
}

/// `5 (8%)`.
#[expect(clippy::cast_precision_loss, reason = "whole percents are shown")]
pub(super) fn share(part: u128, of: u128) -> String {
    format!("{} ({:.0}%)", count(part), part as f64 * 100.0 / of.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::{
        super::tests::{now, view},
        *,
    };

    #[test]
    fn pools_alone() {
        expect![[r#"
            +----------+-------------------+------------+------------+-------------------+
            | GROUPING |        CIDR       |  IPS TOTAL | IPS IN USE |      IPS FREE     |
            +----------+-------------------+------------+------------+-------------------+
            | IP Pool  | 10.10.0.0/24      |        256 | 39 (15%)   | 166 (65%)         |
            | IP Pool  | fd5f:abcd:64::/48 | 1.2089e+24 | 40 (0%)    | 1.2089e+24 (100%) |
            +----------+-------------------+------------+------------+-------------------+
            v6 gives no addresses on node1: it is disabled
            10.10.0.16/28 of node1 gives no new addresses
            10.10.0.240/28 is claimed by node9, which does not exist
            node2 does not say how full 10.99.0.0/26 is; it counts as in use
        "#]]
        .assert_eq(&table(&view(), now(), false, false));
    }

    #[test]
    fn blocks_of_all_nodes() {
        expect![[r#"
            +----------+-------------------------+-------+----------+------------+------------+---------+----------+------+-------------------+-------+
            | GROUPING |           CIDR          |  NODE |   POOL   |  IPS TOTAL | IPS IN USE | COOLING | RESERVED | LENT |      IPS FREE     | SINCE |
            +----------+-------------------------+-------+----------+------------+------------+---------+----------+------+-------------------+-------+
            | IP Pool  | 10.10.0.0/24            |       | app-pool |        256 | 39 (15%)   |       3 |       32 |      | 166 (65%)         |       |
            | Block    | 10.10.0.0/28            | node1 | app-pool |         16 | 7 (44%)    |       0 |        0 |    0 | 9 (56%)           | now   |
            | Block    | 10.10.0.16/28           | node1 | app-pool |         16 | 5 (31%)    |       0 |        0 |    8 | 3 (19%)           | now   |
            | Borrowed | 10.10.0.24/29           | node2 | app-pool |          8 | 2 (25%)    |       0 |        0 |    0 | 6 (75%)           | 5m0s  |
            | Block    | 10.10.0.32/28           | node2 | app-pool |         16 | 16 (100%)  |       0 |        0 |    0 | 0 (0%)            | 5m0s  |
            | Block    | 10.10.0.48/28           | node2 | app-pool |         16 | 9 (56%)    |       3 |        0 |    0 | 4 (25%)           | 5m0s  |
            | Block    | 10.10.0.240/28          | node9 | app-pool |         16 | -          |       - |        - |    - | -                 | -     |
            | IP Pool  | fd5f:abcd:64::/48       |       | v6       | 1.2089e+24 | 40 (0%)    |       0 |        0 |      | 1.2089e+24 (100%) |       |
            | Block    | fd5f:abcd:64:aaaa::/122 | node2 | v6       |         64 | 40 (62%)   |       0 |        0 |    0 | 24 (38%)          | 5m0s  |
            | Block    | 10.99.0.0/26            | node2 | gone     |         64 | -          |       - |        - |    - | -                 | -     |
            +----------+-------------------------+-------+----------+------------+------------+---------+----------+------+-------------------+-------+
            v6 gives no addresses on node1: it is disabled
            10.10.0.16/28 of node1 gives no new addresses
            10.10.0.240/28 is claimed by node9, which does not exist
            node2 does not say how full 10.99.0.0/26 is; it counts as in use
        "#]].assert_eq(&table(&view(), now(), true, true));
    }

    #[test]
    fn parts_that_are_lent() {
        expect![[r#"
            +---------------+----------------+---------------+-------------+-----------+------------+
            |      PART     | BORROWING-NODE |     BLOCK     | BLOCK OWNER | IPS TOTAL | IPS IN USE |
            +---------------+----------------+---------------+-------------+-----------+------------+
            | 10.10.0.24/29 | node2          | 10.10.0.16/28 | node1       |         8 | 2 (25%)    |
            +---------------+----------------+---------------+-------------+-----------+------------+
        "#]].assert_eq(&borrowed(&view()));
    }

    #[test]
    fn large_numbers_as_calicoctl_prints_them() {
        assert_eq!(count(65_536), "65536");
        assert_eq!(count(1 << 80), "1.2089e+24");
        assert_eq!(count(1_000_000_000_000), "1e+12");
    }
}
