//! The pods' way out. What is in the kernel is compared with what `nft` makes of it.

use std::{collections::BTreeSet, process::Command};

use twill_dataplane::{
    Error,
    nat::{Masquerade, Nat},
};
use twill_types::Prefix;

use crate::common::*;

fn prefixes(texts: &[&str]) -> BTreeSet<Prefix> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn wanted(sources: &[&str], pools: &[&str]) -> Masquerade {
    Masquerade { sources: prefixes(sources), pools: prefixes(pools) }
}

fn try_nft(arguments: &str) -> Result<String, String> {
    let output = Command::new("nft").args(arguments.split_whitespace()).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

fn nft(arguments: &str) -> String {
    try_nft(arguments).unwrap_or_else(|error| panic!("nft {arguments}: {error}"))
}

const FOREIGN: &str = "table ip filter {\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy accept;\n\t}\n}";

fn foreign_table() {
    nft("add table ip filter");
    nft("add chain ip filter forward { type filter hook forward priority 0 ; }");
}

#[test]
fn the_table_is_what_the_page_says() {
    on_a_node(|| {
        foreign_table();
        let mut nat = Nat::open().unwrap();
        let pools = ["10.10.0.0/20", "10.20.0.0/16", "fd00:10::/112"];
        nat.apply(&wanted(&["10.10.0.0/20", "fd00:10::/112"], &pools)).unwrap();
        // Without the first lines, which name the process.
        let table = nft("list table inet twill");
        let table = table.split_once("comment ").unwrap().1;
        expect_test::expect![[r#"
            "natOutgoing, by twilld"

            	set nat4 {
            		type ipv4_addr
            		flags interval
            		elements = { 10.10.0.0/20 }
            	}

            	set pools4 {
            		type ipv4_addr
            		flags interval
            		elements = { 10.10.0.0/20, 10.20.0.0/16 }
            	}

            	set nat6 {
            		type ipv6_addr
            		flags interval
            		elements = { fd00:10::/112 }
            	}

            	set pools6 {
            		type ipv6_addr
            		flags interval
            		elements = { fd00:10::/112 }
            	}

            	chain outgoing {
            		type nat hook postrouting priority srcnat; policy accept;
            		ip saddr @nat4 ip daddr != @pools4 counter packets 0 bytes 0 masquerade fully-random
            		ip6 saddr @nat6 ip6 daddr != @pools6 counter packets 0 bytes 0 masquerade fully-random
            	}
            }"#]]
        .assert_eq(table);
        // Another set of pools replaces all of it, and without any the table goes.
        nat.apply(&wanted(&["10.20.0.0/16"], &pools)).unwrap();
        let table = nft("list table inet twill");
        assert!(
            !table.contains("nat6") && table.contains("elements = { 10.20.0.0/16 }"),
            "{table}"
        );
        nat.apply(&wanted(&[], &pools)).unwrap();
        assert_eq!(nft("list ruleset"), FOREIGN);
        nat.apply(&wanted(&[], &[])).unwrap();
        assert_eq!(nft("list ruleset"), FOREIGN);
    });
}

#[test]
fn thousands_of_pools_are_one_batch() {
    on_a_node(|| {
        let pool = |index: u32| format!("10.{}.{}.0/25", index / 256, index % 256);
        let many: Vec<String> = (0..3000).map(pool).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let mut nat = Nat::open().unwrap();
        nat.apply(&wanted(&many, &many)).unwrap();
        let table = nft("list table inet twill");
        assert_eq!(table.matches("/25").count(), 2 * many.len());
    });
}

#[test]
fn the_table_outlives_a_flush_and_its_maker() {
    on_a_node(|| {
        let way_out = wanted(&["10.10.0.0/20"], &["10.10.0.0/20"]);
        let mut nat = Nat::open().unwrap();
        nat.apply(&way_out).unwrap();
        nft("flush ruleset");
        assert!(nft("list ruleset").contains("table inet twill"));
        try_nft("delete table inet twill").unwrap_err();
        // Who is away owns nothing any more; the next one adopts what is there, or makes it again.
        drop(nat);
        assert!(nft("list ruleset").contains("masquerade"));
        let mut next = Nat::open().unwrap();
        next.apply(&way_out).unwrap();
        try_nft("delete table inet twill").unwrap_err();
        drop(next);
        nft("delete table inet twill");
        let mut last = Nat::open().unwrap();
        last.apply(&way_out).unwrap();
        assert!(nft("list ruleset").contains("masquerade"));
    });
}

#[test]
fn a_foreign_table_of_our_name_is_left_alone() {
    on_a_node(|| {
        nft("add table inet twill");
        nft("add chain inet twill mine");
        let before = nft("list ruleset");
        let mut nat = Nat::open().unwrap();
        let refused = nat.apply(&wanted(&["10.10.0.0/20"], &["10.10.0.0/20"])).unwrap_err();
        assert!(matches!(refused, Error::TableTaken { .. }), "{refused}");
        nat.apply(&wanted(&[], &["10.10.0.0/20"])).unwrap();
        assert_eq!(nft("list ruleset"), before);
    });
}
