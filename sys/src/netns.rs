//! Network namespaces: what they are, who they are, and doing one thing inside another one.

use std::{
    fs::File,
    io, mem,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::statfs::{NSFS_MAGIC, statfs},
};

/// `NS_GET_ID` of `linux/nsfs.h`: the namespace's 64-bit identity, for a network namespace the same
/// number as `SO_NETNS_COOKIE`. Kernels before 6.18 answer `ENOTTY`.
const NS_GET_ID: libc::Ioctl = libc::_IOR::<u64>(0xb7, 13);

/// `NS_GET_NSTYPE` of `linux/nsfs.h`: the namespace's kind, as the flag of `clone`.
const NS_GET_NSTYPE: libc::Ioctl = libc::_IO(0xb7, 3);

/// `SIOCGSKNS` of `linux/sockios.h`: a file of the namespace that a socket is of.
const SIOCGSKNS: libc::Ioctl = 0x894c;

/// What can go wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// The path as given.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is something at the path, but not a namespace: it has gone, or the mount is not
    /// visible here.
    #[error(
        "{} is not a namespace: it is gone, or its mount does not reach this process (mount \
         propagation HostToContainer is needed)", path.display()
    )]
    NotANamespace {
        /// The path as given.
        path: PathBuf,
    },
    /// There is a namespace at the path, and not one of the network.
    #[error("{} is a namespace of another kind than of the network", path.display())]
    OtherKind {
        /// The path as given.
        path: PathBuf,
    },
    /// The thread cannot enter the namespace.
    #[error("cannot enter the network namespace (CAP_SYS_ADMIN is needed)")]
    Enter(#[source] io::Error),
    /// The namespace's identity cannot be read.
    #[error("cannot read the cookie of the network namespace")]
    Cookie(#[source] io::Error),
    /// A thread for the work inside cannot be started.
    #[error("cannot start a thread for the network namespace")]
    Thread(#[source] io::Error),
}

/// An open network namespace. It stays alive while this is held, whatever happens to its path.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace at `path`, for example `CNI_NETNS`.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, NetnsError> {
        let path = path.into();
        // Whatever else is there, such as a FIFO, keeps nobody waiting.
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = match File::options().read(true).custom_flags(flags).open(&path) {
            Ok(file) => file,
            Err(source) => return Err(NetnsError::Open { path, source }),
        };
        // SAFETY: the descriptor is open while it is borrowed, and NS_GET_NSTYPE has no argument.
        match Errno::result(unsafe { libc::ioctl(file.as_raw_fd(), NS_GET_NSTYPE) }) {
            Ok(libc::CLONE_NEWNET) => Ok(Self { file, path }),
            Ok(_) => Err(NetnsError::OtherKind { path }),
            Err(Errno::ENOTTY | Errno::EINVAL) => Err(NetnsError::NotANamespace { path }),
            Err(errno) => Err(NetnsError::Open { path, source: errno.into() }),
        }
    }

    /// The namespace that the calling thread is in.
    pub fn current() -> Result<Self, NetnsError> {
        let path = PathBuf::from("/proc/thread-self/ns/net");
        // To open the path costs ten times as much: a new process has no entries in /proc yet.
        match of_new_socket() {
            Ok(file) => Ok(Self { file, path }),
            Err(_) => Self::open(path),
        }
    }

    /// The path by which it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// See [`netns_cookie`].
    pub fn cookie(&self) -> Result<Option<u64>, NetnsError> {
        netns_cookie(self)
    }

    /// Runs `f` with the calling thread inside the namespace, and brings the thread back. Needs no
    /// thread of its own, so it is the quick way for a short-lived program; `f` should only open
    /// sockets and touch `/proc/sys/net`. Where other work shares the thread (an async runtime),
    /// use [`in_netns`].
    ///
    /// If the way back fails the process is aborted: to run on in a pod's namespace would mean to
    /// change the wrong one.
    pub fn enter<T>(&self, f: impl FnOnce() -> T) -> Result<T, NetnsError> {
        struct Home(Netns);
        impl Drop for Home {
            fn drop(&mut self) {
                if setns(&self.0, CloneFlags::CLONE_NEWNET).is_err() {
                    std::process::abort();
                }
            }
        }
        let home = Home(Self::current()?);
        setns(self, CloneFlags::CLONE_NEWNET).map_err(|errno| NetnsError::Enter(errno.into()))?;
        let value = f();
        drop(home);
        Ok(value)
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The calling thread's namespace, by a socket that is made in it. Needs `CAP_NET_ADMIN`.
fn of_new_socket() -> nix::Result<File> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the descriptor is open while it is borrowed, and SIOCGSKNS has no argument.
    let file = Errno::result(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) })?;
    // SAFETY: the kernel has made this descriptor for us, and nobody else knows of it.
    Ok(unsafe { File::from_raw_fd(file) })
}

