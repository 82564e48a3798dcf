//! Anything at all, as often as asked for: no broken promise, no allocation out of proportion.
//!
//! `TWILL_SOAK_STREAMS` and `TWILL_SOAK_SEED` ask for other runs (`make soak`).

use allocation_counter::measure;
use twill_bgp_proto::fuzz::{Observe, events_observed, policy_observed, session_observed};

/// The corpora, which `make fuzz` starts from, too: a line in hexadecimal for each input. A corpus that has
/// lost lines is noticed by the number of inputs that it has at the least.
const CORPORA: [(Target, usize, &str); 3] = [
    (Target::Events, 156, include_str!("corpus/events.hex")),
    (Target::Session, 124, include_str!("corpus/session.hex")),
    (Target::Policy, 83, include_str!("corpus/policy.hex")),
];

/// What a turn may take beside what it keeps: all that peers have said, a few times, and a bit for what
/// is fixed.
const TIMES: u64 = 16;
const FIXED: u64 = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    Events,
    Session,
    Policy,
}

impl Target {
    fn run(self, input: &[u8], observe: Observe<'_>) {
        match self {
            Self::Events => events_observed(input, observe),
            Self::Session => session_observed(input, observe),
            Self::Policy => policy_observed(input, observe),
        }
    }
}

fn corpus(target: Target) -> Vec<Vec<u8>> {
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let lines = CORPORA.iter().filter(|(of, ..)| *of == target).flat_map(|(.., text)| text.lines());
    let digits = lines.map(|line| line.split('#').next().unwrap_or_default().trim());
    let inputs = digits.map(|digits| digits.as_bytes().chunks(2).map(octet).collect());
    inputs.filter(|input: &Vec<u8>| !input.is_empty()).collect()
}

/// Shows the input that a test has failed on.
struct Shown<'a>(Target, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.1.iter().map(|octet| format!("{octet:02x}")).collect();
            println!("{:?}: {hex}", self.0);
        }
    }
}

/// What so many runs have come to.
#[derive(Debug, Default)]
struct Sum {
    turns: u64,
    /// The most memory that one turn took, in octets, and what peers had said by then.
    most: (u64, usize),
}

/// Runs one input.
fn run(target: Target, input: &[u8], sum: &mut Sum) {
    let _shown = Shown(target, input);
    target.run(input, &mut |octets, turn| {
        let taken = measure(turn);
        let limit = TIMES * octets as u64 + FIXED;
        assert!(taken.bytes_max <= limit, "{} octets after {octets}", taken.bytes_max);
        sum.turns += 1;
        sum.most = sum.most.max((taken.bytes_max, octets));
    });
}

#[test]
fn the_corpora_break_nothing() {
    for (target, least, _) in CORPORA {
        let all = corpus(target);
        assert!(all.len() >= least, "{target:?}: only {} inputs", all.len());
        let mut sum = Sum::default();
        all.iter().for_each(|input| run(target, input, &mut sum));
    }
}

#[allow(clippy::disallowed_methods, reason = "a test is asked for a longer run in this way")]
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Chance out of a seed (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % (end.max(1) as u64)).unwrap()
    }

    fn octet(&mut self) -> u8 {
        u8::try_from(self.below(256)).unwrap()
    }

    /// One of these inputs with another one behind it, or something new, and changed in some places.
    fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = match self.below(4) {
            0 => (0..self.below(600)).map(|_| self.octet()).collect(),
            1 => corpus[self.below(corpus.len())].clone(),
            _ => {
                let (first, second) =
                    (&corpus[self.below(corpus.len())], &corpus[self.below(corpus.len())]);
                let (end, begin) = (self.below(first.len()), self.below(second.len()));
                [&first[..end], &second[begin..]].concat()
            }
        };
        for _ in 0..self.below(8) {
            let place = self.below(input.len());
            if let Some(octet) = input.get_mut(place) {
                *octet = match self.below(3) {
                    0 => *octet ^ 1 << self.below(8),
                    _ => self.octet(),
                };
            }
        }
        input
    }
}

/// Random streams, out of the corpora.
#[test]
fn streams_at_random_break_nothing() {
    let count = asked("TWILL_SOAK_STREAMS").unwrap_or(300);
    let seed = asked("TWILL_SOAK_SEED").unwrap_or(4271);
    for (target, ..) in CORPORA {
        let corpus = corpus(target);
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let mut sum = Sum::default();
        for _ in 0..count {
            run(target, &random.input(&corpus), &mut sum);
        }
        let (most, octets) = sum.most;
        println!("{target:?}, seed {seed}: {count} streams, {} turns, nothing broken", sum.turns);
        println!("most memory for one: {most} octets, when peers had said {octets}");
    }
}
