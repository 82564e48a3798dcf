use std::time::{Duration, Instant};

use twill_dataplane::pod::{
    DelMode, DelOutcome, PodLink, check_pod, del_pod, delete_group_links, delete_parked_links,
    host_links, pod_links, remove_leftover,
};

use crate::common::*;

/// What stays of the node's own.
const GATEWAY: &str = "169.254.1.1 dev lo scope link";

const GROUP: u32 = twill_types::DELETE_GROUP;

#[track_caller]
fn assert_removed(outcome: DelOutcome, expected: impl Into<Option<u64>>) {
    let expected = expected.into();
    match outcome {
        DelOutcome::Removed { sequence, .. } => assert_eq!(sequence, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_deferred_del_cuts_off_at_once_and_makes_way_for_the_next_add() {
    on_a_node(|| {
        let pod = pod_netns();
        let addresses = ["10.10.0.5", "fd00:10::5"];
        let link = PodLink { pod_name: Some("web-1".into()), ..pod_link("a", &addresses) };
        let up = add(&link, &pod);
        let del = || del_pod(&link.attachment, Some(5), Some(&pod), DelMode::Deferred).unwrap();
        assert_removed(del(), 5);
        assert_eq!(del(), DelOutcome::Absent);

        let shown = ip(&format!("-o link show group {GROUP}"));
        assert!(shown.contains(&format!("twd{}@", up.host_ifindex)), "{shown}");
        assert!(shown.contains("state DOWN") && !shown.contains("web-1"), "{shown}");
        assert_eq!(ip("route show proto 116"), GATEWAY);
        assert_eq!(ip("-6 route show proto 116"), "");
        assert_eq!(ip_in(&pod, "-o address show scope global"), "");
        assert!(!ip_in(&pod, "-o link show").contains("eth0"));
        assert_eq!(pod_links().unwrap(), []);

        let next = PodLink { sequence: 6, ..link.clone() };
        add(&next, &pod);
        assert_eq!(check_pod(&next.expected(), &pod).unwrap(), []);
        assert_eq!(delete_group_links(10, || true).unwrap(), 1);
        assert_eq!(delete_group_links(10, || true).unwrap(), 0);
        assert_eq!(ip(&format!("link show group {GROUP}")), "");
        assert_eq!(check_pod(&next.expected(), &pod).unwrap(), []);
    });
}

/// A pod with the right to do so must not be able to keep itself from being cut off.
#[test]
fn a_pod_with_thousands_of_addresses_is_cut_off_too() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        add(&link, &pod);
        let commands: String =
            (0..3000).map(|n| format!("address add fd00::{n:x}/128 dev eth0 nodad\n")).collect();
        pod.enter(|| batch(&commands)).unwrap();
        let outcome = del_pod(&link.attachment, Some(5), Some(&pod), DelMode::Deferred).unwrap();
        assert_removed(outcome, 5);
        assert_eq!(ip("route show proto 116"), GATEWAY);
        let next = PodLink { sequence: 6, ..link };
        add(&next, &pod);
        assert_eq!(check_pod(&next.expected(), &pod).unwrap(), []);
    });
}

#[test]
fn an_immediate_del_leaves_nothing() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        add(&link, &pod);
        let del = || del_pod(&link.attachment, None, Some(&pod), DelMode::Immediate).unwrap();
        assert_removed(del(), 5);
        assert_eq!(del(), DelOutcome::Absent);
        assert_eq!(ip("-o link show").lines().count(), 1);
        assert_eq!(ip_in(&pod, "-o link show").lines().count(), 1);
    });
}

#[test]
fn a_late_del_spares_the_newer_link() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        add(&link, &pod);
        for mode in [DelMode::Deferred, DelMode::Immediate] {
            let outcome = del_pod(&link.attachment, Some(4), None, mode).unwrap();
            assert_eq!(outcome, DelOutcome::Newer { sequence: 5 });
        }
        assert_eq!(check_pod(&link.expected(), &pod).unwrap(), []);
        let outcome = del_pod(&link.attachment, Some(9), None, DelMode::Deferred).unwrap();
        assert_removed(outcome, 5);
    });
}

