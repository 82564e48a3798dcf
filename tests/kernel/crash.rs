//! The plugin killed with SIGKILL at its system calls, as a runtime does it whose patience has
//! ended: whatever was half done, the next call puts right.
//!
//! The main sequences are tried at every call, the others at a sample of them that differs from
//! run to run; `make test-crash` tries them all.

mod alone;
mod behind;
mod collected;
mod delegated;
mod late;

use std::{env, fs, net::IpAddr, path::PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use twill_tests::{
    cni::{self, Attachment, Invocation, Runtime},
    lab::{Lab, Pod, Topology},
    netns::Namespace,
    ping,
    process::read_lossy,
    programs,
    ptrace::{self, Ended},
    random::Random,
    snapshot::Snapshot,
    wait::wait_for,
};

pub(crate) use self::{
    alone::{
        alone_a_del_killed_anywhere_may_be_repeated, alone_an_add_killed_anywhere_may_be_repeated,
        alone_del_undoes_an_add_killed_anywhere, alone_gc_undoes_an_add_killed_anywhere,
    },
    behind::{
        a_second_interface_killed_anywhere_is_undone_or_repeated,
        gc_takes_the_rules_of_a_second_interface,
    },
    collected::{
        a_gc_killed_anywhere_may_be_repeated,
        alone_a_gc_amid_an_add_leaves_no_pod_without_its_address,
        alone_a_gc_killed_anywhere_may_be_repeated, gc_undoes_an_add_killed_anywhere,
    },
    delegated::{
        alone_ipam_killed_anywhere_leaks_nothing, ipam_a_del_or_gc_killed_anywhere_may_be_repeated,
        ipam_an_add_killed_anywhere_is_undone_or_repeated,
        over_host_local_del_undoes_what_was_killed_anywhere,
    },
    late::a_late_del_amid_an_add_at_its_path_takes_no_address_alone,
};
use crate::SECONDS;

/// Where a runtime's own sequence of calls is tried, every system call counts.
const EVERY: usize = 1;

/// What happens more rarely is tried at some.
const SOME: usize = 3;

/// Where the calls happen: a node, and a pod's namespace that is attached to it again and again.
struct Place<'a> {
    host: &'a Namespace,
    runtime: &'a Runtime,
    run_dir: PathBuf,
    pod: &'a Namespace,
}

impl Place<'_> {
    fn attachment(&self, container: &str) -> Attachment {
        Attachment::pod("prod", "web", container, &self.pod.path().display().to_string())
    }

    /// A call that is killed at its `at`-th system call; false if it ended well before.
    fn killed(&self, verb: &str, attachment: &Attachment, at: usize) -> Result<bool> {
        self.killed_call("twill", verb, &self.runtime.first_call(verb, attachment)?, at)
    }

    /// The same with any call of a program of ours.
    fn killed_call(&self, name: &str, verb: &str, call: &Invocation, at: usize) -> Result<bool> {
        let program = programs::find(name)?;
        let stdin = call.stdin();
        match ptrace::run(self.host, &program, &call.environment, stdin.as_bytes(), at)? {
            Ended::Killed { .. } => Ok(true),
            Ended::Completed { output, calls } => {
                ensure!(at > calls, "{calls} calls, not killed at {at}");
                cni::parse(verb, name, &output)?;
                Ok(false)
            }
        }
    }

    fn add(&self, attachment: &Attachment) -> Result<Vec<IpAddr>> {
        cni::addresses(&self.runtime.add(self.host, attachment)?)
    }

    /// A DEL; no sign of the pod is left but links that wait for the daemon to delete them.
    fn del(&self, attachment: &Attachment) -> Result<()> {
        self.runtime.del(self.host, attachment)?;
        self.no_pod()
    }

    fn no_pod(&self) -> Result<()> {
        let links = self.host.ip("-oneline link show")?;
        ensure!(!links.contains("twl"), "a link is left: {links}");
        for family in ["-4", "-6"] {
            let protocol = twill_types::ROUTE_PROTOCOL;
            let routes = self.host.ip(&format!("{family} route show proto {protocol}"))?;
            let left: Vec<_> = routes
                .lines()
                .filter(|l| !l.starts_with("unreachable") && !l.starts_with("169.254.1.1 dev lo"))
                .collect();
            ensure!(left.is_empty(), "routes are left: {left:?}");
        }
        let inside = self.pod.ip("-oneline link show")?;
        ensure!(!inside.contains("eth0"), "the pod has its interface still: {inside}");
        for name in files(&self.run_dir.join("ipam"))? {
            let log = read_lossy(&self.run_dir.join("twill.log"));
            ensure!(!name.contains("corrupt"), "the store was damaged: {name}\n{log}");
        }
        Ok(())
    }

    /// The pod of an ADD that succeeded works.
    fn works(&self, attachment: &Attachment, addresses: &[IpAddr]) -> Result<()> {
        self.runtime.check(self.host, attachment)?;
        addresses.iter().try_for_each(|address| ping::reaches(self.host, *address))
    }

    /// ADD, everything in order, DEL, nothing left.
    fn round(&self, attachment: &Attachment) -> Result<()> {
        let addresses = self.add(attachment)?;
        self.works(attachment, &addresses)?;
        self.del(attachment)
    }
}

