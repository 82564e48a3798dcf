//! The table against a kernel in a few lines, which forgets what the real one forgets.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proptest::prelude::*;
use twill_dataplane::{
    NextHop,
    fib::{FibChange, LearnedRoute, Object, ObjectChange, ObjectId, Resolved, Via},
};
use twill_types::{BgpNextHop, Family, Prefix, PrefixList};

use super::{
    Sources,
    plan::{Plan, Refusal},
    table::Table,
};
use crate::config::Switch;

/// What the kernel has.
#[derive(Debug, Default, Clone)]
struct Kernel {
    objects: BTreeMap<ObjectId, Object>,
    routes: BTreeMap<Prefix, LearnedRoute>,
    dead_links: BTreeSet<u32>,
    /// Numbers of somebody else's objects.
    foreign: BTreeSet<ObjectId>,
    /// A kernel that has no groups.
    refuses_groups: bool,
    /// Messages about objects, and about routes.
    messages: (usize, usize),
}

impl Kernel {
    fn remove(&mut self, id: ObjectId) {
        match self.objects.remove(&id) {
            Some(Object::Hop(_)) => {
                let mut empty = Vec::new();
                for (group_id, object) in &mut self.objects {
                    if let Object::Group(group) = object {
                        group.members.remove(&id);
                        group.backup = group.backup.filter(|backup| *backup != id);
                        if group.members.is_empty() {
                            group.members.extend(group.backup.take());
                        }
                        if group.members.is_empty() {
                            empty.push(*group_id);
                        }
                    }
                }
                empty.into_iter().for_each(|group| self.remove(group));
            }
            Some(Object::Group(_)) => self.routes.retain(|_, route| route.via != Via::Object(id)),
            None => {}
        }
    }

    fn object(&mut self, change: &ObjectChange) -> Result<(), Refusal> {
        self.messages.0 += 1;
        match change {
            ObjectChange::Create(id, object) => {
                assert!(!self.objects.contains_key(id), "{id} is taken");
                if self.foreign.contains(id) {
                    return Err(Refusal::NumberTaken);
                }
                if let Object::Hop(hop) = object
                    && self.dead_links.contains(&hop.ifindex)
                {
                    return Err(Refusal::Other);
                }
                if matches!(object, Object::Group(_)) && self.refuses_groups {
                    return Err(Refusal::Other);
                }
                self.objects.insert(*id, object.clone());
            }
            ObjectChange::Replace(id, group) => {
                let members = group.members.iter().chain(&group.backup);
                assert!(members.clone().count() > 0, "an empty group");
                assert!(members.clone().all(|member| self.objects.contains_key(member)));
                let Some(Object::Group(before)) = self.objects.get(id) else {
                    panic!("no group {id}");
                };
                assert_eq!(before.guarded, group.guarded);
                assert!(group.guarded || group.backup.is_none());
                self.objects.insert(*id, Object::Group(group.clone()));
            }
            ObjectChange::Delete(id) => self.remove(*id),
        }
        Ok(())
    }

    fn route(&mut self, change: &FibChange) {
        self.messages.1 += 1;
        match change {
            FibChange::Replace(route) => {
                if let Via::Object(id) = route.via {
                    assert!(matches!(self.objects.get(&id), Some(Object::Group(_))), "{id}");
                }
                self.routes.insert(route.prefix, route.clone());
            }
            FibChange::Delete(prefix) => _ = self.routes.remove(prefix),
        }
    }

    fn link_dead(&mut self, ifindex: u32, down: bool) {
        self.dead_links.insert(ifindex);
        let on_it = |object: &Object| matches!(object, Object::Hop(h) if h.ifindex == ifindex);
        let hops = self.objects.iter().filter(|(_, object)| on_it(object)).map(|(id, _)| *id);
        for hop in hops.collect::<Vec<_>>() {
            self.remove(hop);
        }
        if down {
            let by_it = |route: &LearnedRoute| match &route.via {
                Via::Hops(hops) => hops.iter().any(|hop| hop.ifindex == ifindex),
                Via::Object(_) => false,
            };
            self.routes.retain(|_, route| !by_it(route));
        }
    }

