//! Many ADDs and DELs at once, with a GC now and then, while plugins and the daemon are killed at
//! random, and no DEL comes for some pods: in the end those pods work that should, and nothing is left
//! of the others. The same without a daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::IpAddr,
    os::unix::net::UnixStream,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::json;
use twill_ipam_store::{Options, Service, boot_id};
use twill_tests::{
    cni::{self, Attachment, CniError, Invocation},
    lab::{Lab, Node},
    netns::Namespace,
    ping,
    process::Daemon,
    programs,
    ptrace::{self, Ended},
    random::Random,
    record::record,
    wait::wait_for,
};

use crate::{LONG, SECONDS, crash};

/// Callers at the same time.
const WORKERS: usize = 16;

/// ADDs and DELs in all, if `TWILL_STORM_OPERATIONS` does not say how many.
const OPERATIONS: usize = 200;

/// Pods that a worker keeps at the most.
const KEPT: usize = 3;

/// A killed call has made this many system calls at the most.
const FAR: usize = 200;

/// No daemon of the storm lives as long as the grace period, so the last one finds who is gone.
const SETTINGS: &str = "reconcile: {intervalSeconds: 1, graceSeconds: 5}\n";

/// What all workers share.
struct Storm<'a> {
    node: &'a Node,
    /// Whether a daemon gives the addresses.
    with_daemon: bool,
    left: AtomicUsize,
    over: AtomicBool,
    killed: AtomicUsize,
    daemons: AtomicUsize,
    collected: AtomicUsize,
    /// The runtime sees to it that no ADD is made during a GC.
    adding: RwLock<()>,
    /// What the runtime knows of, by container: from before the ADD until after the DEL.
    listed: Mutex<BTreeMap<String, Attachment>>,
    /// Containers whose pod worked, and then went without a DEL.
    abandoned: Mutex<Vec<String>>,
}

/// A pod that should live.
struct Pod {
    attachment: Attachment,
    addresses: Vec<IpAddr>,
    namespace: Namespace,
}

pub(crate) fn a_storm_of_killed_calls_leaks_nothing() -> Result<()> {
    let mut lab = crash::node_with(SETTINGS)?;
    // From here on the daemon is the storm's.
    lab.node_mut("node1")?.stop()?;
    // On a machine with more to do than this, a daemon that lives long enough may not come for a while.
    lab.node_mut("node1")?.runtime_mut().set_timeout(100);
    storm(&lab, true)
}

pub(crate) fn a_storm_without_a_daemon_leaks_nothing() -> Result<()> {
    let mut lab = crash::node_with("")?;
    lab.node_mut("node1")?.stop()?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    let ipam = &mut conflist["plugins"][0]["ipam"];
    ipam["mode"] = json!("standalone");
    ipam["pools"] = json!([{"cidr": "10.20.0.0/22"}, {"cidr": "fd00:20::/118"}]);
    runtime.set_conflist(conflist);
    // All callers wait for one lock.
    runtime.set_timeout(100);
    storm(&lab, false)
}

fn storm(lab: &Lab, with_daemon: bool) -> Result<()> {
    let operations = env::var("TWILL_STORM_OPERATIONS").ok().and_then(|text| text.parse().ok());
    let random = Random::from_environment();
    let storm = Storm {
        node: lab.node("node1")?,
        with_daemon,
        left: AtomicUsize::new(operations.unwrap_or(OPERATIONS)),
        over: AtomicBool::new(false),
        killed: AtomicUsize::new(0),
        daemons: AtomicUsize::new(0),
        collected: AtomicUsize::new(0),
        adding: RwLock::default(),
        listed: Mutex::default(),
        abandoned: Mutex::default(),
    };
    storm.rage(&random).with_context(|| format!("in the storm; {random}"))
}

