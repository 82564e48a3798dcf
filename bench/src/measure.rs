//! Rounds of calls, and what they come to.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use twill_sys::netns::{Netns, in_netns};

use crate::competitor::Competitor;

/// One call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// From exec to exit.
    pub(crate) time: Duration,
    /// The most memory that it had resident, in KiB.
    pub(crate) peak_kib: u64,
}

/// All calls of one verb.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    /// One after the other.
    pub(crate) alone: Vec<Sample>,
    /// Several at once.
    pub(crate) together: Vec<Sample>,
    /// Calls a second of each round with several at once.
    pub(crate) rates: Vec<f64>,
}

/// What a competitor does in its turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Round {
    /// Pods that come and go one after the other; all that the competitor has then do so several at once.
    pub(crate) alone: usize,
    /// Calls at a time.
    pub(crate) at_once: usize,
    /// How long what a DEL leaves to others may take to go.
    pub(crate) settle: Duration,
}

/// All calls of one competitor.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) add: Calls,
    pub(crate) del: Calls,
}

impl Measured {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), add: Calls::default(), del: Calls::default() }
    }

    /// ADD and DEL of some pods, one after the other, and then of all of them, several at once.
    pub(crate) fn round(&mut self, competitor: &Competitor, round: Round) -> Result<()> {
        let Round { alone, at_once, settle } = round;
        self.add.alone.extend(in_turn(competitor, "ADD", alone)?);
        competitor.check_added(alone)?;
        self.del.alone.extend(in_turn(competitor, "DEL", alone)?);
        competitor.settle(alone, settle)?;
        let all = competitor.pods();
        self.add.several(competitor, "ADD", at_once)?;
        competitor.check_added(all)?;
        self.del.several(competitor, "DEL", at_once)?;
        competitor.settle(all, settle)
    }
}

impl Calls {
    fn several(&mut self, competitor: &Competitor, verb: &str, at_once: usize) -> Result<()> {
        let start = Instant::now();
        let samples = together(competitor, verb, at_once)?;
        self.rates.push(samples.len() as f64 / start.elapsed().as_secs_f64());
        self.together.extend(samples);
        Ok(())
    }

    /// Calls a second with several at once: the median of the rounds.
    pub(crate) fn rate(&self) -> f64 {
        median(&self.rates)
    }

    /// The most memory of any call, in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        self.alone.iter().chain(&self.together).map(|sample| sample.peak_kib).max().unwrap_or(0)
    }
}

/// The median: of an even number of values the mean of the two in the middle; of none, no number.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    // Of an odd number it is twice the same one.
    match (values.get(values.len().saturating_sub(1) / 2), values.get(values.len() / 2)) {
        (Some(below), Some(above)) => f64::midpoint(*below, *above),
        _ => f64::NAN,
    }
}

/// A percentile of the times in milliseconds, by the nearest rank.
pub(crate) fn percentile(samples: &[Sample], percent: usize) -> f64 {
    let mut times: Vec<Duration> = samples.iter().map(|sample| sample.time).collect();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// Calls for the first `pods` pods, one after the other.
pub(crate) fn in_turn(competitor: &Competitor, verb: &str, pods: usize) -> Result<Vec<Sample>> {
    let node = Netns::open(competitor.node()?.path())?;
    in_netns(&node, || (0..pods).map(|pod| competitor.call(verb, pod)).collect())?
}

fn together(competitor: &Competitor, verb: &str, at_once: usize) -> Result<Vec<Sample>> {
    let node = Netns::open(competitor.node()?.path())?;
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<Sample>> {
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|n| *n < competitor.pods());
        let calls = std::iter::from_fn(take).map(|pod| competitor.call(verb, pod));
        in_netns(&node, || calls.collect())?
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for caller in callers {
            all.extend(caller.join().map_err(|_| anyhow!("a caller panicked"))??);
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let sample = |ms| Sample { time: Duration::from_millis(ms), peak_kib: ms };
        let samples: Vec<Sample> = (1..=200).rev().map(sample).collect();
        assert_eq!(percentile(&samples, 50), 100.0);
        assert_eq!(percentile(&samples, 99), 198.0);
        assert_eq!(percentile(&samples[..1], 99), 200.0);
        assert!(percentile(&[], 50).is_nan());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        for (values, expected) in [
            (vec![7.0], 7.0),
            (vec![30.0, 10.0], 20.0),
            (vec![30.0, 10.0, 11.0], 11.0),
            (vec![40.0, 1.0, 10.0, 20.0], 15.0),
        ] {
            assert_eq!(median(&values), expected, "of {values:?}");
        }
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn rates_and_memory() {
        let calls = Calls {
            alone: vec![Sample { time: Duration::ZERO, peak_kib: 7 }],
            together: vec![Sample { time: Duration::ZERO, peak_kib: 9 }],
            rates: vec![30.0, 10.0, 20.0],
        };
        assert_eq!((calls.rate(), calls.peak_kib()), (20.0, 9));
    }
}