#[test]
fn a_del_needs_no_namespace() {
    on_a_node(|| {
        // The namespace is there, but the runtime does not say where.
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        add(&link, &pod);
        let outcome = del_pod(&link.attachment, None, None, DelMode::Deferred).unwrap();
        assert_removed(outcome, 5);
        assert_eq!(ip("route show proto 116"), GATEWAY);
        // The runtime names the namespace of another pod, where another link has the same index.
        let (one, two) = (pod_netns(), pod_netns());
        let (first, second) = (pod_link("b", &["10.10.0.6"]), pod_link("c", &["10.10.0.7"]));
        add(&first, &one);
        add(&second, &two);
        for mode in [DelMode::Deferred, DelMode::Immediate] {
            let outcome = del_pod(&first.attachment, None, Some(&two), mode).unwrap();
            assert_eq!(outcome, DelOutcome::Elsewhere { sequence: Some(5) });
            assert_eq!(check_pod(&first.expected(), &one).unwrap(), []);
        }
        let outcome = del_pod(&first.attachment, None, None, DelMode::Deferred).unwrap();
        assert_removed(outcome, 5);
        assert_eq!(check_pod(&second.expected(), &two).unwrap(), []);
        // The namespace dies, and the link with it, before or after.
        let third = pod_link("d", &["10.10.0.8"]);
        let dying = pod_netns();
        add(&third, &dying);
        drop(dying);
        del_pod(&third.attachment, None, None, DelMode::Deferred).unwrap();
        delete_group_links(10, || true).unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while ip("-o link show").contains("twd") {
            assert!(Instant::now() < deadline, "{}", ip("link show"));
            std::thread::yield_now();
        }
        let outcome = del_pod(&third.attachment, None, None, DelMode::Deferred).unwrap();
        assert_eq!(outcome, DelOutcome::Absent);
    });
}

#[test]
fn a_del_after_a_dead_add() {
    on_a_node(|| {
        let link = pod_link("a", &["10.10.0.5"]);
        ip(&format!("link add {} type veth peer name other", link.host_ifname()));
        let outcome = del_pod(&link.attachment, Some(1), None, DelMode::Deferred).unwrap();
        assert_removed(outcome, None);
        assert_eq!(delete_group_links(10, || true).unwrap(), 1);
    });
}

/// The ADD for another namespace has made it this moment, and says whose it is in the next.
#[test]
fn a_del_spares_a_link_without_alias_that_leads_to_another_namespace() {
    on_a_node(|| {
        let (pod, left) = (pod_netns(), pod_netns());
        let link = pod_link("a", &["10.10.0.5"]);
        let name = link.host_ifname();
        add(&link, &pod);
        batch(&format!("link set dev {name} alias \"\"\n"));
        for mode in [DelMode::Deferred, DelMode::Immediate] {
            let outcome = del_pod(&link.attachment, None, Some(&left), mode).unwrap();
            assert_eq!(outcome, DelOutcome::Elsewhere { sequence: None });
            ip(&format!("link show dev {name} up"));
        }
        let outcome = del_pod(&link.attachment, None, Some(&pod), DelMode::Deferred).unwrap();
        assert_removed(outcome, None);
    });
}

/// The name is a hash of the attachment, so the pod has not gone with the alias, nor has its address.
#[test]
fn a_del_cuts_off_a_link_whose_alias_is_overwritten() {
    on_a_node(|| {
        let (pod, other) = (pod_netns(), pod_netns());
        let link = pod_link("a", &["10.10.0.5"]);
        let name = link.host_ifname();
        let del = |sequence, netns, mode| del_pod(&link.attachment, sequence, netns, mode).unwrap();
        for netns in [Some(&pod), None] {
            for mode in [DelMode::Deferred, DelMode::Immediate] {
                add(&link, &pod);
                ip(&format!("link set dev {name} alias somebody"));
                // Who means the link of one ADD does not mean this one.
                assert_eq!(del(Some(5), netns, mode), DelOutcome::Absent);
                let outcome = del(None, Some(&other), mode);
                assert_eq!(outcome, DelOutcome::Elsewhere { sequence: None });
                ip(&format!("link show dev {name} up"));
                assert_removed(del(None, netns, mode), None);
                assert_eq!(ip("route show proto 116"), GATEWAY);
                delete_group_links(10, || true).unwrap();
                assert_eq!(ip("-o link show").lines().count(), 1);
            }
        }
        // Of another attachment with the same hash, and no link of ours at all.
        add(&link, &pod);
        ip(&format!("link set dev {name} alias twill;seq=1;net=n;id=c;if=e"));
        assert_eq!(del(None, Some(&pod), DelMode::Immediate), DelOutcome::Absent);
        ip(&format!("link show dev {name} up"));
        ip(&format!("link del {name}"));
        ip(&format!("link add {name} type bridge"));
        ip(&format!("link set dev {name} alias somebody"));
        assert_eq!(del(None, None, DelMode::Immediate), DelOutcome::Absent);
        ip(&format!("link show {name}"));
    });
}

