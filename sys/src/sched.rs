//! Who runs first.

use std::io;

/// Runs `f` before everything else that wants this processor, threads that it starts included:
/// those run as usual. For a step that others wait for by spinning, where the one that would end
/// their wait would have to wait for them.
///
/// Without the right to do that (`CAP_SYS_NICE`) it runs as usual, too.
pub fn first_in_line<T>(f: impl FnOnce() -> T) -> T {
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            // It cannot be refused: this is the usual policy.
            let _ = set_scheduler(libc::SCHED_OTHER, 0);
        }
    }
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    let _back = set_scheduler(policy, 1).ok().map(|()| Back);
    f()
}

/// Of the calling thread.
fn set_scheduler(policy: libc::c_int, priority: libc::c_int) -> io::Result<()> {
    // All that sched_setscheduler(2) takes is an int. musl's wrapper refuses whatever it is asked for.
    let param = priority;
    // SAFETY: the kernel reads `param`, which lives through the call.
    match unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const param) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> libc::c_int {
        // SAFETY: no memory is involved.
        unsafe { libc::sched_getscheduler(0) }
    }

    #[test]
    fn threads_started_meanwhile_are_as_usual() {
        let (inside, child) =
            first_in_line(|| (policy(), std::thread::spawn(policy).join().unwrap()));
        assert_eq!(inside & libc::SCHED_FIFO, libc::SCHED_FIFO, "these tests need root");
        assert_eq!((child, policy()), (libc::SCHED_OTHER, libc::SCHED_OTHER));
    }
}