/// Runs `f` on a thread of its own inside the namespace, and waits for it.
pub fn in_netns<T: Send>(
    netns: impl AsFd + Sync,
    f: impl FnOnce() -> T + Send,
) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let work = || {
            setns(&netns, CloneFlags::CLONE_NEWNET)
                .map_err(|errno| NetnsError::Enter(errno.into()))?;
            Ok(f())
        };
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work);
        match thread.map_err(NetnsError::Thread)?.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// What is at a path that a network namespace was once mounted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtPath {
    /// A namespace, with its cookie where this kernel tells it.
    Namespace(Option<u64>),
    /// Something that is no namespace. It may be one for others, whose mount does not reach this
    /// process.
    Plain,
    /// Nothing. It may be something for others, whose file system this process does not see.
    Nothing,
}

/// Looks at a path without opening anything that is no namespace.
///
/// # Errors
/// It cannot be told what is there.
pub fn look(path: &Path) -> Result<AtPath, NetnsError> {
    match statfs(path) {
        Ok(stat) if stat.filesystem_type() == NSFS_MAGIC => {}
        Ok(_) => return Ok(AtPath::Plain),
        Err(Errno::ENOENT) => return Ok(AtPath::Nothing),
        Err(errno) => {
            return Err(NetnsError::Open { path: path.to_owned(), source: errno.into() });
        }
    }
    match Netns::open(path) {
        Ok(netns) => Ok(AtPath::Namespace(netns.cookie()?)),
        // It went away between the two looks.
        Err(NetnsError::NotANamespace { .. }) => Ok(AtPath::Plain),
        Err(NetnsError::Open { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(AtPath::Nothing)
        }
        Err(error) => Err(error),
    }
}

/// The kernel's number for a network namespace, which is never used twice in a boot (an inode is).
/// `None` if this kernel (before 5.14) has none.
///
/// `ioctl(NS_GET_ID)` needs no capability; kernels without it are asked through a socket made
/// inside the namespace, which needs `CAP_SYS_ADMIN`.
pub fn netns_cookie(netns: impl AsFd) -> Result<Option<u64>, NetnsError> {
    let mut id = 0u64;
    // SAFETY: the descriptor is open while it is borrowed, and NS_GET_ID writes exactly the eight
    // bytes of `id`.
    let result = unsafe { libc::ioctl(netns.as_fd().as_raw_fd(), NS_GET_ID, &raw mut id) };
    if result == 0 {
        return Ok(Some(id));
    }
    match Errno::last() {
        Errno::ENOTTY => cookie_from_within(netns.as_fd()),
        errno => Err(NetnsError::Cookie(errno.into())),
    }
}

fn cookie_from_within(netns: BorrowedFd<'_>) -> Result<Option<u64>, NetnsError> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let opened = in_netns(netns, || {
        socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
    })?;
    let socket = opened.map_err(|errno| NetnsError::Cookie(errno.into()))?;
    socket_netns_cookie(socket.as_fd())
}