    /// Where packets to a destination go.
    fn hops(&self, prefix: Prefix) -> BTreeSet<NextHop> {
        let hop = |id: &ObjectId| match self.objects.get(id) {
            Some(Object::Hop(hop)) => *hop,
            other => panic!("{id} is no hop: {other:?}"),
        };
        match self.routes.get(&prefix).map(|route| &route.via) {
            None => BTreeSet::new(),
            Some(Via::Hops(hops)) => BTreeSet::clone(hops),
            Some(Via::Object(id)) => match &self.objects[id] {
                Object::Group(group) => group.members.iter().map(hop).collect(),
                Object::Hop(_) => panic!("{id} is no group"),
            },
        }
    }
}

/// The table and the kernel, with the task between them.
struct Run {
    table: Table,
    kernel: Kernel,
}

impl Run {
    fn new(mode: Switch) -> Self {
        let table = Table::adopt(mode, &BTreeMap::new(), &BTreeMap::new());
        let mut run = Self { table, kernel: Kernel::default() };
        run.table.converged();
        run
    }

    /// The next hops that work; what is not named does not.
    fn reach(&mut self, numbers: &[u8]) {
        let known: Vec<BgpNextHop> = self.table.tracked().map(|(known, _)| known).collect();
        let mut ways: BTreeMap<BgpNextHop, Option<Resolved>> =
            known.into_iter().map(|known| (known, None)).collect();
        ways.extend(numbers.iter().map(|number| (bgp(*number), Some(way(*number)))));
        self.table.resolve(ways);
    }

    fn objects(&mut self, part: impl Fn(Plan) -> Plan) {
        let plan = loop {
            let plan = part(self.table.plan());
            let mut refused = false;
            for hop in self.table.missing_hops(&plan) {
                if let Err(why) = self.kernel.object(&hop) {
                    self.table.hop_refused(hop.id(), why);
                    refused = true;
                }
            }
            if !refused {
                break plan;
            }
        };
        for change in self.table.change_groups(&plan) {
            if let Err(why) = self.kernel.object(&change) {
                self.table.group_refused(change.id(), why);
            }
        }
    }

    fn moves(&mut self) -> (usize, usize) {
        self.kernel.messages = (0, 0);
        self.objects(Plan::moves_only);
        self.kernel.messages
    }

    /// The messages that it took, without the clearing up.
    fn turn(&mut self) -> (usize, usize) {
        self.turn_of(usize::MAX)
    }

    /// The same with a limit to the routes that are written; what is due then is not cleared up.
    fn turn_of(&mut self, limit: usize) -> (usize, usize) {
        self.kernel.messages = (0, 0);
        self.objects(|plan| plan);
        for change in self.table.change_routes(limit) {
            self.kernel.route(&change);
        }
        let messages = self.kernel.messages;
        if !self.table.due.is_empty() {
            return messages;
        }
        for change in self.table.sweep() {
            assert_eq!(self.kernel.object(&change), Ok(()));
        }
        messages
    }

    fn want(&mut self, routes: std::ops::Range<u16>, hops: &[u8], backup: Option<u8>) {
        let hops = hops.iter().map(|number| bgp(*number)).collect();
        self.table.want(&routes.map(prefix).collect(), &hops, backup.map(bgp));
    }

    fn link_dead(&mut self, number: u8, down: bool) {
        self.kernel.link_dead(number.into(), down);
        self.table.link(number.into(), false);
        if down {
            self.table.link_lost(number.into());
        }
        self.look(false);
    }

    fn look(&mut self, others: bool) {
        let found = self.kernel.objects.clone();
        self.table.look(&found, others);
        self.table.retry();
    }

    fn assert_leads(&self, routes: std::ops::Range<u16>, numbers: &[u8]) {
        let expected: BTreeSet<NextHop> = numbers.iter().copied().flat_map(hops).collect();
        for route in routes {
            assert_eq!(self.kernel.hops(prefix(route)), expected, "{}", prefix(route));
        }
    }
}

