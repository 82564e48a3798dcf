//! containerd's own metric of what the network costs a pod.

use anyhow::{Context, Result};

/// Of the calls of all plugins for a pod's sandbox together: `loopback`'s runs beside the network's.
const METRIC: &str = "network_plugin_operations_duration_seconds_seconds_";
const SET_UP: &str = "operation_type=\"set_up_pod\"";

/// A histogram as Prometheus has them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Histogram {
    /// Upper bounds in seconds, ascending, and how many were not above.
    buckets: Vec<(f64, u64)>,
    pub(super) count: u64,
    /// In seconds.
    sum: f64,
}

impl Histogram {
    /// Out of what `/v1/metrics` says. Before the first ADD that is nothing.
    pub(super) fn read(metrics: &str) -> Result<Self> {
        let mut histogram = Self::default();
        for line in metrics.lines().filter(|line| line.contains(SET_UP)) {
            let Some((_, rest)) = line.split_once(METRIC) else { continue };
            let (kind, _) = rest.split_once('{').context("a metric without labels")?;
            let (_, value) = rest.rsplit_once(' ').context("a metric without a value")?;
            let value: f64 = value.parse().with_context(|| format!("no number: {line}"))?;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
            let number = value as u64;
            match kind {
                "bucket" => {
                    let (_, bound) =
                        rest.split_once("le=\"").context("a bucket without a bound")?;
                    let (bound, _) = bound.split_once('"').context("a bucket without a bound")?;
                    // Rust takes Prometheus' `+Inf`.
                    histogram.buckets.push((bound.parse()?, number));
                }
                "count" => histogram.count = number,
                "sum" => histogram.sum = value,
                _ => {}
            }
        }
        histogram.buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        Ok(histogram)
    }

    /// What came since `before`.
    pub(super) fn since(&self, before: &Self) -> Self {
        let count_before = |bound: f64| {
            let same = before.buckets.iter().find(|(other, _)| other.total_cmp(&bound).is_eq());
            same.map_or(0, |(_, count)| *count)
        };
        let buckets = self.buckets.iter().map(|(bound, n)| (*bound, n - count_before(*bound)));
        Self {
            buckets: buckets.collect(),
            count: self.count - before.count,
            sum: self.sum - before.sum,
        }
    }

    /// Both together.
    pub(super) fn and(&self, other: &Self) -> Self {
        let in_other = |bound: f64| {
            let same = other.buckets.iter().find(|(b, _)| b.total_cmp(&bound).is_eq());
            same.map_or(0, |(_, count)| *count)
        };
        let (more, less) = if self.buckets.is_empty() { (other, self) } else { (self, other) };
        let buckets = more.buckets.iter().map(|(bound, n)| match less.buckets.is_empty() {
            true => (*bound, *n),
            false => (*bound, n + in_other(*bound)),
        });
        Self {
            buckets: buckets.collect(),
            count: self.count + other.count,
            sum: self.sum + other.sum,
        }
    }

    /// In milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(super) fn mean(&self) -> f64 {
        self.sum * 1e3 / self.count as f64
    }

    /// The bounds of the bucket that the median is in, and where it would be there if the calls lay evenly in it, in
    /// milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(super) fn median(&self) -> Option<(f64, f64, f64)> {
        let half = self.count as f64 / 2.0;
        let (mut lower, mut below) = (0.0, 0.0);
        for (upper, count) in &self.buckets {
            let count = *count as f64;
            if count >= half && count > below {
                let part = (half - below) / (count - below);
                return Some((lower * 1e3, upper * 1e3, (lower + (upper - lower) * part) * 1e3));
            }
            (lower, below) = (*upper, count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(counts: [u64; 3], sum: f64) -> String {
        let bounds = ["0.01", "0.025", "+Inf"];
        let name = "containerd_cri_network_plugin_operations_duration_seconds_seconds";
        let mut text = format!("{name}_bucket{{operation_type=\"tear_down_pod\",le=\"0.01\"}} 7\n");
        for (bound, count) in bounds.iter().zip(counts) {
            text += &format!("{name}_bucket{{{SET_UP},le=\"{bound}\"}} {count}\n");
        }
        text + &format!("{name}_sum{{{SET_UP}}} {sum}\n{name}_count{{{SET_UP}}} {}\n", counts[2])
    }

    #[test]
    fn what_came_in_between_is_told() {
        let before = Histogram::read(&told([2, 4, 4], 0.05)).unwrap();
        let after = Histogram::read(&told([4, 12, 14], 0.25)).unwrap();
        let new = after.since(&before);
        assert_eq!((new.count, new.mean().round()), (10, 20.0));
        // 2 up to 10 ms, 6 more up to 25 ms: the fifth is the third of these.
        let (lower, upper, median) = new.median().unwrap();
        assert_eq!((lower, upper, median.round()), (10.0, 25.0, 18.0));
        assert_eq!(after.since(&Histogram::default()), after);
        assert_eq!(Histogram::default().and(&new), new);
        assert_eq!(new.and(&new).count, 20);
    }

    #[test]
    fn nothing_has_no_median() {
        assert_eq!(Histogram::read("").unwrap().median(), None);
    }
}
