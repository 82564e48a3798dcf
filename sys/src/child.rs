//! Child processes: what one has used, and one that ends with its parent.

use std::{
    io, mem,
    os::{
        fd::{FromRawFd, OwnedFd, RawFd},
        unix::process::{CommandExt, ExitStatusExt},
    },
    process::{self, Child, Command, ExitStatus},
};

/// The end of a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// The most memory that it had resident at one time, in KiB.
    pub peak_kib: u64,
}

/// Waits for a child and tells what it has used (`wait4`). Takes the child, since it cannot be
/// waited for again.
pub fn wait_with_usage(child: Child) -> io::Result<Ended> {
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: `rusage` is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    loop {
        // SAFETY: both pointers are to locals that live through the call.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if waited == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let peak_kib = u64::try_from(usage.ru_maxrss).unwrap_or_default();
    Ok(Ended { status: ExitStatus::from_raw(status), peak_kib })
}

/// A descriptor of a child that can be read from once the child has ended (`pidfd_open`, Linux 5.3), for
/// `poll`. The child has still to be waited for.
pub fn end_of(child: &Child) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers and touches no memory.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(child.id()), 0) };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made the descriptor, and nobody else has it.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel kill the child (SIGKILL) when its parent ends, however that comes about.
///
/// More exactly, when the *thread* ends that starts it (`PR_SET_PDEATHSIG`), so that thread has to
/// wait for it. It holds for the program itself, not for what that starts, and not for one that is
/// set-user-ID or the like.
pub fn ends_with_parent(command: &mut Command) -> &mut Command {
    let parent = process::id();
    let ask = move || {
        // SAFETY: this option takes a signal's number and touches no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have ended before that: then nobody would tell.
        if std::os::unix::process::parent_id() == parent {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        }
    };
    // SAFETY: between fork and exec `ask` makes two system calls, neither of which allocates or takes
    // a lock; an error made of a number does neither.
    unsafe { command.pre_exec(ask) }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        os::fd::{AsFd, BorrowedFd},
        process::Stdio,
        thread,
    };

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn is_over(end: BorrowedFd<'_>, timeout: PollTimeout) -> bool {
        let mut polled = [PollFd::new(end, PollFlags::POLLIN)];
        poll(&mut polled, timeout).unwrap() == 1
    }

    #[test]
    fn the_end_of_a_child_can_be_waited_for_with_a_timeout() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let end = end_of(&child).unwrap();
        assert!(!is_over(end.as_fd(), PollTimeout::ZERO));
        // It reads to the end of this.
        drop(child.stdin.take());
        assert!(is_over(end.as_fd(), PollTimeout::from(20_000_u16)));
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        let start = || {
            let mut command = Command::new("sleep");
            ends_with_parent(command.arg("1000").stdout(Stdio::piped())).spawn().unwrap()
        };
        let mut child = thread::spawn(start).join().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        // This thread lives.
        let mut command = Command::new("echo");
        let mut child =
            ends_with_parent(command.arg("done").stdout(Stdio::piped())).spawn().unwrap();
        let mut printed = String::new();
        child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
        assert_eq!((printed.as_str(), child.wait().unwrap().success()), ("done\n", true));
    }

    #[test]
    fn a_child_has_a_status_and_used_something() {
        let child = Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let ended = wait_with_usage(child).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert!(ended.peak_kib > 100, "{ended:?}");
    }
}
