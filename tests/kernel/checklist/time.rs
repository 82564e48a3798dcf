//! One deadline covers all waits of a call, and the wait for its configuration has one of its own.

use std::{
    fs::File,
    io::{Read, Write},
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};
use twill_tests::{netns::Namespace, programs, wait::wait_for};

use super::{Answer, Call, Site};
use crate::SECONDS;

/// How long the configuration is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The same where it says little or nothing of what is answered, with some seconds for a busy machine: far less
/// than what the others wait.
const HASTE: Duration = Duration::from_secs(1 + 5);

/// The time of the whole call, and no more than some seconds for a busy machine: far less than
/// without a `timeoutSeconds`.
const HURRIED: Duration = Duration::from_secs(1 + 9);

/// A call whose caller never closes its standard input.
struct Unclosed {
    child: Child,
    _stdin: ChildStdin,
}

impl Unclosed {
    fn start(site: &Site, verb: &str) -> Result<Self> {
        Self::of(&site.call(verb)?)
    }

    fn of(call: &Call<'_>) -> Result<Self> {
        let call = call.clone().config("/timeoutSeconds", json!(1));
        let mut command = Command::new(programs::find("twill")?);
        command.envs(&call.environment);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = call.host.spawn(&mut command)?;
        let mut stdin = child.stdin.take().context("standard input")?;
        stdin.write_all(call.netconf.to_string().as_bytes())?;
        Ok(Self { child, _stdin: stdin })
    }

    /// What it has answered, within this time from now.
    fn answer(mut self, deadline: Duration) -> Result<Answer> {
        let ended = wait_for("the end of the call", deadline, || {
            self.child.try_wait()?.context("it still waits for its standard input")
        });
        if ended.is_err() {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        ended?;
        let mut stdout = Vec::new();
        self.child.stdout.take().context("standard output")?.read_to_end(&mut stdout)?;
        Ok(Answer(std::process::Output { status, stdout, stderr: Vec::new() }))
    }
}

/// The end of the configuration is the end of the stream, so nobody knows more than that it does
/// not come. VERSION, which can do without, answers, and so does a call with wrong variables.
pub(crate) fn e_10_a_configuration_without_an_end_is_given_up() -> Result<()> {
    let site = Site::new()?;
    let calls =
        ["VERSION", "ADD", "DEL", "STATUS"].map(|verb| (verb, Unclosed::start(&site, verb)));
    let wrong = [
        site.call("FROB")?,
        site.call("ADD")?.unset("CNI_IFNAME"),
        site.call("ADD")?.set("CNI_CONTAINERID", "-a"),
        site.call("DEL")?.set("CNI_IFNAME", ".."),
    ];
    let wrong = wrong.iter().map(Unclosed::of).collect::<Result<Vec<_>>>()?;
    // Those that wait least are waited for first.
    for call in wrong {
        call.answer(HASTE)?.refused(4, &["CNI_"])?;
    }
    for (verb, call) in calls {
        let call = call?;
        match verb {
            "VERSION" => call.answer(HASTE)?.object().map(drop)?,
            _ => call.answer(PATIENCE + SECONDS)?.refused(5, &["standard input", "timed out"])?,
        }
    }
    site.untouched()
}

/// In both modes that can do without a daemon; the daemon that hangs is tried in `reconcile`.
pub(crate) fn o_06_an_add_gives_up_a_store_that_somebody_holds() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    let other = Namespace::create("other")?;
    let mut attachment = site.attachment("c2");
    attachment.netns = other.path().display().to_string();
    let lock = File::open(site.run_dir.path().join("ipam/owner.lock"))?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    for mode in [json!("standalone"), Value::Null] {
        let call = site.call_for("ADD", &attachment)?.config("/ipam/mode", mode.clone());
        let start = Instant::now();
        let answer = call.config("/timeoutSeconds", json!(1)).run()?;
        let took = start.elapsed();
        answer.refused(11, &["another process owns the address store"])?;
        ensure!(took < HURRIED, "{mode}: it gave up after {took:?}");
    }
    drop((lock, other));
    site.call("DEL")?.run()?.silent()?;
    site.as_new()
}