fn prefix(number: u16) -> Prefix {
    let [high, low] = number.to_be_bytes();
    Prefix::masked(IpAddr::from([10, high, low, 0]), 24).unwrap()
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, number])
}

fn bgp(number: u8) -> BgpNextHop {
    address(number).into()
}

/// Each next hop is on a link of its own, but for one, to which two routers lead.
fn way(number: u8) -> Resolved {
    let hop = |link: u8| NextHop {
        gateway: (number == FORKED).then(|| address(100 + link)),
        ifindex: link.into(),
        onlink: false,
    };
    Resolved { hops: links(number).iter().copied().map(hop).collect(), source: None }
}

const FORKED: u8 = 4;

const fn links(number: u8) -> &'static [u8] {
    match number {
        1 => &[1],
        2 => &[2],
        3 => &[3],
        _ => &[4, 5],
    }
}

fn hops(number: u8) -> impl Iterator<Item = NextHop> {
    way(number).next_hops(address(number)).collect::<Vec<_>>().into_iter()
}

const ALL: std::ops::Range<u16> = 0..1000;

#[test]
fn one_next_hop_makes_plain_routes_and_two_a_group() {
    let mut run = Run::new(Switch::Auto);
    run.reach(&[1, 2, 3]);
    run.want(0..10, &[1], None);
    assert_eq!(run.turn(), (0, 10));
    run.want(10..20, &[1, 2], None);
    assert_eq!(run.turn(), (3, 10));
    run.want(20..30, &[1], Some(2));
    assert_eq!(run.turn(), (1, 10));
    run.assert_leads(0..10, &[1]);
    run.assert_leads(10..20, &[1, 2]);
    run.assert_leads(20..30, &[1]);
    assert_eq!(run.turn(), (0, 0));
    // With the routes all objects go: a group by one message, the rest by a message each.
    run.want(20..30, &[], None);
    assert_eq!(run.turn(), (1, 0));
    run.want(0..20, &[], None);
    assert_eq!(run.turn(), (1, 10));
    assert_eq!(run.kernel.objects, BTreeMap::new());
    assert_eq!(run.table.entries.len(), 0);
    assert_eq!(run.table.sets.len(), 0);
    for (mode, objects) in [(Switch::On, 2), (Switch::Off, 0)] {
        let mut run = Run::new(mode);
        run.reach(&[1, 2]);
        run.want(0..10, &[1], None);
        assert_eq!(run.turn(), (objects, 10));
        run.want(10..20, &[1, 2], None);
        assert_eq!(run.turn().1, 10);
        assert_eq!(run.kernel.objects.is_empty(), mode == Switch::Off);
    }
}

/// A table is written in parts, each spread over all of it, and a next hop that dies in between moves
/// what is written at once.
#[test]
fn a_turn_writes_so_many_routes_and_no_more() {
    let mut run = Run::new(Switch::Auto);
    run.reach(&[1, 2]);
    run.want(ALL, &[1, 2], None);
    assert_eq!(run.turn_of(600), (3, 600));
    let written = |run: &Run, numbers: &[u8]| {
        let hops: BTreeSet<NextHop> = numbers.iter().copied().flat_map(hops).collect();
        ALL.filter(|route| run.kernel.hops(prefix(*route)) == hops).count()
    };
    assert_eq!((written(&run, &[1, 2]), written(&run, &[])), (600, 400));
    run.table.track(&[bgp(2)].into());
    assert_eq!(run.moves(), (1, 0));
    assert_eq!((written(&run, &[2]), written(&run, &[])), (600, 400));
    run.want(ALL, &[2], None);
    assert_eq!(run.turn_of(300), (0, 300), "the group has become that of the new set");
    assert_eq!(run.turn_of(300), (0, 100));
    run.assert_leads(ALL, &[2]);
    assert_eq!(run.turn(), (0, 0));
}

