//! Adds up what the test runners say, and repeats why a test failed.

use anyhow::{Context, bail};

/// The sums over the output of one or more `cargo test`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

/// Reads the output of `cargo test`. Unit tests count as one suite, doctests as another, and each
/// further test target as one; a suite that ran nothing is an error, since a filter, a feature or
/// a moved file can make a whole suite disappear without a failure.
pub(crate) fn count(log: &str) -> anyhow::Result<Counts> {
    let mut suites = std::collections::BTreeMap::<String, Counts>::new();
    let mut suite = None;
    for line in log.lines() {
        if let Some(name) = suite_of(line.trim_start()) {
            suite = Some(name);
        } else if let Some(result) = line.strip_prefix("test result: ") {
            let suite = suite.clone().with_context(|| format!("no suite before `{line}`"))?;
            let sum = suites.entry(suite).or_default();
            sum.passed += number(result, "passed")?;
            sum.failed += number(result, "failed")?;
            let ignored = number(result, "ignored")?;
            if ignored > 0 {
                bail!("{ignored} tests were skipped: `{line}`; every test has to run");
            }
        }
    }
    if suites.is_empty() {
        bail!("no test ran at all");
    }
    let mut sum = Counts::default();
    for (suite, counts) in suites {
        if counts == Counts::default() {
            bail!("{suite} ran no test");
        }
        sum.passed += counts.passed;
        sum.failed += counts.failed;
    }
    Ok(sum)
}

/// Lines of a panic's message that are worth repeating, and characters of each: whole logs of peers follow the
/// first sentence in some.
const LINES: usize = 8;
const CHARACTERS: usize = 300;

/// The failed tests of a log of `cargo test`, each with the place and the beginning of its message: a long log
/// buries them.
pub(crate) fn failures(log: &str) -> Vec<String> {
    let mut failures = Vec::new();
    let mut lines = log.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((name, mut has_begun)) = failed(line) else { continue };
        let mut said = format!("FAILED {name}");
        let mut count = 0;
        // What follows in a frame of its own is the log of a peer.
        while let Some(line) =
            lines.next_if(|line| !line.starts_with("---- ") && *line != "failures:")
        {
            has_begun |= line.contains("panicked at ") || line.starts_with("Error: ");
            if has_begun && count < LINES && !line.is_empty() && !line.starts_with("note: ") {
                count += 1;
                said.push_str("\n    ");
                said.extend(line.chars().take(CHARACTERS));
            }
        }
        failures.push(said);
    }
    failures
}

/// The name, from `---- suite::case stdout ----` of the compiler's own runner, or from `---- suite::case ----` of
/// that of the suites in kernels, and whether the message begins at once, with nothing of the output before it.
fn failed(line: &str) -> Option<(&str, bool)> {
    let frame = line.strip_prefix("---- ")?.strip_suffix(" ----")?;
    let (name, begins) = match frame.strip_suffix(" stdout") {
        Some(name) => (name, false),
        None => (frame, true),
    };
    (!name.contains([' ', '/'])).then_some((name, begins))
}

/// The suite that a line of cargo announces.
fn suite_of(line: &str) -> Option<String> {
    if line.starts_with("Doc-tests ") {
        return Some("doctests".to_owned());
    }
    let target = line.strip_prefix("Running ")?.split(" (").next()?;
    let unit = target.starts_with("unittests ");
    Some(if unit { "unit tests".to_owned() } else { target.to_owned() })
}

/// `23` from `ok. 23 passed; 0 failed; ...`.
fn number(result: &str, what: &str) -> anyhow::Result<u64> {
    result
        .split(['.', ';'])
        .find_map(|part| part.trim().strip_suffix(what)?.trim().parse().ok())
        .with_context(|| format!("no number of `{what}` in `{result}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
   Compiling twill-types v0.1.0
     Running unittests src/lib.rs (target/debug/deps/twill_types-1)
running 2 tests
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s
     Running unittests src/main.rs (target/debug/deps/twilld-1)
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
     Running kernel/main.rs (target/debug/deps/kernel-1)
test result: FAILED. 5 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9.10s
   Doc-tests twill_types
test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.50s
";

    #[test]
    fn adds_up_all_runners() {
        assert_eq!(count(LOG).unwrap(), Counts { passed: 10, failed: 1 });
    }

    #[test]
    fn failed_tests_are_named_with_the_beginning_of_their_message() {
        let noise = "log\n".repeat(20);
        let log = format!(
            "failures:\n\n---- pods::scale stdout ----\nbefore\nthread 'pods::scale' panicked at tests/pods.rs:7:9:\n\
             {}\n{noise}note: run with `RUST_BACKTRACE=1`\n\n---- gc::b stdout ----\nError: \"no\"\n\n\n\
             failures:\n    gc::b\n    pods::scale\n\ntest result: FAILED. 0 passed; 2 failed; 0 ignored\n\
             failures:\n\n---- kit::c ----\nno answer\n---- /run/lab/bird.log (end) ----\n{noise}\n\nfailures:\n    kit::c\n",
            "long ".repeat(200)
        );
        let failures = failures(&log);
        let [first, second, third] = failures.as_slice() else { panic!("{failures:?}") };
        let lines: Vec<_> = first.lines().collect();
        assert_eq!(
            lines[..2],
            ["FAILED pods::scale", "    thread 'pods::scale' panicked at tests/pods.rs:7:9:"]
        );
        assert_eq!((lines.len(), lines[2].len()), (1 + LINES, 4 + CHARACTERS));
        assert_eq!(second, "FAILED gc::b\n    Error: \"no\"");
        assert_eq!(third, "FAILED kit::c\n    no answer");
    }

    #[test]
    fn a_suite_without_tests_is_an_error() {
        for (from, to, expected) in [
            ("5 passed; 1 failed", "0 passed; 0 failed", "kernel/main.rs ran no test"),
            ("3 passed", "0 passed", "doctests ran no test"),
            ("2 passed", "0 passed", "unit tests ran no test"),
            ("2 passed; 0 failed; 0 ignored", "2 passed; 0 failed; 4 ignored", "4 tests were"),
            ("test result: ", "", "no test ran at all"),
        ] {
            let error = count(&LOG.replace(from, to)).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
