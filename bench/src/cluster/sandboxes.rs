//! How long containerd took for the kubelet's calls, out of its log.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use jiff::Timestamp;

/// What is in the line at the beginning of a call, and of its success.
const CALL: &str = "msg=\"RunPodSandbox for ";
const SUCCESS: &str = " returns sandbox id ";

/// Whole RunPodSandbox calls in milliseconds, those that succeeded, in the order of their ends.
pub(super) fn durations(log: &str) -> Result<Vec<f64>> {
    let mut begun: BTreeMap<&str, Timestamp> = BTreeMap::new();
    let mut durations = Vec::new();
    for line in log.lines() {
        let Some((head, rest)) = line.split_once(CALL) else { continue };
        let (_, time) = head.split_once("time=\"").context("a line without its time")?;
        let (time, _) = time.split_once('"').context("a line without its time")?;
        let time: Timestamp = time.parse().with_context(|| format!("no time: {time}"))?;
        match rest.split_once(SUCCESS) {
            Some((pod, _)) => {
                if let Some(begun) = begun.remove(pod) {
                    durations.push(time.duration_since(begun).as_secs_f64() * 1e3);
                }
            }
            None => {
                // The text's own quotes stay, as they do in the other line.
                begun.insert(rest.strip_suffix('"').unwrap_or(rest), time);
            }
        }
    }
    Ok(durations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_lasts_until_it_returns() {
        let line = |time: &str, rest: &str| {
            format!(r#"time="2026-11-26T23:59:{time}Z" level=info msg="RunPodSandbox for {rest}""#)
        };
        let log = [
            line("58.900000000", r#"name:\"a\" namespace:\"default\""#),
            line("59.000000000", r#"name:\"b\" attempt:1"#),
            line("59.100000000", r#"name:\"b\" attempt:1 failed, error"#),
            line("59.150000000", r#"name:\"a\" namespace:\"default\" returns sandbox id \"1\""#),
            "time=\"2026-11-26T23:59:59Z\" level=info msg=\"StopPodSandbox for \\\"1\\\"\""
                .to_owned(),
        ];
        let found = durations(&log.join("\n")).unwrap();
        assert_eq!(found.iter().map(|ms| ms.round()).collect::<Vec<_>>(), [250.0]);
    }
}