/// ECMP and a backup, for each cause: what moves the traffic of all routes, and what follows.
#[test]
fn a_failover_is_one_message_or_none() {
    for (hops, backup) in [(&[1, 2][..], None), (&[1][..], Some(2))] {
        // The speaker's session with the peer is gone, its link is there.
        let mut run = Run::new(Switch::Auto);
        run.reach(&[1, 2]);
        run.want(ALL, hops, backup);
        run.turn();
        assert_eq!(run.table.track(&[bgp(2)].into()), Vec::<BgpNextHop>::new());
        assert_eq!(run.moves(), (1, 0));
        run.assert_leads(ALL, &[2]);
        run.want(ALL, &[2], None);
        assert_eq!(run.turn(), (0, 0));
        run.assert_leads(ALL, &[2]);
        // And it is back.
        let new = run.table.track(&[bgp(1), bgp(2)].into());
        assert_eq!(new, [bgp(1)]);
        run.reach(&[1, 2]);
        run.want(ALL, hops, backup);
        assert_eq!(run.turn(), (2, 0), "the hop, and the group");
        run.assert_leads(ALL, if backup.is_some() { &[1] } else { &[1, 2] });

        // The link is gone: the kernel itself has moved the traffic.
        for down in [false, true] {
            let mut run = Run::new(Switch::Auto);
            run.reach(&[1, 2]);
            run.want(ALL, hops, backup);
            run.turn();
            run.link_dead(1, down);
            run.assert_leads(ALL, &[2]);
            if down {
                run.reach(&[2]);
            }
            assert_eq!(run.turn(), (0, 0));
            run.want(ALL, &[2], None);
            assert_eq!(run.turn(), (0, 0));
            run.assert_leads(ALL, &[2]);
        }
    }
}

/// A peer that tells another next hop for all its routes: they are never without one.
#[test]
fn a_next_hop_that_leaves_is_used_until_the_next_is_known() {
    let mut run = Run::new(Switch::On);
    run.reach(&[1, 2]);
    run.want(ALL, &[1], None);
    run.turn();
    run.table.track(&[bgp(2)].into());
    assert_eq!(run.moves(), (0, 0));
    assert_eq!(run.turn(), (0, 0));
    run.assert_leads(ALL, &[1]);
    run.want(ALL, &[2], None);
    assert_eq!(run.turn(), (3, 0), "the new hop, the group, the old hop");
    run.assert_leads(ALL, &[2]);
    assert_eq!(run.table.reach.resolved.len(), 1);
}

/// Most of the routes of a group go one way, some another, and some are gone.
#[test]
fn a_group_goes_with_most_of_its_routes() {
    let mut run = Run::new(Switch::Auto);
    run.reach(&[1, 2, 3]);
    run.want(ALL, &[1, 2], None);
    run.turn();
    run.want(0..900, &[2, 3], None);
    run.want(900..990, &[1, 3], None);
    run.want(990..1000, &[], None);
    let (objects, routes) = run.turn();
    assert_eq!((objects, routes), (3, 100), "a hop, two groups");
    run.assert_leads(0..900, &[2, 3]);
    run.assert_leads(900..990, &[1, 3]);
    run.assert_leads(990..1000, &[]);
}

