use proptest::prelude::*;

use super::*;
use crate::ForeignUse;

fn id(n: u8) -> AttachmentId {
    AttachmentId { network: "n".into(), container_id: format!("c{n}"), ifname: "eth0".into() }
}

fn request(n: u8, families: &[Family], cookie: u64) -> AssignRequest {
    AssignRequest {
        attachment: id(n),
        pools: families.iter().map(|f| (*f, vec![format!("pool-{f}")])).collect(),
        netns: format!("/run/netns/{n}"),
        netns_cookie: Some(cookie),
        pod: None,
        pod_uid: None,
        wanted: BTreeMap::new(),
        foreign: None,
        allow_reserved: false,
        now_ms: 0,
    }
}

fn allocator(blocks: &[&str]) -> Allocator {
    let mut allocator = Allocator::default();
    for text in blocks {
        let block: Block = text.parse().unwrap();
        let pool = format!("pool-{}", block.family());
        allocator.apply(&Change::Block(OwnedBlock { block, pool, dedication: None }, true));
    }
    allocator
}

fn assign(allocator: &mut Allocator, request: &AssignRequest) -> Result<Assignment, Refusal> {
    let plan = allocator.plan_assign(request)?;
    for change in &plan.changes {
        allocator.apply(change);
    }
    Ok(plan.assignment)
}

fn release(allocator: &mut Allocator, n: u8, sequence: Option<u64>) -> Vec<IpAddr> {
    let (changes, outcome) =
        allocator.plan_release(&ReleaseRequest { attachment: id(n), sequence, netns_cookie: None });
    for change in &changes {
        allocator.apply(change);
    }
    outcome.addresses
}

const V4: &[Family] = &[Family::V4];
const BOTH: &[Family] = &[Family::V4, Family::V6];

#[test]
fn reserved_addresses_are_passed_over_and_refused_by_name() {
    let mut allocator = allocator(&["10.0.0.0/30"]);
    let first = assign(&mut allocator, &request(1, V4, 1)).unwrap();
    allocator.reserve(vec!["10.0.0.0/31".parse().unwrap()]);
    let second = assign(&mut allocator, &request(2, V4, 2)).unwrap();
    let third = assign(&mut allocator, &request(3, V4, 3)).unwrap();
    let given: Vec<String> =
        [&first, &second, &third].iter().map(|a| a.addresses[0].to_string()).collect();
    assert_eq!(given, ["10.0.0.0", "10.0.0.2", "10.0.0.3"]);
    // Who has one keeps it.
    assert_eq!(assign(&mut allocator, &request(1, V4, 1)).unwrap(), first);
    assert!(matches!(assign(&mut allocator, &request(4, V4, 4)), Err(Refusal::Full(_))));
    let mut named = request(4, V4, 4);
    named.wanted.insert(Family::V4, "10.0.0.1".parse().unwrap());
    let refusal = assign(&mut allocator, &named).unwrap_err();
    assert_eq!(refusal.to_string(), "10.0.0.1 is reserved by an IPReservation (10.0.0.0/31)");
    // What memory goes back to after a failed write is of the same mind.
    let (blocks, records) = (allocator.blocks.clone(), allocator.records.clone());
    allocator.reload(blocks.into_values(), records.into_values());
    assert_eq!(assign(&mut allocator, &named).unwrap_err(), refusal);
    allocator.reserve(Vec::new());
    assign(&mut allocator, &named).unwrap();
}

#[test]
fn an_address_rests_after_use() {
    let mut allocator = allocator(&["10.0.0.0/31"]);
    assign(&mut allocator, &request(1, V4, 1)).unwrap();
    assign(&mut allocator, &request(2, V4, 2)).unwrap();
    let free = |allocator: &mut Allocator, n| {
        release(allocator, n, None);
        let round = allocator.begin_round();
        allocator.end_round(round);
    };
    // It is not known since when this one is free, so it begins to rest with the first word of that.
    free(&mut allocator, 1);
    allocator.set_time(5_000);
    allocator.set_rest(2_000);
    let check = |allocator: &mut Allocator, n, expected: &str| match assign(
        allocator,
        &request(n, V4, n.into()),
    ) {
        Ok(assignment) => assert_eq!(assignment.addresses[0].to_string(), expected),
        Err(Refusal::Full(shortage)) => {
            assert_eq!(format!("in {:?} s", shortage.rested_in.unwrap()), expected)
        }
        Err(error) => panic!("{error}"),
    };
    check(&mut allocator, 3, "in 2 s");
    let fill = allocator.blocks().next().unwrap();
    assert_eq!((fill.used, fill.free, fill.held, fill.resting), (1, 0, 0, 1));
    allocator.set_time(6_000);
    free(&mut allocator, 2);
    check(&mut allocator, 3, "in 1 s");
    let mut named = request(3, V4, 3);
    named.wanted.insert(Family::V4, "10.0.0.1".parse().unwrap());
    let refusal = assign(&mut allocator, &named).unwrap_err();
    assert!(matches!(refusal, Refusal::Resting { seconds: 2, .. }), "{refusal}");
    allocator.set_time(7_000);
    check(&mut allocator, 3, "10.0.0.0");
    check(&mut allocator, 4, "in 1 s");
    allocator.set_time(8_000);
    check(&mut allocator, 4, "10.0.0.1");
}

