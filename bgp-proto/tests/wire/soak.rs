//! Anything at all, as often as asked for: no panic, no lost bit, no allocation out of proportion.
//!
//! `TWILL_SOAK_MESSAGES` and `TWILL_SOAK_SEED` ask for other runs (`make soak`).

use allocation_counter::{AllocationInfo, measure};
use twill_bgp_proto::wire::{
    MAX_EXTENDED, Notification, Session, decode_open, decode_route_refresh, decode_update, frame,
    fuzz,
};

use crate::messages::{Random, damage, open, update};

/// The corpora, which `make fuzz` starts from, too: a line in hexadecimal for each input.
const CORPORA: [(Kind, &str); 5] = [
    (Kind::Open, include_str!("corpus/open.hex")),
    (Kind::Update, include_str!("corpus/update.hex")),
    (Kind::Notification, include_str!("corpus/notification.hex")),
    (Kind::Refresh, include_str!("corpus/refresh.hex")),
    (Kind::Stream, include_str!("corpus/stream.hex")),
];

/// What decoding may take at once: the message a few times, and a bit for what is fixed.
const TIMES: u64 = 10;
const FIXED: u64 = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Open,
    Update,
    Notification,
    Refresh,
    Stream,
}

impl Kind {
    /// The target that breaks if a promise is broken.
    fn target(self, input: &[u8]) {
        match self {
            Self::Open => fuzz::open(input),
            Self::Update => fuzz::update(input),
            Self::Notification => fuzz::notification(input),
            Self::Refresh => fuzz::refresh(input),
            Self::Stream => fuzz::stream(input),
        }
    }

    /// Decoding alone.
    fn decode(self, input: &[u8]) {
        let (session, body) = match input.split_first_chunk::<2>() {
            Some((head, body)) => (fuzz::session(*head), body),
            None => (Session::default(), input),
        };
        match self {
            Self::Open => drop(decode_open(input)),
            Self::Update => drop(decode_update(body, &session)),
            Self::Notification => drop(Notification::decode(input).to_string()),
            Self::Refresh => drop(decode_route_refresh(body, &session)),
            Self::Stream => {
                drop(frame(body, session.longest_received()).map(|f| f.map(|f| f.length)))
            }
        }
    }
}

fn corpus() -> Vec<(Kind, Vec<u8>)> {
    let mut all = Vec::new();
    for (kind, text) in CORPORA {
        for line in text.lines() {
            let digits: Vec<u8> = line
                .split('#')
                .next()
                .unwrap()
                .bytes()
                .filter(|byte| !byte.is_ascii_whitespace())
                .collect();
            let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16);
            let input: Vec<u8> = digits.chunks(2).map(|pair| octet(pair).unwrap()).collect();
            if !input.is_empty() {
                all.push((kind, input));
            }
        }
    }
    all
}

/// Shows the input that a test has failed on.
struct Shown<'a>(Kind, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.1.iter().map(|octet| format!("{octet:02x}")).collect();
            println!("{:?}: {hex}", self.0);
        }
    }
}

/// Runs one input; says what decoding it took.
fn run(kind: Kind, input: &[u8]) -> AllocationInfo {
    let _shown = Shown(kind, input);
    let taken = measure(|| kind.decode(input));
    let limit = TIMES * input.len() as u64 + FIXED;
    assert!(taken.bytes_max <= limit, "{} octets for {}", taken.bytes_max, input.len());
    assert_eq!(taken.bytes_current, 0, "memory is left behind");
    kind.target(input);
    taken
}

#[test]
fn the_corpora_break_nothing() {
    let all = corpus();
    assert!(all.len() > 150, "only {} inputs", all.len());
    for (kind, input) in &all {
        run(*kind, input);
    }
}

fn header(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[0xff; 16], &length[..], &[kind], body].concat()
}

