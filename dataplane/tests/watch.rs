//! The kernel's events, in network namespaces of their own. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends with the first surprise")]

mod common;

use std::{net::IpAddr, sync::Arc, time::Duration};

use common::*;
use twill_dataplane::{
    NextHop,
    fib::{Fib, FibChange, FibConfig, LearnedRoute, Object, ObjectChange, ObjectId, Via},
    nat::{Masquerade, Nat, RulesEvent, RulesEvents},
    watch::{Event, Events},
};
use twill_types::Prefix;

/// Runs a test on a node with an uplink and a runtime; sockets are opened on the node's thread.
fn watching(test: impl AsyncFnOnce(Events, Fib) + Send + 'static) {
    on_a_node(|| {
        uplink();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let fib = Fib::open(FibConfig::default()).unwrap();
            let mut events = Events::open([fib.port().unwrap()]).unwrap();
            settle(&mut events).await;
            test(events, fib).await;
        });
    });
}

/// Reads what the making of the uplink still causes, up to a mark of our own.
async fn settle(events: &mut Events) {
    ip("address add 10.255.255.1/32 dev lo");
    let mark: std::net::IpAddr = "10.255.255.1".parse().unwrap();
    while !matches!(next(events).await, Event::AddressAdded { address, .. } if address == mark) {}
}

async fn next(events: &mut Events) -> Event {
    tokio::time::timeout(Duration::from_secs(30), events.next()).await.expect("no event").unwrap()
}

/// The next event that `wanted` takes.
async fn wait_for(events: &mut Events, wanted: impl Fn(&Event) -> bool) -> Event {
    loop {
        let event = next(events).await;
        if wanted(&event) {
            return event;
        }
    }
}

#[test]
fn links_and_addresses() {
    watching(async |mut events, _| {
        ip("address add 192.168.2.12/24 dev uplink");
        let added = |e: &Event| matches!(e, Event::AddressAdded { address, .. } if address.to_string() == "192.168.2.12");
        wait_for(&mut events, added).await;
        ip("address delete 192.168.2.12/24 dev uplink");
        let removed = |e: &Event| matches!(e, Event::AddressRemoved { address, .. } if address.to_string() == "192.168.2.12");
        wait_for(&mut events, removed).await;
        ip("link set router down");
        let no_carrier = |e: &Event| matches!(e, Event::LinkChanged(l) if l.name == "uplink" && l.up && !l.carrier);
        wait_for(&mut events, no_carrier).await;
        ip("link set uplink group 77");
        let grouped =
            |e: &Event| matches!(e, Event::LinkChanged(l) if l.name == "uplink" && l.group == 77);
        wait_for(&mut events, grouped).await;
        ip("link delete uplink");
        let deleted = |e: &Event| matches!(e, Event::LinkDeleted(l) if l.name == "uplink");
        wait_for(&mut events, deleted).await;
    });
}

#[test]
fn only_others_removals_of_our_routes_are_told() {
    watching(async |mut events, mut fib| {
        let route = |to: &str| {
            let ifindex = ip("-o link show uplink").split(':').next().unwrap().parse().unwrap();
            let gateway = Some("192.168.2.1".parse().unwrap());
            LearnedRoute {
                prefix: to.parse().unwrap(),
                via: Via::Hops(Arc::new([NextHop { gateway, ifindex, onlink: false }].into())),
                source: None,
            }
        };
        let (one, two) = (route("10.10.0.0/26"), route("10.10.0.64/26"));
        let changes = [
            FibChange::Replace(one.clone()),
            FibChange::Replace(two.clone()),
            FibChange::Delete(one.prefix),
        ];
        assert_eq!(fib.apply(&changes).unwrap(), []);
        ip("route delete 10.10.0.64/26");
        let removed = |e: &Event| matches!(e, Event::RouteRemoved { .. });
        let event = wait_for(&mut events, removed).await;
        assert_eq!(event, Event::RouteRemoved { prefix: two.prefix, metric: 512 });
    });
}

#[test]
fn many_changes_of_foreign_routes_are_one_event() {
    watching(async |mut events, _| {
        for index in 0..50 {
            ip(&format!("route add 10.20.{index}.0/24 via 192.168.2.1"));
        }
        ip("address delete 10.255.255.1/32 dev lo");
        let (mut foreign, mut end) = (0, false);
        while !(end && foreign > 0) {
            let event = next(&mut events).await;
            foreign += usize::from(event == Event::ForeignRoutesChanged);
            end |= matches!(event, Event::AddressRemoved { .. });
        }
        assert_eq!(foreign, 1);
    });
}

#[test]
fn an_overrun_asks_for_a_resync() {
    watching(async |mut events, _| {
        // More than the receive queue holds, by somebody else; nobody reads meanwhile.
        let route = |index: u32| {
            format!("route add 10.{}.{}.0/24 via 192.168.2.1\n", 20 + index / 256, index % 256)
        };
        batch(&(0..20_000).map(route).collect::<String>());
        wait_for(&mut events, |event| *event == Event::Resync).await;
        // And it goes on.
        ip("link set router down");
        wait_for(&mut events, |e| matches!(e, Event::LinkChanged(l) if l.name == "router")).await;
    });
}

