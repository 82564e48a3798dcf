//! What becomes of a peer's routes when its configuration changes, also while it is away.

use super::*;

const ROUTE: &str = "198.51.100.0/24";

/// A session with graceful restart, and one route of the peer.
fn with_a_route() -> Single {
    let mut script = Single::established(without(is_add_path));
    script.announce(&attributes("192.0.2.2"), &[nlri(ROUTE, 0)]);
    assert_eq!(script.reachable().len(), 1);
    script
}

fn away() -> Single {
    let mut script = with_a_route();
    script.break_off();
    assert_eq!(script.reachable().len(), 1, "kept for its return");
    script
}

type Change = fn(&mut PeerConfig);

/// What says nothing about routes: the session is made anew (Cease 6/6), and they stay as both sides have
/// agreed (RFC 8538 section 4).
const ABOUT_THE_SESSION: [Change; 3] = [
    |config| config.tcp_key = 7,
    |config| config.ttl_security = Some(1),
    |config| config.restart_time = 60,
];

/// What makes another peer of it, or none.
const ABOUT_THE_PEER: [Change; 5] = [
    |config| config.asn = Asn::new(65000).unwrap(),
    |config| config.client = true,
    |config| config.policy.role = Some(Role::Customer),
    |config| config.families = [Family::V6].into(),
    |config| config.shutdown = Some("rack off".to_owned()),
];

#[test]
fn a_new_session_with_the_same_peer_keeps_its_routes() {
    for change in ABOUT_THE_SESSION {
        let mut script = with_a_route();
        script.configure(change);
        assert_eq!(
            script.heard().last().map(String::as_str),
            Some("Cease/Other Configuration Change (6/6)")
        );
        assert_eq!(script.reachable().len(), 1);
        let mut script = away();
        script.configure(change);
        assert_eq!(script.reachable().len(), 1);
    }
}

#[test]
fn another_peer_takes_over_no_routes() {
    for change in ABOUT_THE_PEER {
        let mut script = with_a_route();
        script.configure(change);
        assert_eq!(script.reachable(), Vec::<String>::new());
        let mut script = away();
        script.configure(change);
        assert_eq!(script.reachable(), Vec::<String>::new(), "while it is away");
    }
}