/// A route's source is that of its own family, also where IPv4 goes by an IPv6 router, and a source that
/// comes or goes concerns routes of that family alone.
#[test]
fn each_family_has_its_own_source() {
    let v6 = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
    let both: [PrefixList; 2] = [
        (0..10).map(prefix).collect(),
        (0..20)
            .map(|n| Prefix::masked(IpAddr::from([0xfd00, n, 0, 0, 0, 0, 0, 0]), 64).unwrap())
            .collect(),
    ];
    let want = |run: &mut Run| {
        run.table.resolve([(v6(1).into(), Some(way(1)))].into());
        both.iter().for_each(|routes| run.table.want(routes, &[v6(1).into()].into(), None));
    };
    let sources = |of4: Option<u8>, of6: Option<u16>| {
        let all = [(Family::V4, of4.map(address)), (Family::V6, of6.map(v6))];
        all.into_iter().filter_map(|(family, source)| Some((family, source?))).collect::<Sources>()
    };
    let mut run = Run::new(Switch::Auto);
    want(&mut run);
    for (of4, of6, written) in [
        (Some(9), Some(9), 30),
        (Some(9), Some(9), 0),
        (None, Some(9), 10),
        (Some(8), Some(9), 10),
        (Some(8), Some(7), 20),
        (Some(8), None, 20),
        (Some(9), Some(9), 30),
    ] {
        run.table.set_sources(sources(of4, of6));
        assert_eq!(run.turn(), (0, written), "{of4:?} {of6:?}");
        assert_eq!(run.kernel.routes.len(), 30);
        for (prefix, route) in &run.kernel.routes {
            let expected = match prefix.family() {
                Family::V4 => of4.map(address),
                Family::V6 => of6.map(v6),
            };
            assert_eq!(route.source, expected, "{prefix}");
            assert_eq!(
                route.via,
                Via::Hops(way(1).next_hops(v6(1)).collect::<BTreeSet<_>>().into()),
                "{prefix}"
            );
        }
    }
    // The process after it finds them as they should be, but for one.
    let mut kernel = run.kernel.clone();
    let last = *kernel.routes.keys().next_back().unwrap();
    kernel.routes.get_mut(&last).unwrap().source = Some(v6(5));
    let table = Table::adopt(Switch::Auto, &kernel.routes, &kernel.objects);
    let mut next = Run { table, kernel };
    next.table.set_sources(sources(Some(9), Some(9)));
    want(&mut next);
    next.table.converged();
    assert_eq!(next.turn(), (0, 1));
    assert_eq!(next.kernel.routes, run.kernel.routes);
}

#[test]
fn what_others_took_away_is_put_back() {
    let mut run = Run::new(Switch::Auto);
    run.reach(&[1, 2]);
    run.want(0..10, &[1], None);
    run.want(10..20, &[1, 2], None);
    run.turn();
    run.kernel.routes.remove(&prefix(3));
    run.table.touched(prefix(3));
    assert_eq!(run.turn(), (0, 1));
    for id in run.kernel.objects.keys().copied().collect::<Vec<_>>() {
        run.kernel.remove(id);
    }
    run.look(true);
    assert_eq!(run.turn(), (3, 10));
    run.assert_leads(0..10, &[1]);
    run.assert_leads(10..20, &[1, 2]);
    assert_eq!(run.table.repairs, 11);
    // Events were lost: a route is gone, one is another, one is nobody's.
    run.kernel.routes.remove(&prefix(4));
    let mut other = run.kernel.routes[&prefix(5)].clone();
    other.source = Some(address(9));
    run.kernel.routes.insert(prefix(5), other.clone());
    run.kernel.routes.insert(prefix(99), LearnedRoute { prefix: prefix(99), ..other });
    run.table.reload(&run.kernel.routes.clone(), &run.kernel.objects.clone());
    assert_eq!(run.turn(), (0, 3));
    run.assert_leads(0..10, &[1]);
    run.assert_leads(99..100, &[]);
}

/// A new process goes on with the routes and objects of the one before.
#[test]
fn what_is_adopted_stays_until_the_speaker_has_converged() {
    let mut before = Run::new(Switch::Auto);
    before.reach(&[1, 2]);
    before.want(0..10, &[1], None);
    before.want(10..20, &[1, 2], None);
    before.want(20..30, &[1], Some(2));
    before.turn();
    let kernel = before.kernel;
    let table = Table::adopt(Switch::Auto, &kernel.routes, &kernel.objects);
    let mut run = Run { table, kernel };
    assert_eq!(run.turn(), (0, 0));
    assert_eq!(run.table.installed().0.len(), 30);
    run.reach(&[1, 2]);
    run.want(0..5, &[1], None);
    run.want(10..15, &[1, 2], None);
    run.want(20..25, &[1], Some(2));
    assert_eq!(run.turn(), (0, 0), "all is as it was");
    // A prefix that the speaker has had its say about is no longer adopted.
    run.want(5..6, &[], None);
    assert_eq!(run.turn(), (0, 1));
    run.table.converged();
    assert_eq!(run.turn(), (0, 14));
    assert_eq!(run.kernel.routes.len(), 15);
    run.assert_leads(10..15, &[1, 2]);
    run.assert_leads(20..25, &[1]);
}