fn socket_netns_cookie(socket: BorrowedFd<'_>) -> Result<Option<u64>, NetnsError> {
    let mut cookie = 0u64;
    #[expect(clippy::cast_possible_truncation, reason = "eight")]
    let mut length = mem::size_of::<u64>() as libc::socklen_t;
    // SAFETY: the descriptor is open while it is borrowed, `length` says how long `cookie` is, and
    // the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    match (result, Errno::last()) {
        (0, _) => Ok(Some(cookie)),
        (_, Errno::ENOPROTOOPT) => Ok(None),
        (_, errno) => Err(NetnsError::Cookie(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::unshare;

    use super::*;

    /// A new namespace that nothing but the handle keeps alive.
    fn fresh() -> Netns {
        thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
            Netns::current().unwrap()
        })
        .join()
        .unwrap()
    }

    #[test]
    fn the_two_ways_to_the_cookie_agree() {
        let (a, b) = (fresh(), fresh());
        let cookie = a.cookie().unwrap();
        assert_eq!(cookie, cookie_from_within(a.as_fd()).unwrap());
        assert!(cookie.is_some());
        assert_ne!(cookie, b.cookie().unwrap());
    }

    /// Runs something on a thread that has no capability.
    fn powerless<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        let drop_all = || {
            // `_LINUX_CAPABILITY_VERSION_3`, and this thread.
            let header: [u32; 2] = [0x2008_0522, 0];
            let nothing = [0u32; 6];
            // SAFETY: the kernel reads both, which are as long as version 3 has them.
            let result =
                unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), nothing.as_ptr()) };
            assert_eq!(result, 0, "{}", io::Error::last_os_error());
        };
        let run = || {
            drop_all();
            work()
        };
        thread::scope(|scope| scope.spawn(run).join().unwrap())
    }

    #[test]
    fn without_a_capability_the_older_way_says_what_it_needs() {
        let a = fresh();
        let error = powerless(|| cookie_from_within(a.as_fd())).unwrap_err();
        assert!(matches!(error, NetnsError::Enter(_)), "{error:?}");
        assert!(error.to_string().contains("CAP_SYS_ADMIN"), "{error}");
    }

    #[test]
    fn the_own_namespace_is_the_same_by_either_way() {
        let by_path = Netns::open("/proc/thread-self/ns/net").unwrap().cookie().unwrap();
        let by_socket = netns_cookie(of_new_socket().unwrap()).unwrap();
        assert_eq!(by_socket, by_path);
        assert_eq!(powerless(|| Netns::current().unwrap()).cookie().unwrap(), by_path);
        assert_eq!(powerless(|| of_new_socket().err()), Some(Errno::EPERM));
    }

    #[test]
    fn the_caller_comes_back() {
        let home = Netns::current().unwrap().cookie().unwrap();
        let other = fresh();
        let here = || Netns::current().unwrap().cookie().unwrap();
        assert_eq!(other.enter(here).unwrap(), other.cookie().unwrap());
        assert_eq!(here(), home);
        assert_eq!(in_netns(&other, here).unwrap(), other.cookie().unwrap());
        assert_eq!(here(), home);

        let panicked = std::panic::catch_unwind(|| other.enter(|| panic!("inside")));
        assert!(panicked.is_err());
        assert_eq!(here(), home);
    }

    #[test]
    fn a_plain_file_is_no_namespace() {
        let plain = Path::new("/proc/self/status");
        assert!(matches!(Netns::open(plain), Err(NetnsError::NotANamespace { .. })));
        assert!(matches!(Netns::open("/nonexistent"), Err(NetnsError::Open { .. })));

        let other = Path::new("/proc/self/ns/mnt");
        assert!(matches!(Netns::open(other), Err(NetnsError::OtherKind { .. })));
        assert!(matches!(look(other), Err(NetnsError::OtherKind { .. })));

        let own = Path::new("/proc/self/ns/net");
        let cookie = Netns::current().unwrap().cookie().unwrap();
        assert_eq!(look(own).unwrap(), AtPath::Namespace(cookie));
        assert_eq!(look(plain).unwrap(), AtPath::Plain);
        assert_eq!(look(Path::new("/nonexistent")).unwrap(), AtPath::Nothing);
        assert!(look(Path::new("/proc/self/status/below")).is_err());
    }
}