#[test]
fn a_taken_name_makes_the_deletion_immediate() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5"]);
        let up = add(&link, &pod);
        ip(&format!("link add twd{} type veth peer name other", up.host_ifindex));
        let outcome = del_pod(&link.attachment, None, Some(&pod), DelMode::Deferred).unwrap();
        assert_removed(outcome, 5);
        assert!(!ip("-o link show").contains(&up.host_ifname));
        ip("link show other");
    });
}

#[test]
fn a_parked_link_is_deleted_by_its_index() {
    on_a_node(|| {
        let pods = [pod_netns(), pod_netns(), pod_netns()];
        let links = [1, 2, 3].map(|n| pod_link(&format!("c{n}"), &[&format!("10.10.0.{n}")]));
        let ups: Vec<_> = links.iter().zip(&pods).map(|(link, pod)| add(link, pod)).collect();
        let mut parked = Vec::new();
        for (link, pod) in links.iter().zip(&pods).take(2) {
            match del_pod(&link.attachment, None, Some(pod), DelMode::Deferred).unwrap() {
                DelOutcome::Removed { parked: Some(index), .. } => parked.push(index),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(parked, [ups[0].host_ifindex, ups[1].host_ifindex]);
        // Neither one that is in use nor one that is not there is a reason to stop.
        let named = [ups[2].host_ifindex, 1, 9999, parked[0], parked[0]];
        assert_eq!(delete_parked_links(&named, 2).unwrap(), 1);
        assert_eq!(check_pod(&links[2].expected(), &pods[2]).unwrap(), []);
        assert!(ip("-o link show").contains(&format!("twd{}@", parked[1])));
        assert_eq!(delete_parked_links(&parked, 10).unwrap(), 1);
        assert_eq!(delete_group_links(10, || true).unwrap(), 0);
    });
}

#[test]
fn links_are_deleted_in_batches() {
    on_a_node(|| {
        for index in 0..13 {
            ip(&format!("link add a{index} group {GROUP} type veth peer name b{index}"));
        }
        let mut first = true;
        assert_eq!(delete_group_links(10, || std::mem::take(&mut first)).unwrap(), 10);
        assert_eq!(ip("-o link show type veth").lines().count(), 6);
        // A link that cannot be deleted spoils a group delete; the others go one by one.
        ip(&format!("link set lo group {}", GROUP + 1));
        assert_eq!(delete_group_links(10, || true).unwrap(), 3);
        assert_eq!(ip("-o link show").lines().count(), 1);
        assert_eq!(delete_group_links(10, || true).unwrap(), 0);
    });
}

#[test]
fn a_leftover_goes_as_by_a_del_and_nothing_else_does() {
    on_a_node(|| {
        let pod = pod_netns();
        let link = pod_link("a", &["10.10.0.5", "fd00:10::5"]);
        // What merely begins like one of ours, and one whose ADD died before it gave it a name.
        ip("link add twlan0 type veth peer name other");
        let dead = twill_types::host_link_name(&attachment("b"));
        ip(&format!("link add {dead} type veth peer name dead"));
        add(&link, &pod);
        let names = |links: Vec<twill_dataplane::Link>| {
            let mut names: Vec<_> = links.into_iter().map(|link| link.name).collect();
            names.sort();
            names
        };
        let mut ours = vec![link.host_ifname(), dead.clone()];
        ours.sort();
        assert_eq!(names(host_links().unwrap()), ours);

        // It has changed since it was found: an ADD has gone on with it.
        let found = host_links().unwrap();
        ip(&format!("link set {dead} alias twill;seq=1;net=n;id=c;if=e"));
        ip(&format!("link set {} down", link.host_ifname()));
        for link in &found {
            assert!(!remove_leftover(link).unwrap(), "{link:?}");
        }
        ip(&format!("link set {} up", link.host_ifname()));
        for link in &host_links().unwrap() {
            assert!(remove_leftover(link).unwrap(), "{link:?}");
        }
        assert_eq!(host_links().unwrap(), []);
        assert_eq!(ip("route show proto 116"), GATEWAY);
        assert_eq!(ip("-6 route show proto 116"), "");
        assert_eq!(delete_group_links(10, || true).unwrap(), 2);
        assert!(!ip_in(&pod, "-o link show").contains("eth0"));
        assert!(found.iter().all(|link| !remove_leftover(link).unwrap()), "they are gone");
        ip("link show twlan0");
        // The pod can be attached again.
        drop(prepare(&link, &pod).unwrap());
    });
}
