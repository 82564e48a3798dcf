//! Programs that are killed, or wait, at a chosen system call, from outside: they need no switch for it. And
//! what other programs they start.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use anyhow::{Context, Result, bail};
use nix::{
    libc,
    sys::{
        ptrace::{self, Options},
        signal::{Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use crate::netns::Namespace;

/// What became of a program under trace.
#[derive(Debug)]
pub enum Ended {
    /// SIGKILL when it was about to make the chosen call, which the kernel then did not execute.
    Killed {
        /// The kernel's number of that call, for messages.
        number: String,
    },
    /// It ended by itself, before it came so far.
    Completed {
        /// What it printed.
        output: Output,
        /// How many system calls it made, those of its threads included.
        calls: usize,
    },
}

/// Runs a program in a namespace with this environment (beside the caller's own) and input, and
/// kills it at its `kill_at`-th system call, counted from 1 at the first after its start.
pub fn run(
    namespace: &Namespace,
    program: &Path,
    environment: &[(String, String)],
    stdin: &[u8],
    kill_at: usize,
) -> Result<Ended> {
    // Only the thread that traces may give orders, so all of it happens on one.
    namespace.enter(|| trace(program, environment, stdin, kill_at, None))?
}

/// The same, but when it is about to make its `at`-th system call it waits there until `meanwhile`
/// has returned, and goes on. It ends by itself.
pub fn run_around(
    namespace: &Namespace,
    program: &Path,
    environment: &[(String, String)],
    stdin: &[u8],
    at: usize,
    meanwhile: &mut Meanwhile<'_>,
) -> Result<Ended> {
    namespace.enter(|| trace(program, environment, stdin, at, Some(meanwhile)))?
}

/// Runs a program as [`run`] does, but to its end; answers what it printed, and the programs that were
/// executed by it and by all that it started.
pub fn executed(
    namespace: &Namespace,
    program: &Path,
    environment: &[(String, String)],
    stdin: &[u8],
) -> Result<(Output, Vec<PathBuf>)> {
    namespace.enter(|| {
        let mut child = begin(program, environment, stdin)?;
        let leader = Pid::from_raw(i32::try_from(child.id())?);
        let options = Options::PTRACE_O_TRACEFORK
            | Options::PTRACE_O_TRACEVFORK
            | Options::PTRACE_O_TRACECLONE;
        let tracee = Tracee::seize(leader, options)?;
        let (status, programs) = tracee.follow()?;
        Ok((end(&mut child, status)?, programs))
    })?
}

/// What happens while a program waits at a call.
pub type Meanwhile<'a> = dyn FnMut() -> Result<()> + Send + 'a;

fn trace(
    program: &Path,
    environment: &[(String, String)],
    stdin: &[u8],
    at: usize,
    meanwhile: Option<&mut Meanwhile<'_>>,
) -> Result<Ended> {
    let mut child = begin(program, environment, stdin)?;
    let leader = Pid::from_raw(i32::try_from(child.id())?);
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_TRACECLONE;
    let mut tracee = Tracee::seize(leader, options)?;
    let ended = tracee.run(at, meanwhile)?;
    let output = end(&mut child, ended.status)?;
    Ok(match ended.killed_at {
        Some(number) => Ended::Killed { number },
        None => Ended::Completed { output, calls: ended.calls },
    })
}

/// Starts a shell that stops itself to be traced, and that becomes the program then.
fn begin(program: &Path, environment: &[(String, String)], stdin: &[u8]) -> Result<Child> {
    let mut command = Command::new("sh");
    command.args(["-c", "kill -STOP $$; exec \"$0\""]).arg(program).process_group(0);
    // Where cargo has the loader look for libraries makes many a call that is not the program's.
    command.env_remove("LD_LIBRARY_PATH");
    command.envs(environment.iter().map(|(key, value)| (key, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    // All of it goes into the pipe's buffer: nobody reads yet.
    child.stdin.take().context("no input")?.write_all(stdin)?;
    Ok(child)
}

/// What a program that has ended with this status had printed.
fn end(child: &mut Child, status: ExitStatus) -> Result<Output> {
    let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
    child.stdout.take().context("no output")?.read_to_end(&mut output.stdout)?;
    child.stderr.take().context("no output")?.read_to_end(&mut output.stderr)?;
    Ok(output)
}

/// A traced process with its threads. They are killed if their tracer ends.
struct Tracee {
    leader: Pid,
    /// Whether a thread is inside a call: stops come in pairs.
    inside: BTreeMap<Pid, bool>,
}

struct End {
    status: ExitStatus,
    killed_at: Option<String>,
    calls: usize,
}

impl Tracee {
    /// Takes a shell that has stopped itself, and follows it into the program that it becomes.
    fn seize(leader: Pid, options: Options) -> Result<Self> {
        match waitpid(leader, Some(WaitPidFlag::WUNTRACED))? {
            WaitStatus::Stopped(..) => {}
            other => bail!("it did not stop to be traced: {other:?}"),
        }
        let options = options | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_EXITKILL;
        ptrace::seize(leader, options).context("cannot trace")?;
        kill(leader, Signal::SIGCONT)?;
        loop {
            match waitpid(leader, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_EXEC) => break,
                WaitStatus::Stopped(..) | WaitStatus::PtraceEvent(..) => {
                    ptrace::cont(leader, None)?;
                }
                other => bail!("it ended before it became the program: {other:?}"),
            }
        }
        // The stop at an exec is inside of it.
        Ok(Self { leader, inside: BTreeMap::from([(leader, true)]) })
    }

    /// To its end, with all that it starts; the programs that are executed.
    fn follow(self) -> Result<(ExitStatus, Vec<PathBuf>)> {
        let mut programs = Vec::new();
        ptrace::cont(self.leader, None)?;
        // Some start groups of their own. What this thread traces is the only thing it waits for.
        let all = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        loop {
            let (thread, signal) = match waitpid(None, Some(all))? {
                WaitStatus::Exited(pid, code) if pid == self.leader => {
                    return Ok((ExitStatus::from_raw(code << 8), programs));
                }
                WaitStatus::Signaled(pid, signal, _) if pid == self.leader => {
                    return Ok((ExitStatus::from_raw(signal as i32), programs));
                }
                WaitStatus::PtraceEvent(thread, _, event) => {
                    if event == libc::PTRACE_EVENT_EXEC {
                        programs.push(fs::read_link(format!("/proc/{thread}/exe"))?);
                    }
                    (thread, None)
                }
                WaitStatus::Stopped(thread, signal) => (thread, Some(signal)),
                _ => continue,
            };
            match ptrace::cont(thread, signal) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(errno) => return Err(errno).context("cannot let a traced thread go on"),
            }
        }
    }

    /// To its end: by SIGKILL at a call, where nothing else is to happen at that.
    fn run(&mut self, at: usize, mut meanwhile: Option<&mut Meanwhile<'_>>) -> Result<End> {
        let mut end = End { status: ExitStatus::default(), killed_at: None, calls: 0 };
        resume(self.leader, None)?;
        // Threads are in the group of their process, and nobody else is.
        let group = Pid::from_raw(-self.leader.as_raw());
        loop {
            match waitpid(group, Some(WaitPidFlag::__WALL))? {
                WaitStatus::PtraceSyscall(thread) => {
                    let inside = self.inside.entry(thread).or_default();
                    *inside = !*inside;
                    if *inside && end.killed_at.is_none() {
                        end.calls += 1;
                        if end.calls == at {
                            match &mut meanwhile {
                                Some(meanwhile) => meanwhile()?,
                                None => {
                                    end.killed_at = Some(call_number(thread));
                                    kill(self.leader, Signal::SIGKILL)?;
                                    continue;
                                }
                            }
                        }
                    }
                    resume(thread, None)?;
                }
                WaitStatus::Stopped(thread, signal) => resume(thread, Some(signal))?,
                WaitStatus::PtraceEvent(thread, ..) => resume(thread, None)?,
                WaitStatus::Exited(thread, code) if thread == self.leader => {
                    end.status = ExitStatus::from_raw(code << 8);
                    return Ok(end);
                }
                WaitStatus::Signaled(thread, signal, _) if thread == self.leader => {
                    end.status = ExitStatus::from_raw(signal as i32);
                    return Ok(end);
                }
                _ => {}
            }
        }
    }
}

/// On to the next begin or end of a call.
fn resume(thread: Pid, signal: Option<Signal>) -> Result<()> {
    match ptrace::syscall(thread, signal) {
        // Killed in the meantime; its end is reported next.
        Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).context("cannot let a traced thread go on"),
    }
}

/// The number of the call that a thread is about to make, as the kernel tells it.
fn call_number(thread: Pid) -> String {
    let text = fs::read_to_string(format!("/proc/{thread}/syscall")).unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}
