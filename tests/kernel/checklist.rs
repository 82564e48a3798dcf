//! What the CNI specification and its library say about a plugin, line by line:
//! `docs/cni-checklist.md` has the lines, and each names a test. The plugin is executed with
//! environment and standard input; its exit status, standard output and the kernel are looked at.

mod add;
mod add_result;
mod caller;
mod check;
mod config;
mod del;
mod delegate;
mod output;
mod time;
mod variables;
mod versions;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, iter,
    process::{Command, Output},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cni::{Attachment, CniError, Runtime},
    netns::Namespace,
    process::output_with_input,
    programs,
    snapshot::Snapshot,
};

pub(crate) use self::{
    add::*, add_result::*, caller::*, check::*, config::*, del::*, delegate::*, output::*, time::*,
    variables::*, versions::*,
};
use crate::plugin::{lone_node, standalone};

/// How many lines there are of each letter.
const LINES: [(&str, usize); 11] = [
    ("V", 12),
    ("E", 18),
    ("O", 8),
    ("A", 14),
    ("D", 10),
    ("C", 7),
    ("S", 6),
    ("G", 9),
    ("I", 4),
    ("F", 3),
    ("R", 2),
];

/// The table has all lines, each with a test that is named after it, and names no test that there is
/// not; a test that is named after a line stands there.
pub(crate) fn the_page_names_every_line() -> Result<()> {
    let page = fs::read_to_string(programs::source("docs/cni-checklist.md"))?;
    let mut suite = BTreeSet::new();
    for list in ["tests/kernel/main.rs", "tests/runtimes/main.rs"] {
        suite.extend(names(&fs::read_to_string(programs::source(list))?));
    }
    // Of the plugin itself: what cannot be brought about from outside.
    suite.insert("panic::tests".to_owned());
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split(" | ").collect())
        .filter(|row: &Vec<&str>| is_line(row[0]))
        .collect();
    let lines: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    let numbered = |(letter, last): (&str, usize)| -> Vec<String> {
        (1..=last).map(|number| format!("{letter}-{number:02}")).collect()
    };
    let all: Vec<String> = LINES.into_iter().flat_map(numbered).collect();
    ensure!(lines == all, "docs/cni-checklist.md has the lines {lines:?}");
    let mut wrong = Vec::new();
    for row in &rows {
        let tests = names(row.last().copied().unwrap_or_default());
        if !tests.iter().any(|test| named_after(test).any(|line| line == row[0])) {
            wrong.push(format!("{} names no test that is named after it", row[0]));
        }
        let unknown = tests.difference(&suite);
        wrong.extend(unknown.map(|test| format!("{} names {test}, which there is not", row[0])));
        let after = |test: &&String| named_after(test).any(|line| line == row[0]);
        let missing = suite.iter().filter(after).filter(|test| !tests.contains(*test));
        wrong.extend(missing.map(|test| format!("{} does not name {test}", row[0])));
    }
    let nameless = suite.iter().filter(|test| {
        test.starts_with("checklist::")
            && !test.ends_with("the_page_names_every_line")
            && named_after(test).next().is_none()
    });
    wrong.extend(nameless.map(|test| format!("{test} is named after no line")));
    ensure!(wrong.is_empty(), "docs/cni-checklist.md: {wrong:#?}");
    Ok(())
}

/// The lines that a test's name begins with: `G-06` and `G-07` of `gc::g_06_g_07_the_list`.
fn named_after(test: &str) -> impl Iterator<Item = String> {
    let mut rest = test.split_once("::").map_or(test, |(_, name)| name);
    iter::from_fn(move || {
        let (line, after) = (rest.get(..4)?, rest.get(5..)?);
        let line = line.replacen('_', "-", 1).to_uppercase();
        rest = after;
        is_line(&line).then_some(line)
    })
}

/// `V-01`, and the like.
fn is_line(cell: &str) -> bool {
    let digits = |text: &str| text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit());
    cell.split_once('-').is_some_and(|(letter, number)| letter.len() == 1 && digits(number))
}

/// The tests, as `module::name`, in a text.
fn names(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c: char| !word(c)).filter(|word| {
        word.split_once("::").is_some_and(|(module, name)| {
            !module.is_empty() && !name.is_empty() && !name.contains("::")
        })
    });
    words.map(str::to_owned).collect()
}

/// A node without a daemon, and a pod's namespace. There are two addresses of each family.
struct Site {
    host: Namespace,
    pod: Namespace,
    runtime: Runtime,
    run_dir: tempfile::TempDir,
    before: Snapshot,
}

impl Site {
    /// With the newest version of the specification.
    fn new() -> Result<Self> {
        Self::of_version("1.1.0")
    }

    fn of_version(version: &str) -> Result<Self> {
        let host = lone_node()?;
        let run_dir = tempfile::tempdir_in("/run")?;
        let pools = json!([
            {"cidr": "10.20.0.0/31", "blockSize": 31},
            {"cidr": "fd00:20::/127", "blockSize": 127},
        ]);
        let mut conflist = standalone(version, run_dir.path(), &pools);
        conflist["plugins"][0]["ipam"]["assignIPv6"] = json!(true);
        let runtime = Runtime::new(conflist, vec![programs::directory()?]);
        let before = Snapshot::namespace(&host)?;
        Ok(Self { host, pod: Namespace::create("pod")?, runtime, run_dir, before })
    }

    /// `eth0` of a container in the pod's namespace.
    fn attachment(&self, container: &str) -> Attachment {
        Attachment::pod("prod", "web", container, &self.pod.path().display().to_string())
    }