/// A large table that is written leaves room for what others do meanwhile.
#[test]
fn own_routes_do_not_fill_the_queue() {
    watching(async |mut events, mut fib| {
        let ifindex = ip("-o link show uplink").split(':').next().unwrap().parse().unwrap();
        let gateway = Some("192.168.2.1".parse().unwrap());
        let hops = Arc::new([NextHop { gateway, ifindex, onlink: false }].into());
        let route = |index: u32| {
            let text = format!("10.{}.{}.0/24", 20 + index / 256, index % 256);
            let via = Via::Hops(Arc::clone(&hops));
            FibChange::Replace(LearnedRoute { prefix: text.parse().unwrap(), via, source: None })
        };
        let changes: Vec<_> = (0..20_000).map(route).collect();
        assert_eq!(fib.apply(&changes).unwrap(), []);
        ip("route delete 10.20.7.0/24");
        ip("route replace 10.20.8.0/24 via 192.168.2.2 metric 512 proto 116");
        let prefix = |text: &str| text.parse().unwrap();
        let removed = Event::RouteRemoved { prefix: prefix("10.20.7.0/24"), metric: 512 };
        let ours = |e: &Event| !matches!(e, Event::LinkChanged(_));
        assert_eq!(wait_for(&mut events, ours).await, removed);
        let changed = Event::RouteChanged { prefix: prefix("10.20.8.0/24"), metric: 512 };
        assert_eq!(wait_for(&mut events, ours).await, changed);
    });
}

#[test]
fn only_others_changes_of_our_objects_are_told() {
    watching(async |mut events, mut fib| {
        let ifindex = ip("-o link show uplink").split(':').next().unwrap().parse().unwrap();
        let id = |number: u32| ObjectId::new(ObjectId::FIRST + number).unwrap();
        for number in 0..3 {
            let gateway = Some(IpAddr::from([192, 168, 2, 1 + number]));
            let hop = Object::Hop(NextHop { gateway, ifindex, onlink: false });
            let create = ObjectChange::Create(id(number.into()), hop);
            assert_eq!(fib.apply_objects(&[create]).unwrap(), []);
        }
        ip("nexthop add id 77 via 192.168.2.9 dev uplink");
        ip("nexthop flush proto 116");
        ip("address add 10.255.255.2/32 dev lo");
        let told = |e: &Event| !matches!(e, Event::LinkChanged(_));
        assert_eq!(wait_for(&mut events, told).await, Event::ObjectsChanged);
        // One for all of them.
        assert!(matches!(wait_for(&mut events, told).await, Event::AddressAdded { .. }));
        assert_eq!(fib.objects().unwrap(), std::collections::BTreeMap::new());
    });
}

fn nft(arguments: &str) {
    let nft = std::process::Command::new("nft").args(arguments.split_whitespace()).status();
    assert!(nft.unwrap().success(), "nft {arguments}");
}

async fn rules(events: &mut RulesEvents) -> RulesEvent {
    tokio::time::timeout(Duration::from_secs(30), events.next()).await.expect("no event").unwrap()
}

#[test]
fn what_others_do_to_the_packet_filter_is_told() {
    watching(async |_, _| {
        let pool: Prefix = "10.10.0.0/20".parse().unwrap();
        let way_out = Masquerade { sources: [pool].into(), pools: [pool].into() };
        let mut nat = Nat::open().unwrap();
        let mut events = RulesEvents::open(nat.port().unwrap()).unwrap();
        nat.apply(&way_out).unwrap();
        nft("add table ip other");
        // Not of our own table, which was made first.
        assert_eq!(rules(&mut events).await, RulesEvent { ours: false, others: true });
        // A flush takes the table away only when nobody owns it.
        nft("flush ruleset");
        assert_eq!(rules(&mut events).await, RulesEvent { ours: false, others: true });
        drop(nat);
        nft("flush ruleset");
        assert_eq!(rules(&mut events).await, RulesEvent { ours: true, others: false });
    });
}

#[test]
fn what_others_take_from_a_pod_is_told() {
    watching(async |mut events, _| {
        let netns = pod_netns();
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        let up = add(&link, &netns);
        let ifindex = up.host_ifindex;
        wait_for(&mut events, |e| *e == Event::PodLinkUp { ifindex }).await;
        let name = up.host_ifname;
        for address in ["10.10.0.5", "fd00:10::5"] {
            ip(&format!("route delete {address} dev {name}"));
            let address = address.parse().unwrap();
            let removed = Event::HostRouteRemoved { address, ifindex };
            wait_for(&mut events, |e| *e == removed).await;
        }
        set_sysctl(&format!("ipv4/conf/{name}/proxy_arp"), "0");
        let changed = Event::SettingsChanged { ifindex: Some(ifindex) };
        wait_for(&mut events, |e| *e == changed).await;
        set_sysctl("ipv4/conf/all/rp_filter", "2");
        wait_for(&mut events, |e| *e == Event::SettingsChanged { ifindex: None }).await;
        ip(&format!("link set {name} down"));
        ip(&format!("link set {name} up"));
        // A new link tells its settings, and nobody has changed them.
        let told = |e: &Event| matches!(e, Event::PodLinkUp { .. } | Event::SettingsChanged { .. });
        assert_eq!(wait_for(&mut events, told).await, Event::PodLinkUp { ifindex });
        let second = add(&pod_link("b", &["10.10.0.6"]), &pod_netns());
        let ifindex = second.host_ifindex;
        assert_eq!(wait_for(&mut events, told).await, Event::PodLinkUp { ifindex });
    });
}
