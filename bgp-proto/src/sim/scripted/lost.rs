use super::*;

fn tracked(outputs: &[Output]) -> Vec<(usize, Vec<String>)> {
    let of = |(place, output): (usize, &Output)| match output {
        Output::TrackNextHops(all) => Some((place, all.iter().map(ToString::to_string).collect())),
        _ => None,
    };
    outputs.iter().enumerate().filter_map(of).collect()
}

/// Whoever moves traffic is told which next hops go with a peer before its routes are gone through,
/// and told the whole of it again after that.
#[test]
fn next_hops_that_go_with_a_peer_are_told_first() {
    let mut script = Single::established(plain());
    script.announce(&attributes("192.0.2.2"), &[nlri("10.1.0.0/24", 0)]);
    script.announce(&attributes("192.0.2.3"), &[nlri("10.1.1.0/24", 0)]);
    let (conn, reason) = (script.end(ONE).conn, "gone".to_owned());
    let now = script.now;
    script.speaker.handle(now, Input::Closed { conn, reason });
    assert_eq!(script.speaker.peers()[0].prefixes_in, 0, "they are as good as gone");
    let outputs: Vec<Output> = std::iter::from_fn(|| script.speaker.poll_output()).collect();
    let removes = |output: &Output| match output {
        Output::Routes(all) => all.iter().map(|change| change.prefixes.len()).sum::<usize>() == 2,
        _ => false,
    };
    let removed = outputs.iter().position(removes).expect("both routes go");
    match tracked(&outputs)[..] {
        [(0, ref early), (late, ref all)] => {
            assert!(late < removed, "{outputs:?}");
            assert_eq!((early.len(), all.len()), (0, 0));
        }
        ref other => panic!("{other:?}"),
    }
}

/// Where routes are kept nothing is lost: a next hop may work without its session (RFC 4724 section
/// 4.2).
#[test]
fn next_hops_of_stale_routes_are_not_lost() {
    let mut script = Single::established(without(is_add_path));
    script.announce(&attributes("192.0.2.2"), &[nlri("10.1.0.0/24", 0)]);
    let (conn, reason) = (script.end(ONE).conn, "gone".to_owned());
    let now = script.now;
    script.speaker.handle(now, Input::Closed { conn, reason });
    let outputs: Vec<Output> = std::iter::from_fn(|| script.speaker.poll_output()).collect();
    assert_eq!(tracked(&outputs), []);
}