#[test]
fn next_hops_behind_one_router_make_one_way() {
    let mut run = Run::new(Switch::Auto);
    let router = NextHop { gateway: Some(address(9)), ifindex: 3, onlink: false };
    let behind = Resolved { hops: [router].into(), source: None };
    run.table.resolve([(bgp(1), Some(behind.clone())), (bgp(2), Some(behind))].into());
    run.want(0..1, &[1, 2], None);
    run.want(1..2, &[1], Some(2));
    assert_eq!(run.turn(), (0, 2), "no second way, no group");
    assert_eq!(run.kernel.hops(prefix(0)), [router].into());
    run.table.resolve([(bgp(1), None), (bgp(2), None)].into());
    assert_eq!(run.turn(), (0, 2));
    assert_eq!(run.kernel.routes.len(), 0);
    assert_eq!(run.table.installed(), (PrefixList::new(), 2));
}

/// Two routers lead to one next hop: they share its traffic, and one is enough.
#[test]
fn a_next_hop_is_reached_by_all_routers_that_lead_there() {
    let mut run = Run::new(Switch::Auto);
    run.reach(&[1, FORKED]);
    run.want(ALL, &[FORKED], None);
    assert_eq!(run.turn(), (3, 1000), "two hops, a group");
    run.assert_leads(ALL, &[FORKED]);
    for link in [4, 5] {
        run.link_dead(link, false);
        assert_eq!(run.turn(), (0, 0), "the kernel has moved the traffic");
        let left: BTreeSet<NextHop> =
            hops(FORKED).filter(|hop| hop.ifindex != u32::from(link)).collect();
        for route in ALL {
            assert_eq!(run.kernel.hops(prefix(route)), left);
        }
        run.kernel.dead_links.clear();
        run.table.link(link.into(), true);
        assert_eq!(run.turn(), (2, 0), "the hop, and the group");
        run.assert_leads(ALL, &[FORKED]);
    }
    // As what another's traffic falls back to it is reached by both, too.
    run.want(ALL, &[1], Some(FORKED));
    run.turn();
    run.assert_leads(ALL, &[1]);
    run.link_dead(1, false);
    run.turn();
    run.assert_leads(ALL, &[FORKED]);
}

/// A new process finds several groups that lead the same way, and leaves each to the routes that it has.
#[test]
fn groups_that_lead_alike_are_adopted_with_their_routes() {
    let mut before = Run::new(Switch::Auto);
    let behind = |number: u8| (bgp(number), Some(way(FORKED)));
    let all: BTreeMap<_, _> = (10..40).map(behind).collect();
    before.table.resolve(all.clone());
    for number in 10..40 {
        before.want(u16::from(number) * 10..u16::from(number) * 10 + 10, &[number], None);
    }
    assert_eq!(before.turn(), (32, 300));
    let kernel = before.kernel;
    let table = Table::adopt(Switch::Auto, &kernel.routes, &kernel.objects);
    let mut run = Run { table, kernel };
    run.table.resolve(all);
    for number in (10..40).rev() {
        run.want(u16::from(number) * 10..u16::from(number) * 10 + 10, &[number], None);
    }
    run.table.converged();
    assert_eq!(run.turn(), (0, 0), "all is as it was");
}

/// As many routes that hang on a group and want another, as those that do not hang on it and want it.
#[test]
fn a_plain_route_is_not_forgotten_beside_a_group_of_its_set() {
    let mut run = Run::new(Switch::Auto);
    run.reach(&[2, 3, 4]);
    run.want(0..12, &[3, 4], None);
    run.want(0..1, &[2], None);
    run.turn();
    run.want(0..12, &[2], None);
    run.moves();
    run.reach(&[]);
    run.want(1..2, &[1], None);
    run.moves();
    run.turn();
    run.assert_leads(0..12, &[]);
}