#[test]
fn a_shorter_rest_holds_for_those_at_rest() {
    let mut allocator = allocator(&["10.0.0.0/32"]);
    allocator.set_rest(600_000);
    assign(&mut allocator, &request(1, V4, 1)).unwrap();
    release(&mut allocator, 1, None);
    let round = allocator.begin_round();
    allocator.end_round(round);
    let rested_in = |allocator: &mut Allocator| match assign(allocator, &request(2, V4, 2)) {
        Err(Refusal::Full(shortage)) => shortage.rested_in,
        other => panic!("{other:?}"),
    };
    assert_eq!(rested_in(&mut allocator), Some(600));
    // A longer one is for those that come.
    allocator.set_rest(900_000);
    assert_eq!(rested_in(&mut allocator), Some(600));
    allocator.set_rest(3_000);
    assert_eq!(rested_in(&mut allocator), Some(3));
    allocator.set_rest(0);
    assign(&mut allocator, &request(2, V4, 2)).unwrap();
}

#[test]
fn a_reserved_address_can_be_had_by_an_explicit_override_alone() {
    let mut allocator = allocator(&["10.0.0.0/30"]);
    allocator.reserve(vec!["10.0.0.0/30".parse().unwrap()]);
    let mut asking = AssignRequest { allow_reserved: true, ..request(1, V4, 1) };
    assert!(matches!(assign(&mut allocator, &asking), Err(Refusal::Full(_))), "names none");
    asking.wanted.insert(Family::V4, "10.0.0.2".parse().unwrap());
    let got = assign(&mut allocator, &asking).unwrap();
    assert_eq!(got.addresses[0].to_string(), "10.0.0.2");
    let fill = allocator.blocks().next().unwrap();
    assert_eq!((fill.used, fill.free, fill.reserved), (1, 0, 3));
}

#[test]
fn a_part_that_another_node_has_is_not_given_out() {
    let mut allocator = allocator(&["10.0.0.0/29"]);
    let block = "10.0.0.0/29".parse().unwrap();
    let first = assign(&mut allocator, &request(1, V4, 1)).unwrap();
    let mut delegate = |length, address: Option<&str>| {
        let address = address.map(|text| text.parse().unwrap());
        allocator.delegate(block, length, address).map(|part| part.to_string())
    };
    assert_eq!(delegate(30, None).as_deref(), Some("10.0.0.4/30"));
    // Only half of a /30 is left.
    assert_eq!(delegate(30, None).as_deref(), Some("10.0.0.2/31"));
    assert_eq!(delegate(32, Some("10.0.0.0")), None, "in use");
    assert_eq!(delegate(32, Some("10.0.0.4")), None, "lent already");
    assert_eq!(delegate(30, Some("10.0.0.1")).as_deref(), Some("10.0.0.1/32"));
    assert_eq!(delegate(30, None), None);
    let fill = allocator.blocks().next().unwrap();
    assert_eq!((fill.used, fill.free, fill.delegated), (1, 0, 7));
    assert!(matches!(assign(&mut allocator, &request(2, V4, 2)), Err(Refusal::Full(_))));
    let named = wanting(2, V4, &["10.0.0.4"]);
    let refusal = assign(&mut allocator, &named).unwrap_err();
    assert!(matches!(refusal, Refusal::Delegated { .. }), "{refusal}");
    // What comes back can be had again.
    allocator.set_delegated(["10.0.0.2/31".parse().unwrap()].into());
    assign(&mut allocator, &named).unwrap();
    release(&mut allocator, 1, Some(first.sequence));
    let round = allocator.begin_round();
    allocator.end_round(round);
    assert_eq!(allocator.delegate(block, 31, None).unwrap().to_string(), "10.0.0.6/31");
}

