//! A program that has a deadline, with all that it starts.

use std::{
    io::{self, Read, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use twill_sys::child::{end_of, ends_with_parent};

use crate::deadline::Deadline;

/// Interval at which the program's end is looked for while it neither reads nor prints, on a kernel that does
/// not tell it, and after it was killed.
const LOOK: Duration = Duration::from_millis(1);

/// How long a program that was killed may take to end: only one that hangs in the kernel needs
/// longer, and nobody can wait for that.
const END: Duration = Duration::from_millis(100);

/// The most that a program may print: one that never stops must not keep us from looking at the
/// time.
const MOST: usize = 16 << 20;

/// How a program ended by itself.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    /// On standard output.
    pub(super) printed: Vec<u8>,
}

/// Gives a program its standard input and takes its standard output until it has ended; `None` if
/// the deadline came first, and it was killed.
///
/// Only the program itself is waited for: what it leaves running may hold on to its pipes. It ends
/// with this process, if that is killed meanwhile.
pub(super) fn run(
    mut command: Command,
    input: &[u8],
    deadline: Deadline,
) -> io::Result<Option<Ended>> {
    // A group of its own, so that what it has started can be killed with it.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = ends_with_parent(&mut command).spawn()?;
    let talked = Talk::new(&mut child, input).and_then(|talk| talk.until(&child, deadline));
    match talked {
        Ok(Some(printed)) => Ok(Some(Ended { status: child.wait()?, printed })),
        Ok(None) => {
            kill(&mut child);
            Ok(None)
        }
        Err(error) => {
            kill(&mut child);
            Err(error)
        }
    }
}

/// Whether a child has ended. It is not waited for yet, so its number and its group's stay its own.
fn has_ended(child: &Child) -> io::Result<bool> {
    let id = Id::Pid(Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?));
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(id, flags) {
        Ok(status) => Ok(status != WaitStatus::StillAlive),
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// The program's pipes, none of which is waited for on its own.
struct Talk<'a> {
    stdin: Option<ChildStdin>,
    /// What has not been written yet.
    input: &'a [u8],
    stdout: Option<ChildStdout>,
    printed: Vec<u8>,
    /// The program's end, where the kernel can tell it (Linux 5.3).
    end: Option<OwnedFd>,
}

impl<'a> Talk<'a> {
    fn new(child: &mut Child, input: &'a [u8]) -> io::Result<Self> {
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let ends = [stdin.as_ref().map(AsFd::as_fd), stdout.as_ref().map(AsFd::as_fd)];
        for end in ends.into_iter().flatten() {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self { stdin, input, stdout, printed: Vec::new(), end: end_of(child).ok() })
    }

    /// What it has printed until its end, or `None` at the deadline.
    fn until(mut self, child: &Child, deadline: Deadline) -> io::Result<Option<Vec<u8>>> {
        loop {
            // In this order: all that it printed before its end is in the pipe then.
            let ended = has_ended(child)?;
            self.write();
            self.read()?;
            if ended {
                return Ok(Some(self.printed));
            }
            if deadline.left().is_zero() {
                return Ok(None);
            }
            let left = deadline.left();
            self.wait(if self.end.is_some() { left } else { left.min(LOOK) })?;
        }
    }

    /// Until something can be written or read, or the program has ended, and no longer than `time`.
    fn wait(&self, time: Duration) -> io::Result<()> {
        let stdin = self.stdin.as_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLOUT));
        let stdout = self.stdout.as_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        let end = self.end.as_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        let mut ends: Vec<PollFd<'_>> = stdin.into_iter().chain(stdout).chain(end).collect();
        let time = PollTimeout::try_from(time.as_millis().max(1)).unwrap_or(PollTimeout::MAX);
        match poll(&mut ends, time) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// As much as the pipe takes. One that does not read its input is no failure of ours.
    fn write(&mut self) {
        while let Some(stdin) = &mut self.stdin {
            match stdin.write(self.input) {
                Ok(count) if count < self.input.len() => self.input = &self.input[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The end: it is told by closing.
                Ok(_) | Err(_) => self.stdin = None,
            }
        }
    }

    /// As much as there is.
    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 16 * 1024];
        while let Some(stdout) = &mut self.stdout {
            match stdout.read(&mut chunk) {
                Ok(0) => self.stdout = None,
                Ok(_) if self.printed.len() > MOST => {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                Ok(count) => self.printed.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Kills the program and all of its group. It has not been waited for, so the numbers are still its
/// own.
fn kill(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // It may have left its group, and its group may be empty.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.kill();
    let end = Deadline::after(END);
    while let Ok(None) = child.try_wait()
        && !end.left().is_zero()
    {
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    fn sh(script: &str, input: &[u8], time: Duration) -> Option<Ended> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        run(command, input, Deadline::after(time)).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn both_pipes_are_served_at_once() {
        // More than a pipe holds, in both directions.
        let input = vec![b'x'; 1 << 20];
        let ended = sh("cat", &input, LONG).unwrap();
        assert!(ended.status.success());
        assert_eq!(ended.printed, input);
        let ended = sh("head -c 1000000 /dev/zero; exit 3", &input, LONG).unwrap();
        assert_eq!((ended.status.code(), ended.printed.len()), (Some(3), 1_000_000));
    }

    #[test]
    fn one_that_prints_without_end_is_ended() {
        let error = run(Command::new("yes"), b"", Deadline::after(LONG)).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    /// Else the number of its group might be another's by the time that it is killed, for what it
    /// has left behind prints too much.
    #[test]
    fn one_that_has_ended_keeps_its_number_while_it_is_read() {
        let mut command = Command::new("echo");
        command.arg("done").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let talk = Talk::new(&mut child, b"").unwrap();
        let printed = talk.until(&child, Deadline::after(LONG)).unwrap().unwrap();
        assert_eq!(printed, b"done\n");
        assert!(has_ended(&child).unwrap(), "it is still there to be waited for");
        kill(&mut child);
        assert!(has_ended(&child).is_err());
    }

    #[test]
    fn only_the_program_itself_is_waited_for() {
        let ended = sh("sleep 1000 & echo $!", b"", LONG).unwrap();
        let sleeper: i32 = String::from_utf8(ended.printed).unwrap().trim().parse().unwrap();
        nix::sys::signal::kill(Pid::from_raw(sleeper), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn all_that_it_started_is_killed_at_the_deadline() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut options = std::fs::OpenOptions::new();
        // The reader's end, without a wait for the writer.
        let reader = options.read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(&fifo).unwrap();
        let script = format!("sleep 1000 >{} ; :", fifo.display());
        // By then it has opened its end, also on a machine that is busy.
        let ended = sh(&script, b"", Duration::from_secs(5));
        let mut reader = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        poll(&mut reader, PollTimeout::from(10_000_u16)).unwrap();
        // The last writer is gone.
        assert_eq!(reader[0].revents(), Some(PollFlags::POLLHUP));
        assert!(ended.is_none());
    }
}