    /// A call for container `c1`.
    fn call(&self, verb: &str) -> Result<Call<'_>> {
        self.call_for(verb, &self.attachment("c1"))
    }

    fn call_for(&self, verb: &str, attachment: &Attachment) -> Result<Call<'_>> {
        Call::of(&self.runtime, &self.host, verb, attachment)
    }

    /// An ADD of `c1` that has to succeed; its result is what CHECK and DEL get.
    fn add(&self) -> Result<Value> {
        self.runtime.add(&self.host, &self.attachment("c1"))
    }

    /// No link and no route of a pod, on the node or in the pod.
    fn untouched(&self) -> Result<()> {
        let mut left = self.before.differences(&Snapshot::namespace(&self.host)?);
        // The node's own part stays: the gateway's route, and what forwarding brings along.
        left.retain(|line| !line.contains("169.254.1.1 dev lo") && !line.contains("anycast"));
        ensure!(left.is_empty(), "left on the node: {left:#?}");
        let inside = self.pod.ip("-oneline link show")?;
        ensure!(inside.lines().count() == 1, "left in the pod: {inside}");
        Ok(())
    }

    /// Nothing is left of a pod, and no address is in use: two pods can have the two there are.
    fn as_new(&self) -> Result<()> {
        self.untouched()?;
        let other = Namespace::create("other")?;
        let mut second = self.attachment("second");
        second.netns = other.path().display().to_string();
        let both = [self.attachment("first"), second];
        for attachment in &both {
            self.runtime.add(&self.host, attachment).context("an address has leaked")?;
        }
        both.iter().try_for_each(|attachment| self.runtime.del(&self.host, attachment))?;
        self.untouched()
    }
}

/// A call as a runtime would make it, to be changed.
#[derive(Clone)]
struct Call<'a> {
    host: &'a Namespace,
    environment: BTreeMap<String, String>,
    netconf: Value,
    /// In the place of the configuration.
    stdin: Option<String>,
}

impl<'a> Call<'a> {
    fn of(
        runtime: &Runtime,
        host: &'a Namespace,
        verb: &str,
        attachment: &Attachment,
    ) -> Result<Self> {
        let call = runtime.first_call(verb, attachment)?;
        let environment = call.environment.into_iter().collect();
        Ok(Self { host, environment, netconf: call.netconf, stdin: None })
    }

    fn set(mut self, variable: &str, value: &str) -> Self {
        self.environment.insert(variable.to_owned(), value.to_owned());
        self
    }

    fn unset(mut self, variable: &str) -> Self {
        self.environment.remove(variable);
        self
    }

    /// Replaces a field of the configuration (`/ipam/mode`), or takes it away if it is null.
    fn config(mut self, pointer: &str, value: Value) -> Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
        if let Some(map) = self.netconf.pointer_mut(parent).and_then(Value::as_object_mut) {
            match value {
                Value::Null => map.remove(key),
                value => map.insert(key.to_owned(), value),
            };
        }
        self
    }

    fn stdin(mut self, text: &str) -> Self {
        self.stdin = Some(text.to_owned());
        self
    }

    fn run(&self) -> Result<Answer> {
        self.run_as(Command::new(programs::find("twill")?))
    }

    /// Executes the plugin by a command of the caller's.
    fn run_as(&self, mut command: Command) -> Result<Answer> {
        command.envs(&self.environment);
        let input = self.stdin.clone().unwrap_or_else(|| self.netconf.to_string());
        let output = self.host.enter(|| output_with_input(&mut command, input.as_bytes()))??;
        Ok(Answer(output))
    }
}

/// What a call answered.
#[derive(Debug)]
struct Answer(Output);

impl Answer {
    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    /// Success, with one object and nothing else.
    fn object(&self) -> Result<Value> {
        ensure!(self.0.status.success(), "it failed: {self:?}");
        let value: Value = serde_json::from_str(&self.stdout())
            .with_context(|| format!("not one JSON text: {self:?}"))?;
        ensure!(value.is_object(), "no object: {value}");
        Ok(value)
    }

    /// Success without a word.
    fn silent(&self) -> Result<()> {
        ensure!(self.0.status.success(), "it failed: {self:?}");
        ensure!(self.0.stdout.is_empty(), "it printed: {self:?}");
        Ok(())
    }

    /// Failure, with one error object and nothing else on standard output.
    fn error(&self) -> Result<CniError> {
        ensure!(!self.0.status.success(), "it succeeded: {self:?}");
        let value: Value = serde_json::from_str(&self.stdout())
            .with_context(|| format!("not one JSON text: {self:?}"))?;
        let object = value.as_object().with_context(|| format!("no object: {value}"))?;
        let known = ["cniVersion", "code", "msg", "details"];
        ensure!(object.keys().all(|key| known.contains(&key.as_str())), "{value}");
        let text = |key: &str| object.get(key).map_or(Some(""), Value::as_str).map(str::to_owned);
        let error = CniError {
            code: value["code"].as_u64().with_context(|| format!("no code: {value}"))?,
            message: text("msg").with_context(|| format!("msg is no text: {value}"))?,
            details: text("details").with_context(|| format!("details is no text: {value}"))?,
        };
        ensure!(!error.message.is_empty(), "no message: {value}");
        ensure!(value["cniVersion"].is_string(), "no version: {value}");
        Ok(error)
    }

    /// [`Answer::error`] with this code, and these words in it.
    fn refused(&self, code: u64, words: &[&str]) -> Result<()> {
        let error = self.error()?;
        ensure!(error.code == code, "code {code} was expected: {error}");
        for word in words {
            ensure!(error.to_string().contains(word), "no {word:?} in: {error}");
        }
        Ok(())
    }
}
