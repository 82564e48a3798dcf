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

    /// ADD and DEL of every pod, one after the other, and then again several at once.
    pub(crate) fn round(
        &mut self,
        competitor: &Competitor,
        at_once: usize,
        settle: Duration,
    ) -> Result<()> {
        self.add.alone.extend(in_turn(competitor, "ADD")?);
        competitor.check_added()?;
        self.del.alone.extend(in_turn(competitor, "DEL")?);
        competitor.settle(settle)?;
        self.add.several(competitor, "ADD", at_once)?;
        competitor.check_added()?;
        self.del.several(competitor, "DEL", at_once)?;
        competitor.settle(settle)
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
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or_default()
    }

    /// The most memory of any call, in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        self.alone.iter().chain(&self.together).map(|sample| sample.peak_kib).max().unwrap_or(0)
    }
}

/// A percentile of the times in milliseconds, by the nearest rank.
pub(crate) fn percentile(samples: &[Sample], percent: usize) -> f64 {
    let mut times: Vec<Duration> = samples.iter().map(|sample| sample.time).collect();
    times.sort_unstable();
    let rank = (times.len() * percent).div_ceil(100).max(1);
    times.get(rank - 1).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

fn in_turn(competitor: &Competitor, verb: &str) -> Result<Vec<Sample>> {
    let node = Netns::open(competitor.node()?.path())?;
    in_netns(&node, || (0..competitor.pods()).map(|pod| competitor.call(verb, pod)).collect())?
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
    fn rates_and_memory() {
        let calls = Calls {
            alone: vec![Sample { time: Duration::ZERO, peak_kib: 7 }],
            together: vec![Sample { time: Duration::ZERO, peak_kib: 9 }],
            rates: vec![30.0, 10.0, 20.0],
        };
        assert_eq!((calls.rate(), calls.peak_kib()), (20.0, 9));
    }
}
