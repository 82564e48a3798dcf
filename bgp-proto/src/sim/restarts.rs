//! This node restarts, alone or with all others (RFC 4724 section 4.1).

use super::{
    script::{Says, Script},
    *,
};
use crate::{
    Reflection,
    wire::{self, GracefulRestart, MessageType, RouteRefresh},
};

const BOTH: [Family; 2] = [Family::V4, Family::V6];
const SECOND: Duration = Duration::from_secs(1);

/// R, and the families with F.
fn bits(script: &Script, peer: usize) -> (bool, Vec<Family>) {
    let open = script.opened(peer);
    let GracefulRestart { restarting, notification, families, .. } =
        open.graceful_restart().cloned().unwrap();
    assert!(notification);
    let forwarding = families.iter().filter(|entry| entry.forwarding).map(|entry| entry.family);
    (restarting, forwarding.collect())
}

/// RFC 4724 sections 3 and 4.1: F of the families whose routes were found, R until all is known, also
/// where none were.
#[test]
fn the_bits_say_what_was_found() {
    for found in [&[][..], &BOTH[..1], &BOTH[1..], &BOTH[..]] {
        let mut script = Script::new(found, 2, |_| {});
        script.connect(1, &Says::restart());
        assert_eq!(bits(&script, 1), (true, found.to_vec()));
        script.end_of_rib(1, Family::V4);
        script.end_of_rib(1, Family::V6);
        script.connect(2, &Says::restart());
        assert_eq!(bits(&script, 2), (true, found.to_vec()), "not converged yet");
        script.end_of_rib(2, Family::V4);
        script.end_of_rib(2, Family::V6);
        script.lose(2);
        script.connect(2, &Says::restart());
        assert!(!bits(&script, 2).0, "the restart is over");
    }
}

/// RFC 4724 section 3: a session that breaks is no restart, and forwarding went on: with F clear the
/// peer would drop our routes as we come back.
#[test]
fn a_session_that_breaks_does_not_end_forwarding() {
    let mut script = Script::new(&[], 2, |_| {});
    script.connect(1, &Says::restart());
    assert_eq!(bits(&script, 1).1, []);
    script.lose(1);
    script.connect(1, &Says::restart());
    assert_eq!(bits(&script, 1).1, BOTH);
    // What one has seen says nothing about another, which may have known this node before a reboot.
    script.connect(2, &Says::restart());
    assert_eq!(bits(&script, 2).1, []);
}

/// Own routes wait for nobody: they follow the KEEPALIVE, and End-of-RIB follows them.
#[test]
fn own_routes_are_announced_at_once() {
    let mut script = Script::new(&BOTH, 2, |_| {});
    script.connect(1, &Says::restart());
    assert_eq!(script.converged, None);
    let told = script.told(1);
    let kinds: Vec<MessageType> = told.iter().map(|(kind, _)| *kind).collect();
    let update = MessageType::Update;
    let expected = [MessageType::Open, MessageType::Keepalive, update, update, update];
    assert_eq!(kinds, expected);
    assert!(told[2].1.ends_with(&[24, 10, 0, 0]), "{:02x?}", told[2].1);
    assert_eq!(told[3].1, [0; 4], "End-of-RIB");
}

#[test]
fn every_peer_that_helps_is_waited_for() {
    let mut script = Script::new(&BOTH, 2, |_| {});
    script.connect(1, &Says::restart());
    script.end_of_rib(1, Family::V4);
    script.end_of_rib(1, Family::V6);
    let awaited = [1, 2].map(|peer| script.snapshot(peer).awaited);
    assert_eq!((awaited, &script.converged), ([false, true], &None));
    script.connect(2, &Says::restart());
    script.wait(SECOND * 5);
    script.end_of_rib(2, Family::V4);
    assert_eq!(script.converged, None);
    script.end_of_rib(2, Family::V6);
    assert_eq!(script.converged, Some(vec![]));
    assert!(!script.snapshot(2).awaited);
}

/// RFC 4724 section 4.1: one without graceful restart sends no End-of-RIB, and one that restarts may
/// wait for ours first. They get 5 s for what they have in hand, not more.
#[test]
fn who_may_wait_himself_is_not_waited_for() {
    let restarting = Says { restarting: true, ..Says::restart() };
    for (says, reflects) in [
        (&Says::default(), false),
        (&restarting, false),
        (&Says::default(), true),
        (&restarting, true),
    ] {
        let mut script = Script::new(&BOTH, 1, |_| {});
        if reflects {
            script.input(Input::SetReflection(Some(reflection())));
        }
        script.wait(SECOND * 3);
        script.connect(1, says);
        assert_eq!(script.converged, None, "its first routes are on the way");
        script.announce(1, &["10.1.0.0/24"]);
        script.wait(SECOND * 5 - Duration::from_millis(1));
        assert_eq!(script.converged, None);
        script.wait(Duration::from_millis(1));
        assert_eq!(script.converged, Some(vec![]));
    }
    let mut script = Script::new(&BOTH, 1, |_| {});
    script.connect(1, &restarting);
    script.end_of_rib(1, Family::V4);
    script.end_of_rib(1, Family::V6);
    assert_eq!(script.converged, Some(vec![]), "it has said everything");
}

