//! Many ADDs and DELs at once, while plugins and the daemon are killed at random, and no DEL comes
//! for some pods: in the end those pods work that should, and nothing is left of the others.

use std::{
    collections::BTreeSet,
    env,
    io::Write,
    net::IpAddr,
    process::Command,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use twill_tests::{
    cni::{self, Attachment},
    lab::{Lab, Node},
    netns::Namespace,
    ping,
    process::Daemon,
    programs,
    ptrace::{self, Ended},
    random::Random,
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
    left: AtomicUsize,
    over: AtomicBool,
    killed: AtomicUsize,
    daemons: AtomicUsize,
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
    let operations = env::var("TWILL_STORM_OPERATIONS").ok().and_then(|text| text.parse().ok());
    let random = Random::from_environment();
    let mut lab = crash::node_with(SETTINGS)?;
    // From here on the daemon is the storm's.
    lab.node_mut("node1")?.stop()?;
    storm(&lab, operations.unwrap_or(OPERATIONS), &random)
        .with_context(|| format!("in the storm; {random}"))
}

fn storm(lab: &Lab, operations: usize, random: &Random) -> Result<()> {
    let storm = Storm {
        node: lab.node("node1")?,
        left: AtomicUsize::new(operations),
        over: AtomicBool::new(false),
        killed: AtomicUsize::new(0),
        daemons: AtomicUsize::new(0),
        abandoned: Mutex::default(),
    };
    let (daemon, pods) = thread::scope(|scope| -> Result<_> {
        let storm = &storm;
        let daemon = scope.spawn(|| storm.kill_daemons(random.fork(0)));
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
        storm.over.store(true, Ordering::Release);
        let daemon = daemon.join().unwrap_or_else(|_| Err(anyhow!("the killer panicked")))?;
        first_error.map_or(Ok((daemon, pods)), Err)
    })?;
    let killed = storm.killed.load(Ordering::Relaxed);
    let daemons = storm.daemons.load(Ordering::Relaxed);
    let abandoned = storm.abandoned();
    let said = format!(
        "{operations} calls, {killed} of them and {daemons} daemons killed, {} pods abandoned; \
         {random}",
        abandoned.len()
    );
    let mild = killed * 10 <= operations || daemons <= 1 || abandoned.is_empty();
    ensure!(!mild, "too mild: {said}");
    writeln!(std::io::stderr(), "{said}")?;
    storm.only(&pods)?;
    storm.reconciled(&abandoned)?;
    let (runtime, host) = (storm.node.runtime(), storm.node.namespace());
    for pod in &pods {
        runtime.check(host, &pod.attachment)?;
        pod.answers(host)?;
    }
    for pod in pods {
        runtime.del(host, &pod.attachment)?;
        drop(pod.namespace);
    }
    storm.only(&[])?;
    drop(daemon);
    Ok(())
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
            // Some die before they are ready, most after some work.
            let life = if random.one_in(4) { 60 } else { 300 };
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
            let used = self.node.addresses_in_use()?;
            ensure!(used == u64::try_from(wanted.len())?, "{used} in use, not {}", wanted.len());
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
                    self.storm.abandoned().push(pod.attachment.container_id);
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
        while self.killed("ADD", &attachment)? {
            if self.random.one_in(2) || !self.storm.take() {
                if self.random.one_in(3) {
                    // Whatever it was given, nobody calls for it any more.
                    drop(namespace);
                    return Ok(None);
                }
                self.delete(attachment, Some(namespace))?;
                return Ok(None);
            }
        }
        let (runtime, host) = (self.storm.node.runtime(), self.storm.node.namespace());
        // Where the one before was not killed, this is the same again.
        let result = runtime.add(host, &attachment)?;
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
        Ok(attachment.container_id)
    }

    /// A call that is killed somewhere in one of three cases; whether it was.
    fn killed(&mut self, verb: &str, attachment: &Attachment) -> Result<bool> {
        let node = self.storm.node;
        let call = node.runtime().first_call(verb, attachment)?;
        let at = if self.random.one_in(3) { 1 + self.random.below(FAR) } else { usize::MAX };
        let (twill, stdin) = (programs::find("twill")?, call.stdin());
        match ptrace::run(node.namespace(), &twill, &call.environment, stdin.as_bytes(), at)? {
            Ended::Killed { .. } => {
                self.storm.killed.fetch_add(1, Ordering::Relaxed);
                Ok(true)
            }
            Ended::Completed { output, .. } => {
                cni::parse(verb, "twill", &output)
                    .with_context(|| format!("{verb} of {}", attachment.container_id))?;
                Ok(false)
            }
        }
    }
}