/// A message of some kind, nine in ten of them damaged.
fn message(random: &mut Random, corpus: &[(Kind, Vec<u8>)]) -> (Kind, Vec<u8>) {
    let head = [random.octet(), random.octet()];
    let generated =
        |random: &mut Random| [&head[..], &update(random, &fuzz::session(head))].concat();
    let (kind, mut input) = match random.below(10) {
        0 | 1 => (Kind::Open, open(random)),
        2..=5 => (Kind::Update, generated(random)),
        6 => {
            let mut stream = head.to_vec();
            for _ in 0..=random.below(3) {
                let mut body = update(random, &fuzz::session(head));
                if random.one_in(4) {
                    damage(random, &mut body);
                }
                stream.extend(header(random.pick(&[1, 2, 2, 2, 3, 4, 5]), &body));
            }
            (Kind::Stream, stream)
        }
        _ => corpus[random.below(corpus.len())].clone(),
    };
    if !random.one_in(10) {
        damage(random, &mut input);
    }
    (kind, input)
}

#[allow(clippy::disallowed_methods, reason = "a test is asked for a longer run in this way")]
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn damaged_messages_break_nothing() {
    let count = asked("TWILL_SOAK_MESSAGES").unwrap_or(1_000_000);
    let seed = asked("TWILL_SOAK_SEED").unwrap_or(7606);
    let corpus = corpus();
    let mut random = Random::new(seed);
    let (mut most, mut octets, mut highest) = (0, 0, 0.0_f64);
    for _ in 0..count {
        let (kind, input) = message(&mut random, &corpus);
        let taken = run(kind, &input);
        most = most.max(taken.bytes_max);
        octets += input.len() as u64;
        if input.len() >= 256 {
            highest = highest.max(ratio(taken.bytes_max, input.len()));
        }
    }
    println!("seed {seed}: {count} messages of {octets} octets, no panic");
    println!("most memory for one: {most} octets; {highest:.1} times the message at the most");
}

/// Messages that are made to take as much memory as they can.
#[test]
fn the_greediest_messages_are_bounded() {
    let everything = fuzz::session([0, 2]);
    let old = Session { four_octet_as: false, ..everything };
    assert_eq!(everything.longest_received(), MAX_EXTENDED);
    let attribute = |flags: u8, kind: u8, value: &[u8]| {
        let [high, low] = u16::try_from(value.len()).unwrap().to_be_bytes();
        [&[flags | 0x10, kind, high, low], value].concat()
    };
    let update = |list: &[u8], nlri: &[u8]| {
        let length = u16::try_from(list.len()).unwrap().to_be_bytes();
        [&[0, 0], &length[..], list, nlri].concat()
    };
    let good = [0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4, 192, 0, 2, 1];
    let with = |list: Vec<u8>| update(&[&good[..], &list].concat(), &[8, 10]);
    let kinds = |value: &[u8]| -> Vec<u8> {
        (36..=255).chain(36..=255).flat_map(|kind| attribute(0xc0, kind, value)).collect()
    };
    let segments = |one: &[u8]| attribute(0x40, 2, &one.repeat(65_000 / one.len()));
    let inputs = [
        ("default routes", update(&good, &vec![0; 65_000]), &everything),
        ("short prefixes", update(&good, &[8, 10].repeat(32_000)), &everything),
        ("communities", with(attribute(0xc0, 8, &[7; 65_000])), &everything),
        ("large communities", with(attribute(0xc0, 32, &[7; 64_992])), &everything),
        ("unknown attributes", with(kinds(&[])), &everything),
        ("long unknown attributes", with(kinds(&[1; 120])), &everything),
        ("one attribute again and again", with([0xc0, 99, 0].repeat(21_000)), &everything),
        ("sets of one AS", update(&segments(&[1, 1, 0, 0, 252, 0]), &[8, 10]), &everything),
        ("sequences and sets", update(&segments(&[1, 1, 252, 0, 2, 1, 252, 0]), &[8, 10]), &old),
        ("sequences of one AS", update(&segments(&[2, 1, 252, 0]), &[8, 10]), &old),
    ];
    for (name, body, session) in inputs {
        let taken = measure(|| drop(decode_update(&body, session)));
        let times = ratio(taken.bytes_max, body.len());
        println!("{name}: {} octets, {times:.1} times as much memory", body.len());
        assert!(taken.bytes_max <= TIMES * body.len() as u64 + FIXED, "{name}: {times:.1}");
    }
}

fn ratio(taken: u64, length: usize) -> f64 {
    f64::from(u32::try_from(taken).unwrap()) / f64::from(u32::try_from(length).unwrap())
}