fn reflection() -> Reflection {
    let pools = [prefix("10.0.0.0/8")].into();
    Reflection { cluster_id: Ipv4Addr::new(0, 0, 0, 1), pools }
}

/// The Selection_Deferral_Timer; who was waited for in vain is named.
#[test]
fn who_stays_away_is_waited_for_until_the_timer() {
    let mut script = Script::new(&BOTH, 2, |_| {});
    script.connect(1, &Says::restart());
    script.end_of_rib(1, Family::V4);
    script.end_of_rib(1, Family::V6);
    script.wait(Duration::from_secs(60) - Duration::from_millis(1));
    assert_eq!(script.converged, None);
    script.wait(Duration::from_millis(1));
    assert_eq!(script.converged, Some(vec![peer(2, 64513).0]));
}

/// RFC 7313 section 4: nothing is replayed before our End-of-RIB, which of who passes routes on waits.
#[test]
fn a_refresh_is_answered_behind_the_end_of_rib() {
    let mut script = Script::new(&BOTH, 2, |_| {});
    script.input(Input::SetReflection(Some(reflection())));
    script.connect(1, &Says::restart());
    let request = RouteRefresh { family: Family::V4, subtype: RouteRefresh::REQUEST };
    script.send(1, wire::encode_route_refresh(request));
    let updates = |script: &Script| -> Vec<Vec<u8>> {
        let told = script.told(1).into_iter();
        told.filter(|(kind, _)| *kind == MessageType::Update).map(|(_, body)| body).collect()
    };
    assert_eq!(updates(&script).len(), 1, "its own prefix");
    script.connect(2, &Says::restart());
    for peer in [1, 2] {
        script.end_of_rib(peer, Family::V4);
        script.end_of_rib(peer, Family::V6);
    }
    assert_eq!(script.converged, Some(vec![]));
    let told = updates(&script);
    assert_eq!(told.len(), 4, "{told:02x?}");
    assert_eq!(
        (&told[1], &told[3]),
        (&vec![0; 4], &told[0]),
        "End-of-RIB, then what was asked for"
    );
}

/// Where nothing was found there is nothing to keep: peers get 5 s, and those that are left out by RFC
/// 4724 section 4.1 no time at all.
#[test]
fn a_start_that_found_nothing_is_over_soon() {
    let restarting = Says { restarting: true, ..Says::restart() };
    for says in [&Says::default(), &restarting] {
        let mut script = Script::new(&[], 1, |_| {});
        script.wait(SECOND);
        assert_eq!(script.converged, None);
        script.connect(1, says);
        assert_eq!(script.converged, Some(vec![]));
    }
    let mut script = Script::new(&[], 2, |_| {});
    script.connect(1, &Says::restart());
    script.end_of_rib(1, Family::V4);
    script.end_of_rib(1, Family::V6);
    script.wait(SECOND * 5 - Duration::from_millis(1));
    assert_eq!(script.converged, None);
    script.wait(Duration::from_millis(1));
    assert_eq!(script.converged, Some(vec![]), "nothing of the other was kept");
}

/// Nodes that restart together wait for none of each other (Calico waits for up to four minutes),
/// and none drops a kernel route that another is about to announce.
#[test]
fn nodes_that_restart_together_are_ready_together() {
    let asns = [64512, 64512, 64512, 64512, 64512, 64512, 64513, 64513];
    for seed in 0..20 {
        let mut net = Net::mesh(&asns, seed);
        net.longest_delay = Some(30);
        net.run_until("mesh", SECONDS_10, Net::is_full);
        net.run_for(SECONDS_10);
        for index in 0..asns.len() {
            let silently = net.random.below(2) == 0;
            net.kill(index, silently);
        }
        for index in 0..asns.len() {
            net.nodes[index].routes.clear();
            net.restart(index, &asns);
            let pause = net.random.below(200);
            net.run_for(Duration::from_millis(pause));
        }
        let established = |net: &Net| {
            let peers = net.nodes.iter().flat_map(|node| node.speaker.peers());
            peers.into_iter().all(|peer| peer.state == State::Established)
        };
        let name = format!("seed {seed}");
        let last = net.run_checked(&name, SECONDS_10, established);
        net.run_checked(&name, SECOND * 2, |net| {
            net.nodes.iter().all(|node| node.converged == Some(vec![]))
        });
        assert!(net.is_full(), "{name}");
        assert!(net.now.since(last) < SECOND * 2, "{name}");
    }
}

impl Net {
    /// Runs until it is done, and sees to it that no node converges before it knows every block.
    fn run_checked(&mut self, name: &str, limit: Duration, done: impl Fn(&Self) -> bool) -> Time {
        let deadline = self.now + limit;
        while !done(self) {
            assert!(self.step() && self.now <= deadline, "{name}: not within {limit:?}");
            for (index, node) in self.nodes.iter().enumerate() {
                let others = (0..self.nodes.len()).filter(|other| *other != index);
                let known = others.filter(|other| node.routes.contains_key(&block(*other)));
                let all = known.count() == self.nodes.len() - 1;
                assert!(node.converged.is_none() || all, "{name}: node {index} swept too early");
            }
        }
        self.now
    }
}
