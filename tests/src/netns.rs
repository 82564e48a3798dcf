//! Named network namespaces, as `ip netns` knows them.

use std::{
    fs::{self, File},
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output},
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};
use twill_sys::netns::{Netns, in_netns};

use crate::process::{check, run_with_input};

/// Where `ip -n NAME` looks.
pub const DIRECTORY: &str = "/run/netns";

/// A network namespace with a name, gone when this is dropped (and its last process).
#[derive(Debug)]
pub struct Namespace {
    name: String,
    path: PathBuf,
    handle: Netns,
}

impl Namespace {
    /// Makes one, bind-mounts it at `/run/netns/<name>` as runtimes do, and sets its loopback up. Links
    /// to come have no duplicate address detection there: nothing changes by itself later.
    pub fn create(name: impl Into<String>) -> Result<Self> {
        Self::made(name.into(), || {
            for scope in ["all", "default"] {
                let accept_dad = format!("/proc/sys/net/ipv6/conf/{scope}/accept_dad");
                fs::write(&accept_dad, "0")
                    .with_context(|| format!("cannot write {accept_dad}"))?;
            }
            Ok(())
        })
    }

    /// Like [`Namespace::create`], but no setting is touched, as no runtime does: each namespace in which
    /// somebody has opened `/proc/sys/net/ipv6` makes opening it slower in all others.
    pub fn untouched(name: impl Into<String>) -> Result<Self> {
        Self::made(name.into(), || Ok(()))
    }

    fn made(name: String, begin: fn() -> Result<()>) -> Result<Self> {
        let path = Path::new(DIRECTORY).join(&name);
        File::create_new(&path)
            .with_context(|| format!("cannot name a namespace {}", path.display()))?;
        let target = path.clone();
        let made = thread::spawn(move || -> Result<()> {
            unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
            begin()?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("cannot mount a namespace at {}", target.display()))
        });
        made.join().map_err(|_| anyhow!("the thread that makes a namespace panicked"))??;
        let handle = Netns::open(&path)?;
        let namespace = Self { name, path, handle };
        namespace.ip_batch("link set lo up")?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path, `/run/netns/<name>`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread inside.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        Ok(in_netns(&self.handle, work)?)
    }

    /// Starts a program inside. The thread that starts it enters, the program inherits.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        self.enter(|| command.spawn())?
            .with_context(|| format!("cannot start {command:?} in namespace {}", self.name))
    }

    /// Runs a program inside to its end and takes its output, whatever its exit status.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        self.enter(|| command.output())?
            .with_context(|| format!("cannot run {command:?} in namespace {}", self.name))
    }

    /// `ip ARGUMENTS` inside; its output, or an error with what it complained about.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        let mut command = Command::new("ip");
        command.arg("-n").arg(&self.name).args(arguments.split_whitespace());
        check(&format!("ip -n {} {arguments}", self.name), &command.output()?)
    }

    /// `ip -json ARGUMENTS` inside.
    pub fn ip_json(&self, arguments: &str) -> Result<Vec<serde_json::Value>> {
        let text = self.ip(&format!("-json {arguments}"))?;
        // iproute2 prints nothing at all for some empty lists.
        if text.trim().is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_str(&text)
            .with_context(|| format!("`ip -json {arguments}` printed no JSON: {text}"))
    }

    /// Several `ip` commands, one a line, in one process; stops at the first that fails.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-n", &self.name, "-batch", "-"]);
        run_with_input(&mut command, lines)?;
        Ok(())
    }

    /// Writes `/proc/sys/net/<key>` inside (`ipv4/ip_forward`).
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let file = Path::new("/proc/sys/net").join(key);
        self.enter(|| fs::write(&file, value))?
            .with_context(|| format!("cannot write {value:?} to {}", file.display()))
    }

    /// The way to `destination` as `ip route get` tells it, or why there is none.
    pub fn route_to(&self, destination: IpAddr) -> Result<String> {
        self.ip(&format!("route get {destination}"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}