/// The names of files in a directory, if there is one.
fn files(directory: &std::path::Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Runs `point` at each `step`-th system call, until it says that its call was not killed any
/// more. Which ones these are is another choice each time; with `TWILL_CRASH_ALL` it is all.
fn sweep(step: usize, point: impl FnMut(usize) -> Result<bool>) -> Result<()> {
    sweep_of(LEAST, step, point)
}

/// The same of a call that does its work in `least` system calls or more.
fn sweep_of(least: usize, step: usize, mut point: impl FnMut(usize) -> Result<bool>) -> Result<()> {
    let step = if env::var_os("TWILL_CRASH_ALL").is_some() { 1 } else { step };
    let mut random = Random::from_environment();
    let mut at = 1 + random.below(step);
    while point(at).with_context(|| format!("killed at system call {at}; {random}"))? {
        at += step;
    }
    ensure!(at > least, "the call made {at} system calls only: it did not do its work");
    Ok(())
}

/// What a call that does its work makes at the least.
const LEAST: usize = 80;

/// A dual-stack node with its daemon.
pub(crate) fn node() -> Result<Lab> {
    node_with("")
}

/// The same with more lines in its `twilld.yaml`.
pub(crate) fn node_with(settings: &str) -> Result<Lab> {
    let mut topology = Topology::new();
    topology
        .node("node1")
        .label("rack", "rack1")
        .label("env", "prod")
        .on("seg-a", "192.168.2.11/24")
        .on("seg-a", "2001:db8:2::11/64")
        .settings(settings);
    topology.samples(&["ippool-app.yaml"])?;
    topology.resource(
        "pool6.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pool6}\n\
         spec: {cidr: \"fd00:10::/112\", blockSize: 122}\n",
    );
    let mut lab = topology.build()?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["ipam"]["assignIPv6"] = json!(true);
    runtime.set_conflist(conflist);
    lab.start_all()?;
    Ok(lab)
}

fn nothing_allocated(lab: &Lab) -> Result<()> {
    let used = lab.node("node1")?.addresses_in_use()?;
    ensure!(used == 0, "{used} addresses are in use");
    Ok(())
}

/// Does `work` at a node with a daemon; in the end the node is as before.
fn with_daemon(work: impl FnOnce(&Lab, &Place<'_>, &Attachment) -> Result<()>) -> Result<()> {
    at_node(node()?, work)
}

/// The same at a node that was made before.
fn at_node(
    mut lab: Lab,
    work: impl FnOnce(&Lab, &Place<'_>, &Attachment) -> Result<()>,
) -> Result<()> {
    let pod = lab.bare_pod("node1", "web")?;
    let attachment = pod.attachment().clone();
    let place = place(&lab, &pod)?;
    // The blocks are claimed by the first ADD, and stay.
    place.round(&attachment)?;
    let before = quiet(&place)?;
    work(&lab, &place, &attachment)?;
    nothing_allocated(&lab)?;
    as_before(&place, &before)
}

fn place<'a>(lab: &'a Lab, pod: &'a Pod) -> Result<Place<'a>> {
    let node = lab.node("node1")?;
    Ok(Place {
        host: node.namespace(),
        runtime: node.runtime(),
        run_dir: node.dir().join("run"),
        pod: pod.namespace(),
    })
}

type Before = (Snapshot, Snapshot);

/// The node and the pod once the daemon has deleted what waits for it.
fn quiet(place: &Place<'_>) -> Result<Before> {
    wait_for("parked links to go", SECONDS, || {
        let links = place.host.ip("-oneline link show")?;
        ensure!(!links.contains("twd"), "{links}");
        Ok(())
    })?;
    Ok((Snapshot::namespace(place.host)?, Snapshot::namespace(place.pod)?))
}

fn as_before(place: &Place<'_>, before: &Before) -> Result<()> {
    let after = quiet(place)?;
    let mut left = before.0.differences(&after.0);
    left.extend(before.1.differences(&after.1));
    // Blocks that were claimed stay.
    left.retain(|line| !line.starts_with("+ route unreachable"));
    ensure!(left.is_empty(), "{left:#?}");
    let spool = files(&place.run_dir.join("spool"))?;
    ensure!(spool.iter().all(|name| name == ".lock"), "left in the spool: {spool:?}");
    Ok(())
}

pub(crate) fn del_undoes_an_add_killed_anywhere() -> Result<()> {
    with_daemon(|lab, place, attachment| {
        sweep(EVERY, |at| {
            let killed = place.killed("ADD", attachment, at)?;
            place.del(attachment)?;
            nothing_allocated(lab)?;
            Ok(killed)
        })
    })
}

pub(crate) fn an_add_killed_anywhere_may_be_repeated() -> Result<()> {
    with_daemon(|lab, place, attachment| {
        sweep(EVERY, |at| {
            let killed = place.killed("ADD", attachment, at)?;
            place.round(attachment)?;
            nothing_allocated(lab)?;
            Ok(killed)
        })
    })
}

/// A pod that is added a second time works on, however far that comes.
pub(crate) fn a_second_add_killed_anywhere_harms_nothing() -> Result<()> {
    with_daemon(|lab, place, attachment| {
        let addresses = place.add(attachment)?;
        sweep(SOME, |at| {
            let killed = place.killed("ADD", attachment, at)?;
            place.works(attachment, &addresses)?;
            Ok(killed)
        })?;
        place.del(attachment)?;
        nothing_allocated(lab)
    })
}

pub(crate) fn a_del_killed_anywhere_may_be_repeated() -> Result<()> {
    with_daemon(|lab, place, attachment| {
        sweep(EVERY, |at| {
            let addresses = place.add(attachment)?;
            place.works(attachment, &addresses)?;
            let killed = place.killed("DEL", attachment, at)?;
            place.del(attachment)?;
            nothing_allocated(lab)?;
            Ok(killed)
        })
    })
}

/// A runtime that forgot about the DEL, or whose container is started again at once.
pub(crate) fn an_add_follows_a_del_killed_anywhere() -> Result<()> {
    with_daemon(|lab, place, attachment| {
        sweep(SOME, |at| {
            place.add(attachment)?;
            let killed = place.killed("DEL", attachment, at)?;
            place.round(attachment)?;
            nothing_allocated(lab)?;
            Ok(killed)
        })
    })
}

/// A container that is started again under its old id, in a new namespace: what the old one has
/// is replaced, and one DEL is enough for both. Where the ADD died before the store knew of it, that
/// DEL cannot be told from a late one of an earlier namespace, and the old one's own is needed.
pub(crate) fn a_restart_killed_anywhere_is_undone_or_repeated() -> Result<()> {
    let old = Namespace::create("old")?;
    with_daemon(|lab, place, attachment| {
        let mut first = attachment.clone();
        first.netns = old.path().display().to_string();
        for repeat in [false, true] {
            sweep(SOME, |at| {
                place.add(&first)?;
                let killed = place.killed("ADD", attachment, at)?;
                if repeat {
                    place.round(attachment)?;
                } else {
                    place.runtime.del(place.host, attachment)?;
                    place.del(&first)?;
                }
                nothing_allocated(lab)?;
                // No call names the old namespace any more: its end goes with the link.
                wait_for("the old end to go", SECONDS, || {
                    let links = old.ip("-oneline link show")?;
                    ensure!(!links.contains("eth0"), "{links}");
                    Ok(())
                })?;
                Ok(killed)
            })
            .with_context(|| if repeat { "then repeated" } else { "then undone" })?;
        }
        Ok(())
    })
}

/// Without a daemon a DEL leaves a tombstone, whole or not at all, and the next daemon does the
/// rest.
pub(crate) fn a_del_without_daemon_killed_anywhere_may_be_repeated() -> Result<()> {
    let mut lab = node()?;
    let web = lab.bare_pod("node1", "web")?;
    place(&lab, &web)?.round(web.attachment())?;
    let before = quiet(&place(&lab, &web)?)?;
    let pods: Vec<Pod> = (0..PODS)
        .map(|number| lab.add_pod("node1", &format!("p{number}")))
        .collect::<Result<_>>()?;
    lab.node_mut("node1")?.kill9()?;
    let mut left = pods.iter();
    sweep(SOME, |at| {
        let pod = left.next().context("more system calls than pods")?;
        let place = place(&lab, pod)?;
        let killed = place.killed("DEL", pod.attachment(), at)?;
        place.runtime.del(place.host, pod.attachment())?;
        Ok(killed)
    })?;
    for pod in left {
        lab.detach(pod)?;
    }
    place(&lab, &web)?.no_pod()?;
    lab.node_mut("node1")?.start()?;
    nothing_allocated(&lab)?;
    as_before(&place(&lab, &web)?, &before)
}

/// More than a DEL without a daemon makes system calls.
const PODS: usize = 100 * SOME;