impl Storm<'_> {
    fn rage(&self, random: &Random) -> Result<()> {
        let operations = self.left.load(Ordering::Relaxed);
        let (daemon, pods) = self.workers(random)?;
        let killed = self.killed.load(Ordering::Relaxed);
        let daemons = self.daemons.load(Ordering::Relaxed);
        let collected = self.collected.load(Ordering::Relaxed);
        let abandoned = self.abandoned().clone();
        let of_whom = if self.with_daemon { "with a daemon" } else { "without a daemon" };
        let said = format!(
            "storm {of_whom}: {operations} ADDs and DELs by {WORKERS} callers, and {collected} GCs; {killed} calls and \
             {daemons} daemons killed, {} pods abandoned, {} left to live; {random}",
            abandoned.len(),
            pods.len(),
        );
        let mild = killed * 10 <= operations
            || self.with_daemon && daemons <= 1
            || collected == 0
            || abandoned.is_empty();
        ensure!(!mild, "too mild: {said}");
        if !self.with_daemon {
            // Nobody else finds them.
            self.gc(None)?;
        }
        self.only(&pods)?;
        if self.with_daemon {
            self.reconciled(&abandoned)?;
        }
        let (runtime, host) = (self.node.runtime(), self.node.namespace());
        for pod in &pods {
            runtime.check(host, &pod.attachment)?;
            pod.answers(host)?;
        }
        for pod in pods {
            runtime.del(host, &pod.attachment)?;
            drop(pod.namespace);
        }
        self.only(&[])?;
        drop(daemon);
        record(&said)
    }

    /// All that goes on at once; the pods that are to live, and the daemon that is the last.
    fn workers(&self, random: &Random) -> Result<(Option<Daemon>, Vec<Pod>)> {
        thread::scope(|scope| {
            let storm = self;
            let others = (random.fork(0), random.fork(u64::MAX));
            let daemon = self.with_daemon.then(|| scope.spawn(|| storm.kill_daemons(others.0)));
            let collector = scope.spawn(|| storm.collect(others.1));
            let workers: Vec<_> = (1..=WORKERS)
                .map(|number| {
                    let random = random.fork(u64::try_from(number).unwrap_or_default());
                    scope.spawn(move || Worker { storm, number, lives: 0, random }.run())
                })
                .collect();
            let mut pods = Vec::new();
            let mut first_error = None;
            for worker in workers {
                match worker.join().unwrap_or_else(|_| Err(anyhow!("a worker panicked"))) {
                    Ok(kept) => pods.extend(kept),
                    Err(error) => first_error = first_error.or(Some(error)),
                }
            }
            self.over.store(true, Ordering::Release);
            let collected = collector.join().unwrap_or_else(|_| Err(anyhow!("the GC panicked")));
            let daemon = daemon.map(|killer| {
                killer.join().unwrap_or_else(|_| Err(anyhow!("the killer panicked")))
            });
            let daemon = daemon.transpose()?;
            collected.context("in a GC")?;
            first_error.map_or(Ok((daemon, pods)), Err)
        })
    }

    /// GCs of what the runtime does not know, some of them killed, until the storm is over; one at least that
    /// comes to its end.
    fn collect(&self, mut random: Random) -> Result<()> {
        while !self.over.load(Ordering::Acquire) || self.collected.load(Ordering::Relaxed) == 0 {
            self.pause(random.below(400));
            let at = random.one_in(3).then(|| 1 + random.below(FAR));
            self.gc(at)?;
        }
        Ok(())
    }

    /// A GC while no ADD is made; one that is killed somewhere, if told so.
    fn gc(&self, killed_at: Option<usize>) -> Result<()> {
        let _no_add = self.adding.write().unwrap_or_else(PoisonError::into_inner);
        let listed: Vec<Attachment> = self.listed().values().cloned().collect();
        let call = self.node.runtime().first_gc(&listed.iter().collect::<Vec<_>>())?;
        match self.call("GC", &call, killed_at) {
            Ok(true) => {}
            Ok(false) => {
                self.collected.fetch_add(1, Ordering::Relaxed);
            }
            // A daemon that is killed under it may have kept it from the rest.
            Err(error) => match error.downcast_ref::<CniError>() {
                Some(CniError { code: 11, .. }) if self.with_daemon => {}
                _ => return Err(error),
            },
        }
        Ok(())
    }

    /// A call, killed at a system call if told so; whether it was.
    fn call(&self, verb: &str, call: &Invocation, killed_at: Option<usize>) -> Result<bool> {
        let (twill, stdin) = (programs::find("twill")?, call.stdin());
        let at = killed_at.unwrap_or(usize::MAX);
        let host = self.node.namespace();
        match ptrace::run(host, &twill, &call.environment, stdin.as_bytes(), at)? {
            Ended::Killed { .. } => {
                self.killed.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Ended::Completed { output, .. } => {
                cni::parse(verb, "twill", &output)?;
                Ok(false)
            }
        }
    }
}

