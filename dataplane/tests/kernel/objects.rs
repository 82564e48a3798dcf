use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use twill_dataplane::{
    NextHop,
    fib::{
        Fib, FibChange, FibConfig, Group, LearnedRoute, Object, ObjectChange, ObjectId, Via,
        set_compat,
    },
};

use crate::common::*;

/// How many routes hang on one group: enough to see that none is told of by itself.
const ROUTES: u32 = 1000;

fn id(number: u32) -> ObjectId {
    ObjectId::new(ObjectId::FIRST + number).unwrap()
}

/// Two links, each to a router of its own: `one` in 192.168.1.0/24, `two` in 192.168.2.0/24.
fn two_links() {
    for (number, link) in [(1, "one"), (2, "two")] {
        ip(&format!("link add {link} type veth peer name far-{link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("link set far-{link} up"));
        ip(&format!("address add 192.168.{number}.11/24 dev {link}"));
        ip(&format!("address add fd00:{number}::11/64 dev {link} nodad"));
    }
}

fn hop(link: &str, gateway: &str) -> Object {
    let ifindex = ip(&format!("-o link show {link}")).split(':').next().unwrap().parse().unwrap();
    Object::Hop(NextHop { gateway: Some(gateway.parse().unwrap()), ifindex, onlink: false })
}

fn group(members: &[u32], backup: Option<u32>, guarded: bool) -> Group {
    let members = members.iter().map(|number| id(*number)).collect();
    Group { members, backup: backup.map(id), guarded }
}

/// A namespace with hops 1 and 2, and routes by group 10.
fn with_routes(first: Group, test: impl FnOnce(Fib) + Send + 'static) {
    on_a_node(|| {
        two_links();
        let mut fib = Fib::open(FibConfig::default()).unwrap();
        let create = [
            ObjectChange::Create(id(1), hop("one", "192.168.1.1")),
            ObjectChange::Create(id(2), hop("two", "192.168.2.1")),
            ObjectChange::Create(id(10), Object::Group(first)),
        ];
        assert_eq!(fib.apply_objects(&create).unwrap(), []);
        let route = |index: u32| {
            let prefix = format!("10.{}.{}.0/24", 20 + index / 256, index % 256).parse().unwrap();
            let (via, source) = (Via::Object(id(10)), Some([192, 168, 1, 11].into()));
            FibChange::Replace(LearnedRoute { prefix, via, source })
        };
        assert_eq!(fib.apply(&(0..ROUTES).map(route).collect::<Vec<_>>()).unwrap(), []);
        test(fib);
    });
}

/// The gateways to which the kernel sends packets to many addresses.
fn gateways() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for host in 0..64 {
        let way = ip(&format!("route get 10.20.0.{host} from 192.168.1.11"));
        let gateway = way.split_whitespace().skip_while(|word| *word != "via").nth(1);
        *found.entry(gateway.unwrap().to_owned()).or_default() += 1;
    }
    found
}

fn only(gateway: &str) -> BTreeMap<String, usize> {
    BTreeMap::from([(gateway.to_owned(), 64)])
}

#[test]
fn objects_come_change_and_go() {
    with_routes(group(&[1], None, false), |mut fib| {
        let found = fib.objects().unwrap();
        assert_eq!(found[&id(1)], hop("one", "192.168.1.1"));
        assert_eq!(found[&id(10)], Object::Group(group(&[1], None, false)));
        assert_eq!(gateways(), only("192.168.1.1"));
        let learned = fib.learned().unwrap();
        assert_eq!(learned.len(), ROUTES as usize);
        assert!(learned.values().all(|route| route.via == Via::Object(id(10))));
        // Never in the place of another, not even of our own.
        let create = ObjectChange::Create(id(1), hop("two", "192.168.2.1"));
        assert_eq!(fib.apply_objects(&[create]).unwrap().len(), 1);
        let replace = ObjectChange::Replace(id(10), group(&[1, 2], None, false));
        assert_eq!(fib.apply_objects(&[replace]).unwrap(), []);
        assert_eq!(gateways().len(), 2);
        // With their group all routes go.
        let delete = [10, 1, 2, 3].map(|number| ObjectChange::Delete(id(number)));
        assert_eq!(fib.apply_objects(&delete).unwrap(), []);
        assert_eq!(fib.learned().unwrap(), BTreeMap::new());
        assert_eq!(ip("nexthop show"), "");
    });
}

/// A backup gets no packet while there is a member, and all of them at once when there is none.
#[test]
fn a_backup_takes_over_by_the_kernel_alone() {
    type Cause = fn(&mut Fib);
    let causes: [(&str, Cause); 3] = [
        ("the hop is deleted", |fib| {
            assert_eq!(fib.apply_objects(&[ObjectChange::Delete(id(1))]).unwrap(), []);
        }),
        ("the carrier is lost", |_| _ = ip("link set far-one down")),
        ("the link goes down", |_| _ = ip("link set one down")),
    ];
    for compat in [true, false] {
        for (name, cause) in causes {
            with_routes(group(&[1], Some(2), true), move |mut fib| {
                set_compat(compat).unwrap();
                assert_eq!(gateways(), only("192.168.1.1"), "{name}");
                cause(&mut fib);
                // The kernel's link watch notices the loss of a carrier within a second.
                let deadline = Instant::now() + Duration::from_secs(10);
                while name.contains("carrier") && gateways() != only("192.168.2.1") {
                    assert!(Instant::now() < deadline, "{name}: {:?}", gateways());
                }
                assert_eq!(gateways(), only("192.168.2.1"), "{name}");
                let found = fib.objects().unwrap();
                assert_eq!(found[&id(10)], Object::Group(group(&[2], None, true)), "{name}");
                assert_eq!(fib.learned().unwrap().len(), ROUTES as usize, "{name}");
            });
        }
    }
}

/// A guarded group of several shares like one by hash; who returns has its share at once.
#[test]
fn a_guarded_group_shares_the_traffic() {
    with_routes(group(&[1, 2], None, true), |mut fib| {
        let shares = || gateways().into_values().collect::<Vec<_>>();
        assert!(shares().iter().all(|share| *share > 16), "{:?}", gateways());
        let alone = ObjectChange::Replace(id(10), group(&[2], Some(1), true));
        assert_eq!(fib.apply_objects(&[alone]).unwrap(), []);
        assert_eq!(gateways(), only("192.168.2.1"));
        let both = ObjectChange::Replace(id(10), group(&[1, 2], None, true));
        assert_eq!(fib.apply_objects(&[both]).unwrap(), []);
        assert!(shares().iter().all(|share| *share > 16), "{:?}", gateways());
    });
}

#[test]
fn ipv4_by_an_ipv6_router_and_ipv6() {
    on_a_node(|| {
        two_links();
        let mut fib = Fib::open(FibConfig::default()).unwrap();
        let create = [
            ObjectChange::Create(id(1), hop("one", "fe80::1")),
            ObjectChange::Create(id(2), hop("two", "fd00:2::1")),
            ObjectChange::Create(id(10), Object::Group(group(&[1], Some(2), true))),
        ];
        assert_eq!(fib.apply_objects(&create).unwrap(), []);
        let route = |to: &str| {
            let (prefix, via) = (to.parse().unwrap(), Via::Object(id(10)));
            FibChange::Replace(LearnedRoute { prefix, via, source: None })
        };
        assert_eq!(fib.apply(&[route("10.10.0.0/26"), route("fd00:10::/122")]).unwrap(), []);
        assert!(ip("route get 10.10.0.1").contains("via inet6 fe80::1 dev one"));
        assert!(ip("route get fd00:10::1").contains("via fe80::1 dev one"));
        ip("link set one down");
        assert!(ip("route get 10.10.0.1").contains("via inet6 fd00:2::1 dev two"));
        assert!(ip("route get fd00:10::1").contains("via fd00:2::1 dev two"));
        // The plain form of the same, for `nexthopObjects: off`.
        let ifindex = ip("-o link show two").split(':').next().unwrap().parse().unwrap();
        let gateway = Some("fd00:2::1".parse().unwrap());
        let hops = [NextHop { gateway, ifindex, onlink: false }].into();
        let plain = LearnedRoute {
            prefix: "10.10.0.64/26".parse().unwrap(),
            via: Via::Hops(Arc::new(hops)),
            source: None,
        };
        assert_eq!(fib.apply(&[FibChange::Replace(plain.clone())]).unwrap(), []);
        assert_eq!(fib.learned().unwrap()[&plain.prefix], plain);
    });
}

/// Others' objects are neither seen nor touched.
#[test]
fn foreign_objects_survive() {
    on_a_node(|| {
        two_links();
        ip("nexthop add id 5 via 192.168.1.9 dev one proto static");
        ip(&format!("nexthop add id {} via 192.168.1.9 dev one proto static", ObjectId::FIRST + 1));
        let before = ip("nexthop show");
        let mut fib = Fib::open(FibConfig::default()).unwrap();
        assert_eq!(fib.objects().unwrap(), BTreeMap::new());
        let create = ObjectChange::Create(id(1), hop("one", "192.168.1.1"));
        let refused = fib.apply_objects(&[create]).unwrap();
        assert_eq!(refused.len(), 1, "{refused:?}");
        assert_eq!(ip("nexthop show"), before);
    });
}
