use PathFact::{Another, Nothing, Plain, Same, Unknown};

use super::*;

const GRACE: u64 = 100;

/// The last assignment before the process.
const BEFORE: u64 = 10;

fn id(n: u8) -> AttachmentId {
    AttachmentId { network: "n".into(), container_id: format!("c{n}"), ifname: "eth0".into() }
}

fn record(n: u8, sequence: u64, foreign: bool, path: PathFact) -> RecordFact {
    let record = Record {
        attachment: id(n),
        addresses: vec![[10, 0, 0, n].into()],
        sequence,
        netns: format!("/run/netns/{n}"),
        netns_cookie: Some(n.into()),
        pod: None,
        pod_uid: None,
        foreign,
        created_ms: 0,
    };
    RecordFact { record, path, pod: PodFact::Unknown }
}

/// With a link of ours.
fn own(n: u8, sequence: u64, path: PathFact) -> RecordFact {
    record(n, sequence, false, path)
}

/// With another plugin's interface.
fn foreign(n: u8, sequence: u64, path: PathFact) -> RecordFact {
    record(n, sequence, true, path)
}

/// The host end of an attachment, up; its index is 100 and the attachment's number.
fn link(n: u8, sequence: u64) -> LinkFact {
    LinkFact {
        index: 100 + u32::from(n),
        name: host_link_name(&id(n)),
        alias: Some(LinkAlias::new(&id(n), sequence)),
        overwritten: false,
        up: true,
    }
}

fn down(n: u8, sequence: u64) -> LinkFact {
    LinkFact { up: false, ..link(n, sequence) }
}

fn unnamed(n: u8) -> LinkFact {
    LinkFact { alias: None, up: false, ..link(n, 0) }
}

/// Somebody has written another alias over its own.
fn overwritten(n: u8) -> LinkFact {
    LinkFact { alias: None, overwritten: true, ..link(n, 0) }
}

/// Somebody has emptied its alias.
fn emptied(n: u8) -> LinkFact {
    LinkFact { alias: None, ..link(n, 0) }
}

fn start() -> Start {
    Start { sequence: BEFORE, ..Start::default() }
}

fn text(verdict: &Verdict) -> String {
    let dead = verdict.dead.iter().map(|(record, death)| {
        format!("{}.{} {}", record.attachment.container_id, record.sequence, death.as_str())
    });
    let leftovers =
        verdict.leftovers.iter().map(|(index, why)| format!("if{index} {}", why.as_str()));
    let troubles = verdict.troubles.iter().map(|trouble| match trouble {
        Trouble::Blind { path } => format!("blind {path}"),
        Trouble::Unrecorded { alias: Some(alias), .. } => {
            format!("unrecorded .{}", alias.sequence)
        }
        Trouble::Unrecorded { alias: None, .. } => "unrecorded".to_owned(),
    });
    dead.chain(leftovers).chain(troubles).collect::<Vec<_>>().join(", ")
}