impl Pod {
    fn answers(&self, host: &Namespace) -> Result<()> {
        self.addresses.iter().try_for_each(|address| {
            wait_for("an answer", SECONDS, || ping::reaches(host, *address))
        })
    }
}

impl Storm<'_> {
    /// One of the operations is done; false if there are none left.
    fn take(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }

    /// Starts and kills the daemon until the storm is over; then one runs, and is ready.
    fn kill_daemons(&self, mut random: Random) -> Result<Daemon> {
        loop {
            let mut command = Command::new(programs::find("twilld")?);
            command.arg("--config").arg(self.node.config());
            let log = self.node.dir().join("twilld.log");
            let mut daemon = Daemon::start("twilld", self.node.namespace(), &mut command, &log)?;
            // Some die before they are ready, most after some work, however long a start takes here.
            let life = match random.one_in(4) {
                true => 60,
                false => {
                    wait_for("a daemon that listens", LONG, || {
                        Ok(UnixStream::connect(self.node.socket())?)
                    })?;
                    300
                }
            };
            self.pause(random.below(life));
            daemon.alive()?;
            if self.over.load(Ordering::Acquire) {
                wait_for("the last daemon", LONG, || {
                    let status = self.node.status()?;
                    ensure!(status["inSync"] == true, "{status}");
                    Ok(())
                })?;
                return Ok(daemon);
            }
            daemon.kill9()?;
            self.daemons.fetch_add(1, Ordering::Relaxed);
            self.pause(random.below(200));
        }
    }

    /// Lets some milliseconds pass, less if the storm is over.
    fn pause(&self, milliseconds: usize) {
        let end = Instant::now() + Duration::from_millis(milliseconds.try_into().unwrap_or(0));
        while !self.over.load(Ordering::Acquire) && Instant::now() < end {
            thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// Callers that panicked have left nothing half done in it.
    fn abandoned(&self) -> MutexGuard<'_, Vec<String>> {
        self.abandoned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(&self) -> MutexGuard<'_, BTreeMap<String, Attachment>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime knows nothing of a container any more.
    fn forget(&self, container: &str) {
        self.listed().remove(container);
    }

    /// How many addresses are in use.
    fn used(&self) -> Result<usize> {
        if self.with_daemon {
            return Ok(usize::try_from(self.node.addresses_in_use()?)?);
        }
        let options = Options { boot_id: boot_id()?, hold_freed: false };
        let (service, _) = Service::open(&self.node.dir().join("run/ipam/store"), options)?;
        Ok(service.records()?.iter().map(|record| record.addresses.len()).sum())
    }

    /// The daemon has found out by itself that these pods are gone.
    fn reconciled(&self, abandoned: &[String]) -> Result<()> {
        let log = self.node.log();
        let found: Vec<_> = log.lines().filter(|l| l.contains("no DEL came for it")).collect();
        for container in abandoned {
            let name = format!("/{container}/");
            ensure!(found.iter().any(|line| line.contains(&name)), "no word of {container}");
        }
        Ok(())
    }

    /// Waits until addresses in use, links and routes are those of these pods and no others.
    fn only(&self, pods: &[Pod]) -> Result<()> {
        let addresses: Vec<_> = pods.iter().flat_map(|pod| &pod.addresses).collect();
        let wanted: BTreeSet<String> = addresses.iter().map(ToString::to_string).collect();
        ensure!(wanted.len() == addresses.len(), "two pods have one address: {addresses:?}");
        wait_for("no leak", LONG, || {
            let used = self.used()?;
            ensure!(used == wanted.len(), "{used} in use, not {}", wanted.len());
            let links = self.node.namespace().ip("-oneline link show")?;
            let links: Vec<_> =
                links.lines().filter(|l| l.contains(": twl") || l.contains(": twd")).collect();
            ensure!(
                links.len() == pods.len(),
                "{} links for {}: {links:#?}",
                links.len(),
                pods.len()
            );
            let mut routes = self.node.own_routes("-4")?;
            routes.extend(self.node.own_routes("-6")?);
            let to_pods = routes
                .iter()
                .filter(|route| route["dev"].as_str().is_some_and(|link| link.starts_with("tw")));
            let routed: BTreeSet<String> =
                to_pods.filter_map(|route| route["dst"].as_str().map(str::to_owned)).collect();
            let differ: Vec<_> = wanted.symmetric_difference(&routed).collect();
            ensure!(differ.is_empty(), "routes that are missing or left: {differ:?}");
            Ok(())
        })
    }
}

/// One caller: a kubelet with its runtime.
struct Worker<'a> {
    storm: &'a Storm<'a>,
    number: usize,
    lives: usize,
    random: Random,
}