/// The kernel takes a plain route away with its link, without a word, also one that was to be moved.
#[test]
fn a_route_that_is_due_is_not_trusted_after_its_link() {
    let mut run = Run::new(Switch::Off);
    run.reach(&[1]);
    run.want(0..300, &[1], None);
    run.turn();
    // The next hop is found by another link, and not all of it has been written.
    run.table.resolve([(bgp(1), Some(way(2)))].into());
    run.turn_of(100);
    run.link_dead(1, true);
    run.kernel.dead_links.clear();
    run.table.link(1, true);
    run.reach(&[1]);
    run.turn();
    run.assert_leads(0..300, &[1]);
}

/// Routes that this process does not know of may name a group: those of another metric, for one.
#[test]
fn a_group_of_a_process_before_stays_until_the_speaker_has_converged() {
    let mut before = Run::new(Switch::Auto);
    before.reach(&[1, 2]);
    before.want(0..10, &[1, 2], None);
    before.turn();
    let kernel = before.kernel;
    let table = Table::adopt(Switch::Auto, &BTreeMap::new(), &kernel.objects);
    let mut run = Run { table, kernel };
    run.reach(&[1, 2]);
    run.want(20..21, &[1], None);
    run.turn();
    run.assert_leads(0..10, &[1, 2]);
    run.table.converged();
    run.want(21..22, &[1], None);
    run.turn();
    assert!(run.kernel.objects.is_empty());
}

#[test]
fn numbers_of_somebody_else_are_passed_over() {
    let mut run = Run::new(Switch::Auto);
    let ids = (ObjectId::FIRST..).filter_map(ObjectId::new);
    // The group's, both hops', and what the group gets instead.
    run.kernel.foreign = ids.take(5).collect();
    run.reach(&[1, 2]);
    run.want(0..300, &[1, 2], None);
    run.turn();
    while run.table.is_behind() {
        run.turn();
    }
    run.assert_leads(0..300, &[1, 2]);
    assert!(run.kernel.routes.values().all(|route| matches!(route.via, Via::Object(_))));
    assert_eq!(run.kernel.objects.len(), 3);
}

/// Routes are plain where the kernel refuses groups, until it does not.
#[test]
fn without_groups_routes_are_plain() {
    let mut run = Run::new(Switch::Auto);
    run.kernel.refuses_groups = true;
    run.reach(&[1, 2]);
    run.want(0..10, &[1, 2], None);
    assert_eq!(run.turn(), (3, 10));
    run.assert_leads(0..10, &[1, 2]);
    assert_eq!(run.kernel.objects, BTreeMap::new());
    run.table.retry();
    assert_eq!(run.turn(), (3, 0), "tried again, and nothing else");
    run.kernel.refuses_groups = false;
    run.table.retry();
    assert_eq!(run.turn(), (3, 10));
    run.assert_leads(0..10, &[1, 2]);
    assert_eq!(run.kernel.objects.len(), 3);
}

/// What may happen between turns.
#[derive(Debug, Clone)]
enum Step {
    Want(u16, Vec<u8>, Option<u8>),
    WantAll(Vec<u8>, Option<u8>),
    Reach(Vec<u8>),
    Dead(u8, bool),
    Live(u8),
    Flush,
    Moves,
    /// One that leaves routes to be written.
    Part(usize),
    Turn,
}

fn step() -> impl Strategy<Value = Step> {
    let hops = || proptest::sample::subsequence(vec![1u8, 2, 3, 4], 0..=3);
    let backup = || proptest::option::of(1u8..=4);
    prop_oneof![
        4 => (0u16..12, hops(), backup()).prop_map(|(p, h, b)| Step::Want(p, h, b)),
        2 => (hops(), backup()).prop_map(|(h, b)| Step::WantAll(h, b)),
        2 => hops().prop_map(Step::Reach),
        1 => (1u8..=5, any::<bool>()).prop_map(|(n, down)| Step::Dead(n, down)),
        2 => (1u8..=5).prop_map(Step::Live),
        1 => Just(Step::Flush),
        1 => Just(Step::Moves),
        2 => (1usize..6).prop_map(Step::Part),
        5 => Just(Step::Turn),
    ]
}