/// As somebody may write them into a claim by hand.
#[test]
fn of_parts_that_overlap_the_largest_counts() {
    let mut allocator = allocator(&["10.0.0.0/26"]);
    let parts = ["10.0.0.32/27", "10.0.0.32/28", "10.0.0.40/32"].map(|part| part.parse().unwrap());
    allocator.set_delegated(parts.into());
    let refusal = assign(&mut allocator, &wanting(1, V4, &["10.0.0.56"])).unwrap_err();
    assert!(matches!(refusal, Refusal::Delegated { part, .. } if part == parts[0]), "{refusal}");
    let fill = allocator.blocks().next().unwrap();
    assert_eq!((fill.used, fill.free, fill.delegated), (0, 32, 32));
}

#[test]
fn the_same_attachment_gets_the_same_answer() {
    let mut allocator = allocator(&["10.0.0.0/30"]);
    let first = assign(&mut allocator, &request(1, V4, 7)).unwrap();
    let again = assign(&mut allocator, &request(1, V4, 7)).unwrap();
    assert_eq!(again, first);
}

#[test]
fn a_restarted_container_keeps_its_address_under_a_new_number() {
    let mut allocator = allocator(&["10.0.0.0/30"]);
    let first = assign(&mut allocator, &request(1, V4, 7)).unwrap();
    let second = assign(&mut allocator, &request(1, V4, 8)).unwrap();
    assert_eq!(second.addresses, first.addresses);
    assert!(second.sequence > first.sequence);
    assert_eq!(release(&mut allocator, 1, Some(first.sequence)), [] as [IpAddr; 0]);
    assert_eq!(release(&mut allocator, 1, Some(second.sequence)), first.addresses);
}

#[test]
fn both_families_or_none() {
    let mut allocator = allocator(&["10.0.0.0/30"]);
    let refusal = assign(&mut allocator, &request(1, BOTH, 7)).unwrap_err();
    assert!(matches!(refusal, Refusal::Full(Shortage { family: Family::V6, .. })), "{refusal}");
    assert_eq!(allocator.blocks().next().unwrap().used, 0);
}

#[test]
fn a_freed_address_is_used_last_and_only_when_its_link_is_gone() {
    let mut allocator = allocator(&["10.0.0.0/30"]);
    let first = assign(&mut allocator, &request(1, V4, 1)).unwrap().addresses;
    release(&mut allocator, 1, None);
    for n in 2..=4 {
        assert_ne!(assign(&mut allocator, &request(n, V4, 1)).unwrap().addresses, first);
    }
    let refusal = assign(&mut allocator, &request(5, V4, 1)).unwrap_err();
    assert!(matches!(refusal, Refusal::Full(Shortage { blocks: 1, held: 1, .. })), "{refusal}");
    let round = allocator.begin_round();
    allocator.end_round(round);
    assert_eq!(assign(&mut allocator, &request(5, V4, 1)).unwrap().addresses, first);
}

