//! Running programs: to their end with a useful error, or as daemons that end with their guard.

use std::{
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{netns::Namespace, wait::wait_for};

/// Runs a program to its end; its standard output, or an error with what it complained about.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    check(&format!("{command:?}"), &output)
}

/// The same with something on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<String> {
    let output = output_with_input(command, input.as_bytes())?;
    check(&format!("{command:?} < {input:?}"), &output)
}

/// Runs a program with `input` on its standard input, to its end, whatever its exit status.
pub fn output_with_input(command: &mut Command, input: &[u8]) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input closes it; that is no failure.
        let _ = stdin.write_all(input);
    }
    child.wait_with_output().with_context(|| format!("cannot read what {command:?} prints"))
}

/// The output of a program that succeeded.
pub fn check(what: &str, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{what}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A daemon: its output goes into a file, and it is killed and waited for when this is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` inside `namespace`; standard output and error are appended to `log`.
    pub fn start(
        name: &str,
        namespace: &Namespace,
        command: &mut Command,
        log: &Path,
    ) -> Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .open(log)
            .with_context(|| format!("cannot write the log {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = namespace.spawn(command)?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All it wrote so far.
    pub fn log(&self) -> String {
        read_lossy(&self.log)
    }

    /// Sends a signal. After SIGSTOP no thread of it does anything any more: the signal itself only asks
    /// for that, and on a busy machine some go on for a while.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {}", self.name))?;
        if signal == Signal::SIGSTOP {
            wait_for("every thread to stop", Duration::from_secs(10), || self.all_stopped())?;
        }
        Ok(())
    }

    fn all_stopped(&self) -> Result<()> {
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = fs::read_to_string(task?.path().join("stat"))?;
            // Behind the name, which may hold anything, in parentheses.
            let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
            ensure!(matches!(state, Some('T' | 'Z')), "{} is not stopped: {stat}", self.name);
        }
        Ok(())
    }

    /// Fails, with the end of its log, if it has ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}\n{}", self.name, tail(&self.log(), 20)),
        }
    }

    /// Waits until it has ended by itself or by a signal sent before.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), deadline, || {
            self.child.try_wait()?.context("it still runs")
        })
    }

    /// SIGKILL, and waits for the end.
    pub fn kill9(mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("cannot kill {}", self.name))?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// What is in a file, as far as it can be read as text; nothing if there is no file.
pub fn read_lossy(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