impl Worker<'_> {
    fn run(mut self) -> Result<Vec<Pod>> {
        let mut pods = Vec::new();
        while self.storm.take() {
            pods.extend(self.live(None)?);
            if pods.len() > KEPT {
                let pod = pods.swap_remove(self.random.below(pods.len()));
                if self.random.one_in(4) {
                    let container = pod.attachment.container_id;
                    // With a daemon the runtime does not forget it: that is for the daemon to find.
                    if !self.storm.with_daemon {
                        self.storm.forget(&container);
                    }
                    self.storm.abandoned().push(container);
                    drop(pod.namespace);
                    continue;
                }
                let container = self.delete(pod.attachment, Some(pod.namespace))?;
                // Sometimes it is started again at once, under its old id.
                if self.random.one_in(3) && self.storm.take() {
                    pods.extend(self.live(Some(container))?);
                }
            }
        }
        Ok(pods)
    }

    /// A pod's begin, and often enough its end.
    fn live(&mut self, container: Option<String>) -> Result<Option<Pod>> {
        self.lives += 1;
        let name = format!("storm-{}-{}", self.number, self.lives);
        let namespace = Namespace::create(&name)?;
        let netns = namespace.path().display().to_string();
        let container = container.unwrap_or(name);
        let attachment = Attachment::pod("prod", &container, &container, &netns);
        self.storm.listed().insert(container, attachment.clone());
        while self.killed("ADD", &attachment)? {
            if self.random.one_in(2) || !self.storm.take() {
                if self.random.one_in(3) {
                    // Whatever it was given, nobody calls for it any more.
                    self.storm.forget(&attachment.container_id);
                    drop(namespace);
                    return Ok(None);
                }
                self.delete(attachment, Some(namespace))?;
                return Ok(None);
            }
        }
        let (runtime, host) = (self.storm.node.runtime(), self.storm.node.namespace());
        // Where the one before was not killed, this is the same again.
        let result = {
            let _no_gc = self.storm.adding.read().unwrap_or_else(PoisonError::into_inner);
            runtime.add(host, &attachment)?
        };
        let pod = Pod { attachment, addresses: cni::addresses(&result)?, namespace };
        pod.answers(host)?;
        Ok(Some(pod))
    }

    /// DEL until it succeeds, with the namespace or after its end. Answers the container's id.
    fn delete(
        &mut self,
        mut attachment: Attachment,
        namespace: Option<Namespace>,
    ) -> Result<String> {
        let _kept = match namespace {
            Some(namespace) if self.random.one_in(4) => {
                drop(namespace);
                attachment.netns = String::new();
                None
            }
            kept => kept,
        };
        self.storm.take();
        while self.killed("DEL", &attachment)? {}
        self.storm.forget(&attachment.container_id);
        Ok(attachment.container_id)
    }

    /// A call that is killed somewhere in one of three cases; whether it was.
    fn killed(&mut self, verb: &str, attachment: &Attachment) -> Result<bool> {
        let call = self.storm.node.runtime().first_call(verb, attachment)?;
        let at = self.random.one_in(3).then(|| 1 + self.random.below(FAR));
        let _no_gc = (verb == "ADD")
            .then(|| self.storm.adding.read().unwrap_or_else(PoisonError::into_inner));
        let killed = self.storm.call(verb, &call, at);
        killed.with_context(|| format!("{verb} of {}", attachment.container_id))
    }
}