#[test]
fn a_block_that_is_not_assignable_gives_nothing_and_keeps_what_it_gave() {
    let mut allocator = allocator(&["10.0.0.0/30"]);
    assign(&mut allocator, &request(1, V4, 1)).unwrap();
    let block: Block = "10.0.0.0/30".parse().unwrap();
    let owned = OwnedBlock { block, pool: "pool-IPv4".into(), dedication: None };
    allocator.apply(&Change::Block(owned, false));
    assert!(assign(&mut allocator, &request(2, V4, 1)).is_err());
    assert_eq!(allocator.plan_remove_block(block), None);
    assert_eq!(release(&mut allocator, 1, None).len(), 1);
    assert!(allocator.plan_remove_block(block).is_some());
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A request for these addresses.
fn wanting(n: u8, families: &[Family], wanted: &[&str]) -> AssignRequest {
    let wanted = wanted.iter().map(|text| (Family::of(ip(text)), ip(text))).collect();
    AssignRequest { wanted, ..request(n, families, 1) }
}

#[test]
fn an_address_is_given_to_whoever_asks_for_it_first() {
    let mut allocator = allocator(&["10.0.0.0/29", "fd00::/125"]);
    let first = assign(&mut allocator, &wanting(1, BOTH, &["10.0.0.5"])).unwrap();
    assert_eq!(first.addresses, [ip("10.0.0.5"), ip("fd00::")]);
    assert_eq!(first.blocks.len(), 2);
    let again = assign(&mut allocator, &wanting(1, BOTH, &["10.0.0.5"])).unwrap();
    assert_eq!(again, first);
    let taken = assign(&mut allocator, &wanting(2, V4, &["10.0.0.5"])).unwrap_err();
    assert_eq!(taken, Refusal::Taken { address: ip("10.0.0.5"), by: Box::new(id(1)) });
    let outside = assign(&mut allocator, &wanting(2, V4, &["10.0.0.9"])).unwrap_err();
    assert!(matches!(outside, Refusal::NoBlock { .. }), "{outside}");
    // Those passed over come in their order, the freed one last.
    release(&mut allocator, 1, None);
    let cooling = assign(&mut allocator, &wanting(2, V4, &["10.0.0.5"])).unwrap_err();
    assert_eq!(cooling, Refusal::Cooling { address: ip("10.0.0.5") });
    let round = allocator.begin_round();
    allocator.end_round(round);
    let order: Vec<IpAddr> =
        (2..10).map(|n| assign(&mut allocator, &request(n, V4, 1)).unwrap().addresses[0]).collect();
    let expected = ["6", "7", "0", "1", "2", "3", "4", "5"].map(|n| ip(&format!("10.0.0.{n}")));
    assert_eq!(order, expected);
}

#[test]
fn another_address_is_asked_for_the_second_time() {
    let mut allocator = allocator(&["10.0.0.0/29"]);
    assign(&mut allocator, &wanting(1, V4, &["10.0.0.5"])).unwrap();
    let second = assign(&mut allocator, &wanting(1, V4, &["10.0.0.6"])).unwrap();
    assert_eq!(second.addresses, [ip("10.0.0.6")]);
    assert_eq!(allocator.blocks().next().unwrap().used, 1);
}

#[test]
fn another_main_plugin_gets_blocks_of_its_own_with_a_gateway_in_each() {
    let mut allocator = allocator(&["10.0.0.0/30", "10.0.0.4/30"]);
    let foreign = |n| AssignRequest {
        foreign: Some(ForeignUse {
            advertise: false,
            first_is_gateway: true,
            reserved: BTreeSet::from([ip("10.0.0.7")]),
        }),
        ..request(n, V4, 1)
    };
    let refusal = assign(&mut allocator, &foreign(1)).unwrap_err();
    let dedication = Dedication { network: "n".into(), advertise: false };
    let Refusal::Full(shortage) = refusal else { panic!("{refusal}") };
    assert_eq!((shortage.blocks, &shortage.dedication), (0, &Some(dedication.clone())));
    let block: Block = "10.0.0.4/30".parse().unwrap();
    let owned = OwnedBlock { block, pool: "pool-IPv4".into(), dedication: Some(dedication) };
    allocator.apply(&Change::Block(owned, true));
    let addresses: Vec<IpAddr> =
        (1..3).map(|n| assign(&mut allocator, &foreign(n)).unwrap().addresses[0]).collect();
    assert_eq!(addresses, [ip("10.0.0.5"), ip("10.0.0.6")]);
    assert!(assign(&mut allocator, &foreign(3)).is_err(), "only gateways are left");
    let gateway = AssignRequest { wanted: [(Family::V4, ip("10.0.0.4"))].into(), ..foreign(3) };
    let refusal = assign(&mut allocator, &gateway).unwrap_err();
    assert_eq!(refusal, Refusal::Reserved { address: ip("10.0.0.4") });
    // Pods of ours never come there.
    let ours: Vec<IpAddr> =
        (4..8).map(|n| assign(&mut allocator, &request(n, V4, 1)).unwrap().addresses[0]).collect();
    assert!(ours.iter().all(|address| !block.prefix().contains(*address)), "{ours:?}");
    assert!(assign(&mut allocator, &request(8, V4, 1)).is_err());
}

#[test]
fn a_late_release_from_another_namespace_changes_nothing() {
    let mut allocator = allocator(&["10.0.0.0/30"]);
    assign(&mut allocator, &request(1, V4, 7)).unwrap();
    let release =
        |cookie| ReleaseRequest { attachment: id(1), sequence: None, netns_cookie: Some(cookie) };
    assert_eq!(allocator.plan_release(&release(6)).0, []);
    assert_eq!(allocator.plan_release(&release(7)).0.len(), 1);
}

#[test]
fn what_was_adopted_is_given_to_nobody_else() {
    let mut allocator = Allocator::default();
    let record = |n: u8, address: &str| Record {
        attachment: id(n),
        addresses: vec![address.parse().unwrap()],
        sequence: 40 + u64::from(n),
        netns: String::new(),
        netns_cookie: None,
        pod: None,
        pod_uid: None,
        foreign: false,
        created_ms: 0,
    };
    let change = allocator.plan_adopt(record(1, "10.0.0.1")).unwrap();
    allocator.apply(&change);
    assert_eq!(allocator.plan_adopt(record(1, "10.0.0.2")), None);
    assert_eq!(allocator.plan_adopt(record(2, "10.0.0.1")), None);
    allocator.number_after(70);
    // Its block comes later.
    let block: Block = "10.0.0.0/30".parse().unwrap();
    let owned = OwnedBlock { block, pool: "pool-IPv4".into(), dedication: None };
    let change = allocator.plan_block(owned.clone(), true).unwrap();
    allocator.apply(&change);
    assert_eq!(allocator.plan_block(owned, true), None);
    assert_eq!(allocator.blocks().next().unwrap().used, 1);
    let mut given: Vec<IpAddr> = Vec::new();
    for n in 10.. {
        let Ok(assignment) = assign(&mut allocator, &request(n, V4, 1)) else {
            break;
        };
        assert!(assignment.sequence > 70);
        given.extend(assignment.addresses);
    }
    let expected: Vec<IpAddr> =
        ["10.0.0.2", "10.0.0.3", "10.0.0.0"].map(|ip| ip.parse().unwrap()).into();
    assert_eq!(given, expected);
    // It came from another namespace, as far as anybody knows.
    let again = assign(&mut allocator, &request(1, V4, 7)).unwrap();
    assert_eq!(again.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
}

#[derive(Debug, Clone)]
enum Action {
    Assign(u8, bool, u64),
    Want(u8, u8),
    Release(u8),
    Round,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (0..12u8, any::<bool>(), 0..3u64).prop_map(|(n, both, c)| Action::Assign(n, both, c)),
        (0..12u8, 0..6u8).prop_map(|(n, last)| Action::Want(n, last)),
        (0..12u8).prop_map(Action::Release),
        Just(Action::Round),
    ]
}

proptest! {
    /// Against the plainest model there is: a map from attachment to addresses.
    #[test]
    fn no_address_is_ever_given_twice(actions in proptest::collection::vec(action(), 1..200)) {
        let mut allocator = allocator(&["10.0.0.0/30", "10.0.0.4/31", "fd00::/125"]);
        let mut model: BTreeMap<u8, Vec<IpAddr>> = BTreeMap::new();
        for action in actions {
            match action {
                Action::Assign(n, both, cookie) => {
                    let families = if both { BOTH } else { V4 };
                    if let Ok(given) = assign(&mut allocator, &request(n, families, cookie)) {
                        prop_assert_eq!(given.addresses.len(), families.len());
                        model.insert(n, given.addresses);
                    }
                }
                Action::Want(n, last) => {
                    let address = format!("10.0.0.{last}");
                    if let Ok(given) = assign(&mut allocator, &wanting(n, V4, &[&address])) {
                        prop_assert_eq!(&given.addresses, &[ip(&address)]);
                        model.insert(n, given.addresses);
                    }
                }
                Action::Release(n) => {
                    let given = model.remove(&n).unwrap_or_default();
                    prop_assert_eq!(release(&mut allocator, n, None), given);
                }
                Action::Round => {
                    let round = allocator.begin_round();
                    allocator.end_round(round);
                    prop_assert!(allocator.blocks().all(|block| block.held == 0));
                }
            }
            let all: Vec<IpAddr> = model.values().flatten().copied().collect();
            let distinct: BTreeSet<IpAddr> = all.iter().copied().collect();
            prop_assert_eq!(all.len(), distinct.len(), "an address was given twice");
            for block in allocator.blocks() {
                let used =
                    distinct.iter().filter(|a| block.block.prefix().contains(**a)).count();
                prop_assert_eq!(usize::from(block.used), used);
                let BlockSummary { used, free, held, resting, reserved, delegated, .. } = block;
                let sum = used + free + held + resting + reserved + delegated;
                prop_assert_eq!(sum, block.block.size());
            }
        }
    }
}