/// The speaker gives a backup only to a single next hop, and another one than that.
fn usable(hops: &[u8], backup: Option<u8>) -> Option<u8> {
    backup.filter(|backup| hops.len() == 1 && !hops.contains(backup))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    /// Whatever happens in whatever order: after a turn packets go where they should, and there is no
    /// object that no route needs.
    #[test]
    fn the_kernel_has_what_is_wanted(
        mode in prop_oneof![Just(Switch::Auto), Just(Switch::On), Just(Switch::Off)],
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut run = Run::new(mode);
        let mut wanted: BTreeMap<u16, (Vec<u8>, Option<u8>)> = BTreeMap::new();
        let mut reached: Vec<u8> = Vec::new();
        for step in steps.into_iter().chain([Step::Turn]) {
            match step {
                Step::Want(route, hops, backup) => {
                    let backup = usable(&hops, backup);
                    run.want(route..route + 1, &hops, backup);
                    wanted.insert(route, (hops, backup));
                }
                Step::WantAll(hops, backup) => {
                    let backup = usable(&hops, backup);
                    run.want(0..12, &hops, backup);
                    wanted.extend((0..12).map(|route| (route, (hops.clone(), backup))));
                }
                Step::Reach(numbers) => {
                    run.reach(&numbers);
                    run.table.retry();
                    reached = numbers;
                }
                Step::Dead(number, down) => run.link_dead(number, down),
                Step::Live(number) => {
                    run.kernel.dead_links.remove(&number.into());
                    run.table.link(number.into(), true);
                    run.look(false);
                }
                Step::Flush => {
                    for id in run.kernel.objects.keys().copied().collect::<Vec<_>>() {
                        run.kernel.remove(id);
                    }
                    run.look(true);
                }
                Step::Moves => _ = run.moves(),
                Step::Part(limit) => _ = run.turn_of(limit),
                Step::Turn => {
                    run.turn();
                    check(&run, mode, &wanted, &reached);
                }
            }
        }
    }
}

fn check(run: &Run, mode: Switch, wanted: &BTreeMap<u16, (Vec<u8>, Option<u8>)>, reached: &[u8]) {
    let dead = |link: &u32| run.kernel.dead_links.contains(link);
    for (route, (numbers, backup)) in wanted {
        let there = |number: &&u8| reached.contains(*number);
        let works = |number: &u8| {
            hops(*number).filter(|hop| there(&number) && !dead(&hop.ifindex)).collect::<Vec<_>>()
        };
        let mut expected: BTreeSet<NextHop> = numbers.iter().flat_map(works).collect();
        if expected.is_empty() {
            expected.extend(backup.iter().flat_map(works));
        }
        let found = run.kernel.hops(prefix(*route));
        // A single next hop on a dead link may stay.
        let lost = |n: &u8| there(&n) && links(*n).iter().all(|link| dead(&u32::from(*link)));
        let alone = numbers.len() == 1 && backup.is_none() && numbers.iter().all(lost);
        assert!(found == expected || alone, "{route}: {found:?} instead of {expected:?}");
    }
    let mut needed = BTreeSet::new();
    for route in run.kernel.routes.values() {
        if let Via::Object(id) = route.via {
            needed.insert(id);
            if let Object::Group(group) = &run.kernel.objects[&id] {
                needed.extend(group.members.iter().chain(&group.backup));
            }
        }
    }
    let there: BTreeSet<ObjectId> = run.kernel.objects.keys().copied().collect();
    assert_eq!(there, needed);
    assert!(mode != Switch::Off || there.is_empty());
    assert_eq!(run.table.installed().0.len(), run.kernel.routes.len());
}
