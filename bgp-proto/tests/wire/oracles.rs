//! The codec beside two others: the same routes, the same attributes, the same answer, on valid and
//! on damaged UPDATEs. `docs/bgp-oracles.md` explains where they differ.

use std::collections::BTreeMap;

use twill_bgp_proto::wire::{Session, fuzz};

use crate::{
    explain::{self, Case},
    messages::{Random, damage, update},
    netgauze, opens, rustbgpd, short, view,
};

const SEED: u64 = 4271;

/// Sessions that both others can have: they take every family and every next hop.
fn session(random: &mut Random) -> Session {
    let mut session = fuzz::session([random.octet(), random.octet()]);
    session.ipv4 = true;
    session.ipv6 = true;
    session.extended_next_hop = true;
    session.as_sets = false;
    session
}

#[test]
fn every_difference_to_the_other_codecs_is_explained() {
    let whole = !cfg!(debug_assertions);
    let count = if whole { 1_000_000 } else { 100_000 };
    println!("seed {SEED}, {count} messages");
    let mut random = Random::new(SEED);
    let mut explained: BTreeMap<&str, usize> = BTreeMap::new();
    let mut unexplained: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for index in 0..count {
        let session = session(&mut random);
        let mut body = update(&mut random, &session);
        if index % 3 != 0 {
            damage(&mut random, &mut body);
        }
        let ours = view::ours(&body, &session);
        let others = [
            ("rustbgpd", rustbgpd::view(&body, &session)),
            ("netgauze", netgauze::view(&body, &session)),
        ];
        for (name, theirs) in others {
            let case = Case { body: &body, session: &session, ours: &ours, theirs: &theirs };
            for difference in explain::differences(name, &case) {
                match explain::reason(name, difference, &case) {
                    Some(id) => *explained.entry(id).or_default() += 1,
                    None => {
                        let text = format!(
                            "{session:?}\n  {body:02x?}\n  ours   {ours:?}\n  theirs {theirs:?}"
                        );
                        let entry = unexplained.entry(format!(
                            "{name}: {difference} {:?}/{:?}",
                            ours.class, case.theirs.class
                        ));
                        let entry = entry.or_insert((0, text.clone()));
                        entry.0 += 1;
                        if text.len() < entry.1.len() {
                            entry.1 = text;
                        }
                    }
                }
            }
        }
    }
    for (id, count) in &explained {
        println!("{count:8} {id}");
    }
    for (difference, (count, example)) in &unexplained {
        println!("{count:8} UNEXPLAINED {difference}\n  {example}");
    }
    assert!(unexplained.is_empty(), "{} kinds of difference are not explained", unexplained.len());
    // The rarest ones need the whole run.
    if whole {
        let mut ids = explain::ids();
        let unused = ids.find(|id| !explained.contains_key(id));
        assert_eq!(unused, None, "nothing needs this explanation any more");
    }
}

#[test]
fn the_table_has_every_explanation() {
    let table = include_str!("../../../docs/bgp-oracles.md");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let rows: Vec<&str> = rows.collect();
    let ids: Vec<&str> = explain::ids().chain(opens::ROWS).chain(short::ROWS).collect();
    assert_eq!(rows, ids, "docs/bgp-oracles.md");
}