/// Looks, each with its time and what has to come of it.
type Looks = Vec<(u64, Vec<RecordFact>, Vec<LinkFact>, &'static str)>;

fn check(name: &str, start: Start, looks: Looks) {
    let mut liveness = Liveness::new(GRACE, start);
    for (now, records, links, expected) in looks {
        let verdict = liveness.look(&Facts { records, links }, now);
        assert_eq!(text(&verdict), expected, "{name}, at {now}");
    }
}

/// What the cluster says shortens the grace period, and is no evidence by itself.
#[test]
fn a_pod_that_is_gone_from_the_cluster() {
    let with = |pod, path| vec![RecordFact { pod, ..own(1, 1, path) }];
    let looks = |looks: Vec<(u64, PodFact, PathFact, bool, &str)>| {
        let mut liveness = Liveness::new(120_000, start());
        for (now, pod, path, linked, expected) in looks {
            let links = if linked { vec![link(1, 1)] } else { Vec::new() };
            let verdict = liveness.look(&Facts { records: with(pod, path), links }, now);
            assert_eq!(text(&verdict), expected, "{pod:?} at {now}");
        }
    };
    let gone = PodFact::Gone;
    looks(vec![
        (0, gone, Unknown, false, ""),
        (9_999, gone, Unknown, false, ""),
        (10_000, gone, Unknown, false, "c1.1 link-gone"),
    ]);
    looks(vec![(0, gone, Unknown, true, ""), (200_000, gone, Same, false, "")]);
    looks(vec![
        (0, PodFact::There, Unknown, false, ""),
        (119_999, PodFact::There, Unknown, false, ""),
        (120_000, PodFact::There, Unknown, false, "c1.1 link-gone"),
    ]);
    // Of another plugin's pod nothing is evidence where paths cannot be trusted.
    let record = || RecordFact { pod: gone, ..foreign(1, 1, Nothing) };
    let mut liveness = Liveness::new(GRACE, start());
    for now in [0, 200_000] {
        let facts = Facts { records: vec![record()], links: Vec::new() };
        assert_eq!(text(&liveness.look(&facts, now)), "");
    }
}

#[test]
fn records_with_a_link_of_ours() {
    let cases: Vec<(&str, Looks)> = vec![
        (
            "a link is life, whatever the path says",
            [Same, Another, Nothing, Unknown]
                .into_iter()
                .enumerate()
                .map(|(n, path)| (n as u64 * 200, vec![own(1, 1, path)], vec![link(1, 1)], ""))
                .collect(),
        ),
        (
            "so is a link of a later ADD",
            vec![
                (0, vec![own(1, 1, Nothing)], vec![link(1, 2)], ""),
                (200, vec![own(1, 1, Nothing)], vec![link(1, 2)], ""),
            ],
        ),
        (
            "no link in two looks across the grace period",
            vec![
                (0, vec![own(1, 1, Unknown)], vec![], ""),
                (99, vec![own(1, 1, Unknown)], vec![], ""),
                (100, vec![own(1, 1, Unknown)], vec![], "c1.1 link-gone"),
            ],
        ),
        (
            "it is told again until the record is gone",
            vec![
                (0, vec![own(1, 1, Nothing)], vec![], ""),
                (150, vec![own(1, 1, Nothing)], vec![], "c1.1 link-gone"),
                (200, vec![own(1, 1, Nothing)], vec![], "c1.1 link-gone"),
                (300, vec![], vec![], ""),
            ],
        ),
        (
            "an ADD is under way, or somebody deleted the link: the namespace lives",
            vec![(0, vec![own(1, 1, Same)], vec![], ""), (200, vec![own(1, 1, Same)], vec![], "")],
        ),
        (
            "a sign of life in between begins anew",
            vec![
                (0, vec![own(1, 1, Nothing)], vec![], ""),
                (90, vec![own(1, 1, Nothing)], vec![link(1, 1)], ""),
                (180, vec![own(1, 1, Nothing)], vec![], ""),
                (280, vec![own(1, 1, Nothing)], vec![], "c1.1 link-gone"),
            ],
        ),
        (
            "a later ADD begins anew",
            vec![
                (0, vec![own(1, 1, Nothing)], vec![], ""),
                (100, vec![own(1, 2, Nothing)], vec![], ""),
            ],
        ),
        (
            "the link of an earlier ADD is no life, and goes",
            vec![
                (0, vec![own(1, 5, Nothing)], vec![link(1, 4)], ""),
                (
                    100,
                    vec![own(1, 5, Nothing)],
                    vec![link(1, 4)],
                    "c1.5 link-gone, if101 superseded",
                ),
            ],
        ),
        (
            "a link without a name counts until it is judged itself",
            vec![
                (0, vec![own(1, 1, Nothing)], vec![unnamed(1)], ""),
                (100, vec![own(1, 1, Nothing)], vec![unnamed(1)], "if101 unnamed"),
                (160, vec![own(1, 1, Nothing)], vec![], ""),
                (260, vec![own(1, 1, Nothing)], vec![], "c1.1 link-gone"),
            ],
        ),
        (
            "a plain file is no evidence, and takes none from the links",
            vec![
                (
                    0,
                    vec![own(1, 1, Plain), own(2, 2, Plain)],
                    vec![link(1, 1)],
                    "blind /run/netns/1",
                ),
                (
                    100,
                    vec![own(1, 1, Plain), own(2, 2, Plain)],
                    vec![link(1, 1)],
                    "c2.2 link-gone, blind /run/netns/1",
                ),
            ],
        ),
    ];
    for (name, looks) in cases {
        check(name, start(), looks);
    }
}

#[test]
fn records_with_a_foreign_interface() {
    let later = BEFORE + 1;
    let host = || Start { host_view: true, ..start() };
    let cases: Vec<(&str, Start, Looks)> = vec![
        (
            "the absence of a path says nothing where no namespace was ever seen",
            start(),
            vec![
                (0, vec![foreign(1, later, Nothing)], vec![], ""),
                (500, vec![foreign(1, later, Nothing)], vec![], ""),
            ],
        ),
        (
            "nor where only one from before the process was seen",
            start(),
            vec![
                (0, vec![foreign(1, BEFORE, Same)], vec![], ""),
                (100, vec![foreign(1, BEFORE, Nothing)], vec![], ""),
                (500, vec![foreign(1, BEFORE, Nothing)], vec![], ""),
            ],
        ),
        (
            "a newer one was seen: its absence counts, also for older ones of the directory",
            start(),
            vec![
                (0, vec![foreign(1, later, Same), foreign(2, 2, Nothing)], vec![], ""),
                (
                    100,
                    vec![foreign(1, later, Nothing), foreign(2, 2, Nothing)],
                    vec![],
                    "c2.2 namespace-gone",
                ),
                (200, vec![foreign(1, later, Nothing)], vec![], "c1.11 namespace-gone"),
            ],
        ),
        (
            "a link of ours that was seen by its path proves as much",
            start(),
            vec![
                (0, vec![own(1, later, Same), foreign(2, 2, Nothing)], vec![link(1, later)], ""),
                (
                    100,
                    vec![own(1, later, Same), foreign(2, 2, Nothing)],
                    vec![link(1, later)],
                    "c2.2 namespace-gone",
                ),
            ],
        ),
        (
            "the view of the host is trusted",
            host(),
            vec![
                (0, vec![foreign(1, 1, Nothing)], vec![], ""),
                (100, vec![foreign(1, 1, Nothing)], vec![], "c1.1 namespace-gone"),
            ],
        ),
        (
            "another namespace at the path is evidence in itself",
            start(),
            vec![
                (0, vec![foreign(1, 1, Another)], vec![], ""),
                (100, vec![foreign(1, 1, Another)], vec![], "c1.1 namespace-replaced"),
            ],
        ),
        (
            "no path, no evidence; it neither adds nor takes away",
            host(),
            vec![
                (0, vec![foreign(1, 1, Nothing)], vec![], ""),
                (100, vec![foreign(1, 1, Unknown)], vec![], ""),
                (110, vec![foreign(1, 1, Nothing)], vec![], "c1.1 namespace-gone"),
                (500, vec![foreign(2, 2, Unknown)], vec![], ""),
                (900, vec![foreign(2, 2, Unknown)], vec![], ""),
            ],
        ),
        (
            "one plain file, and no path means anything any more",
            host(),
            vec![
                (0, vec![foreign(1, 1, Nothing), foreign(2, 2, Another)], vec![], ""),
                (
                    100,
                    vec![foreign(1, 1, Nothing), foreign(2, 2, Another), foreign(3, later, Plain)],
                    vec![],
                    "blind /run/netns/3",
                ),
                (
                    500,
                    vec![foreign(1, 1, Nothing), foreign(2, 2, Another), foreign(4, later, Same)],
                    vec![],
                    "blind /run/netns/3",
                ),
            ],
        ),
        (
            "a link with a name like ours is not its own",
            host(),
            vec![
                (0, vec![foreign(1, 1, Nothing)], vec![unnamed(1)], ""),
                (
                    100,
                    vec![foreign(1, 1, Nothing)],
                    vec![unnamed(1)],
                    "c1.1 namespace-gone, if101 unnamed",
                ),
            ],
        ),
    ];
    for (name, start, looks) in cases {
        check(name, start, looks);
    }
}

#[test]
fn links_without_a_record() {
    let inherited = || Start { links: [101].into(), ..start() };
    let cases: Vec<(&str, Start, Looks)> = vec![
        (
            "of an ADD that died before it came up",
            start(),
            vec![
                (0, vec![], vec![down(1, 3)], ""),
                (99, vec![], vec![down(1, 3)], ""),
                (100, vec![], vec![down(1, 3)], "if101 unrecorded"),
            ],
        ),
        (
            "its record appears",
            start(),
            vec![
                (0, vec![], vec![down(1, 3)], ""),
                (100, vec![own(1, 3, Nothing)], vec![down(1, 3)], ""),
                (150, vec![], vec![down(1, 3)], ""),
            ],
        ),
        (
            "in use: told, never touched",
            start(),
            vec![
                (0, vec![], vec![link(1, 3)], ""),
                (1, vec![], vec![link(1, 3)], "unrecorded .3"),
                (500, vec![], vec![link(1, 3)], "unrecorded .3"),
                (600, vec![], vec![], ""),
            ],
        ),
        (
            "a DEL took link and record between the links and the records of a look",
            start(),
            vec![
                (0, vec![own(1, 3, Same)], vec![link(1, 3)], ""),
                (1, vec![], vec![link(1, 3)], ""),
                (2, vec![], vec![], ""),
                (3, vec![], vec![link(1, 4)], ""),
            ],
        ),
        (
            "there before this process: told, never touched",
            inherited(),
            vec![
                (0, vec![], vec![down(1, 3)], ""),
                (500, vec![], vec![down(1, 3)], "unrecorded .3"),
            ],
        ),
        (
            "its addresses are another IPAM plugin's",
            start(),
            vec![
                (0, vec![], vec![link(1, 0), down(2, 0)], ""),
                (100, vec![], vec![link(1, 0), down(2, 0)], "if102 unrecorded"),
            ],
        ),
        (
            "its addresses are another IPAM plugin's, and it once had some of ours",
            start(),
            vec![
                (0, vec![own(1, 3, Nothing)], vec![link(1, 0)], ""),
                (100, vec![own(1, 3, Nothing)], vec![link(1, 0)], "c1.3 link-gone"),
            ],
        ),
        (
            "without a name: no pod ever had it",
            inherited(),
            vec![
                (0, vec![], vec![unnamed(1)], ""),
                (100, vec![], vec![unnamed(1)], "if101 unnamed"),
            ],
        ),
        (
            "it gets its name in between",
            start(),
            vec![
                (0, vec![], vec![unnamed(1)], ""),
                (100, vec![own(1, 3, Same)], vec![down(1, 3)], ""),
            ],
        ),
        (
            "its alias is overwritten: the pod has not gone with it",
            start(),
            vec![
                (0, vec![own(1, 3, Unknown)], vec![overwritten(1)], ""),
                (200, vec![own(1, 3, Unknown)], vec![overwritten(1)], ""),
                (400, vec![], vec![overwritten(1)], ""),
                (600, vec![], vec![overwritten(1)], "unrecorded"),
                (700, vec![own(1, 3, Unknown)], vec![overwritten(1)], ""),
            ],
        ),
        (
            "its alias is emptied: it came up, so it had one, and the pod has not gone with it",
            start(),
            vec![
                (0, vec![own(1, 3, Unknown)], vec![emptied(1)], ""),
                (200, vec![own(1, 3, Unknown)], vec![emptied(1)], ""),
                (400, vec![], vec![emptied(1)], ""),
                (600, vec![], vec![emptied(1)], "unrecorded"),
                (700, vec![own(1, 3, Unknown)], vec![emptied(1)], ""),
            ],
        ),
        (
            "another one of the same name",
            start(),
            vec![
                (0, vec![], vec![unnamed(1)], ""),
                (100, vec![], vec![LinkFact { index: 7, ..unnamed(1) }], ""),
            ],
        ),
    ];
    for (name, start, looks) in cases {
        check(name, start, looks);
    }
}

#[test]
fn an_alias_that_is_only_a_hash_finds_its_record() {
    let mut fact = own(1, 1, Nothing);
    fact.record.attachment.container_id = "c".repeat(300);
    let attachment = fact.record.attachment.clone();
    let host = LinkFact {
        index: 9,
        name: host_link_name(&attachment),
        alias: Some(LinkAlias::new(&attachment, 1)),
        overwritten: false,
        up: true,
    };
    assert!(matches!(host.alias, Some(LinkAlias { owner: Alias::Hashed(_), .. })));
    let look = |now| (now, vec![fact.clone()], vec![host.clone()], "");
    check("hashed", start(), vec![look(0), look(200)]);
}

#[test]
fn troubles_name_place_and_remedy() {
    let blind = Trouble::Blind { path: "/run/netns/x".into() }.to_string();
    let of = |alias| Trouble::Unrecorded { link: "twl1".into(), alias }.to_string();
    for (text, parts) in [
        (blind, ["/run/netns/x", "HostToContainer", "make-rshared"]),
        (of(Some(LinkAlias::new(&id(1), 3))), ["twl1", "n/c1/eth0", "ip link delete"]),
        (of(None), ["twl1", "without an alias", "ip link delete"]),
    ] {
        for part in parts {
            assert!(text.contains(part), "{text} lacks {part}");
        }
    }
}

/// A name, whether all of the host is seen, what is found, and what has to come of it.
type OneLook = (&'static str, bool, Vec<RecordFact>, Vec<LinkFact>, &'static str);

/// What stands in the place of a second look.
#[test]
fn one_look_is_enough_for_what_is_old() {
    const NOW: u64 = 1_000_000;
    let created = |created_ms, fact: RecordFact| RecordFact {
        record: Record { created_ms, ..fact.record },
        ..fact
    };
    let old = |fact| created(NOW - 120_001, fact);
    let cases: Vec<OneLook> = vec![
        ("its link is gone", false, vec![old(own(1, 1, Nothing))], vec![], "c1 link-gone"),
        ("where nothing is seen", false, vec![old(own(1, 1, Unknown))], vec![], "c1 link-gone"),
        ("an ADD may be at it", true, vec![created(NOW - 120_000, own(1, 1, Nothing))], vec![], ""),
        ("the clock was set back", true, vec![created(NOW + 1, own(1, 1, Nothing))], vec![], ""),
        ("its namespace is there", true, vec![old(own(1, 1, Same))], vec![], ""),
        ("its link is there", true, vec![old(own(1, 1, Nothing))], vec![link(1, 1)], ""),
        ("a link of a later ADD", true, vec![old(own(1, 1, Nothing))], vec![link(1, 2)], ""),
        ("a link of an earlier ADD", true, vec![old(own(1, 2, Nothing))], vec![link(1, 1)], ""),
        ("a link without a name", true, vec![old(own(1, 1, Nothing))], vec![unnamed(1)], ""),
        ("another's link", true, vec![old(own(1, 1, Nothing))], vec![link(2, 1)], "c1 link-gone"),
        ("no link is ours", true, vec![old(foreign(1, 1, Nothing))], vec![], "c1 namespace-gone"),
        ("as far as is seen", false, vec![old(foreign(1, 1, Nothing))], vec![], ""),
        (
            "another has its path",
            false,
            vec![old(foreign(1, 1, Another))],
            vec![],
            "c1 namespace-replaced",
        ),
        ("its namespace is there", true, vec![old(foreign(1, 1, Same))], vec![], ""),
        (
            "a namespace proves no other",
            false,
            vec![old(foreign(1, 1, Nothing)), old(foreign(2, 2, Same))],
            vec![],
            "",
        ),
        (
            "nothing is to be believed",
            true,
            vec![old(foreign(1, 1, Another)), old(foreign(2, 2, Plain))],
            vec![],
            "",
        ),
        ("a young one", true, vec![created(NOW - 1, foreign(1, 1, Another))], vec![], ""),
    ];
    for (name, host_view, records, links, expected) in cases {
        let dead = dead_at_one_look(&Facts { records, links }, host_view, NOW);
        let said = dead.iter().map(|(record, death)| {
            format!("{} {}", record.attachment.container_id, death.as_str())
        });
        assert_eq!(said.collect::<Vec<_>>().join(", "), expected, "{name}");
    }
}
