//! A daemon that cannot write, and one that does not answer.

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    mount::{MsFlags, mount},
    sys::signal::Signal,
};
use serde_json::{Value, json};
use twill_tests::{
    cni::CniError,
    lab::{Lab, Pod},
    ping,
    wait::wait_for,
};

use super::{SETTINGS, host_ends, in_use, lab, running};
use crate::{LONG, SECONDS, plugin::refusal};

/// Makes the plugin give up after a second; the configuration before.
fn hurry(lab: &mut Lab) -> Result<serde_json::Value> {
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let patient = runtime.conflist().clone();
    let mut hurried = patient.clone();
    hurried["plugins"][0]["timeoutSeconds"] = json!(1);
    hurried["plugins"][0]["statusGraceSeconds"] = json!(1);
    runtime.set_conflist(hurried);
    Ok(patient)
}

/// The tombstones of a node.
fn spool(lab: &Lab) -> Result<Vec<String>> {
    let entries = fs::read_dir(lab.node("node1")?.dir().join("run/spool"))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.retain(|name| name.ends_with(".json"));
    Ok(names)
}

/// How long a DEL waits for a daemon that hangs.
const MOST_OF_A_DEL: Duration = Duration::from_secs(8);

/// More pods than the store has room for that it has taken already.
const MORE: usize = 60;

/// Takes all the space that a file system has left, to the last byte.
pub(crate) fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path).context("cannot begin to fill the file system")?;
    let mut chunk = vec![7; 65536];
    loop {
        match file.write(&chunk) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => {
                if chunk.len() == 1 {
                    return Ok(());
                }
                chunk.truncate(chunk.len() / 2);
            }
            Err(error) => return Err(error).context("cannot fill the file system"),
        }
    }
}

/// A node whose `runDir` has a file system of its own, which a test can fill.
fn with_little_room() -> Result<(Lab, PathBuf)> {
    let mut lab = lab(SETTINGS)?;
    let run_dir = lab.node("node1")?.dir().join("run");
    let size = Some("size=8m");
    mount(Some("tmpfs"), &run_dir, Some("tmpfs"), MsFlags::empty(), size).context("no tmpfs")?;
    lab.start_all()?;
    Ok((lab, run_dir))
}

/// Adds pods until the store takes no more: those, the one that was refused, and why.
fn add_until_refused(lab: &mut Lab) -> Result<(Vec<Pod>, Pod, CniError)> {
    let mut more = Vec::new();
    loop {
        ensure!(more.len() < MORE, "the store takes no space");
        let pod = lab.bare_pod("node1", &format!("p{}", more.len()))?;
        let node = lab.node("node1")?;
        match node.runtime().add(node.namespace(), pod.attachment()) {
            Ok(_) => more.push(pod),
            error => break Ok((more, pod, refusal(error)?)),
        }
    }
}

/// A node on which no ADD can succeed is not ready, until it can again.
pub(crate) fn status_tells_of_a_full_store() -> Result<()> {
    let (mut lab, run_dir) = with_little_room()?;
    hurry(&mut lab)?;
    let filler = run_dir.join("filler");
    fill(&filler)?;
    let (_more, late, _) = add_until_refused(&mut lab)?;
    let node = lab.node("node1")?;
    let status = || node.runtime().status(node.namespace());
    wait_for("STATUS to say that no ADD can succeed", LONG, || {
        let error = refusal(status())?;
        ensure!(error.code == 50 && error.to_string().contains("No space left"), "{error}");
        Ok(())
    })?;
    fs::remove_file(&filler)?;
    wait_for("STATUS to be well", SECONDS, status)?;
    node.runtime().add(node.namespace(), late.attachment()).map(|_| ())
}

pub(crate) fn a_full_store_costs_neither_pod_nor_address() -> Result<()> {
    let (mut lab, run_dir) = with_little_room()?;
    let (web, kept) = (lab.add_pod("node1", "web")?, lab.add_pod("node1", "kept")?);
    let filler = run_dir.join("filler");
    fill(&filler)?;
    hurry(&mut lab)?;
    // There is some room in what the store has taken before.
    let (more, late, error) = add_until_refused(&mut lab)?;
    ensure!(error.code == 11 && error.to_string().contains("No space left"), "{error}");
    let node = lab.node("node1")?;
    let again = refusal(node.runtime().add(node.namespace(), late.attachment()))?;
    ensure!(again.code == 11, "{again}");
    wait_for("word of it", LONG, || {
        let status = node.status()?;
        ensure!(status["problems"].to_string().contains("free some space in runDir"), "{status}");
        Ok(())
    })?;
    let used = 1 + more.len() as u64;
    // A DEL succeeds, wherever it is written down.
    lab.delete_pod(web)?;
    ensure!(host_ends(lab.node("node1")?.namespace())?.len() as u64 == used);
    ping::reaches(lab.node("node1")?.namespace(), kept.address()?)?;
    // Nor does a restart take a store for damaged that is only full.
    lab.node_mut("node1")?.kill9()?;
    lab.node_mut("node1")?.launch()?;
    wait_for("the daemon's last word", SECONDS, || {
        let log = lab.node("node1")?.log();
        let last = log.lines().last().unwrap_or_default();
        ensure!(last.starts_with("twilld: ") && last.contains("No space left"), "{last}");
        Ok(())
    })?;
    lab.node_mut("node1")?.kill9()?;
    fs::remove_file(&filler)?;
    lab.node_mut("node1")?.start()?;
    in_use(&lab, used)?;
    ensure!(!run_dir.join("ipam/store.corrupt-1").exists(), "the store was put aside");
    let node = lab.node("node1")?;
    node.runtime().check(node.namespace(), kept.attachment())?;
    node.runtime().add(node.namespace(), late.attachment())?;
    in_use(&lab, used + 1)
}

pub(crate) fn a_daemon_that_hangs_costs_neither_pod_nor_address() -> Result<()> {
    let mut lab = running(SETTINGS)?;
    let (mut web, kept) = (lab.add_pod("node1", "web")?, lab.add_pod("node1", "kept")?);
    let stale = [lab.add_pod("node1", "stale")?, lab.add_pod("node1", "old")?];
    let late = lab.bare_pod("node1", "late")?;
    let patient = hurry(&mut lab)?;
    let node = lab.node("node1")?;
    node.daemon()?.signal(Signal::SIGSTOP)?;

    let started = Instant::now();
    let error = refusal(node.runtime().add(node.namespace(), late.attachment()))?;
    let took = started.elapsed();
    ensure!(error.code == 11 && error.message.contains("did not answer"), "{error}");
    ensure!(took < SECONDS, "an ADD that may take a second gave up after {took:?}");
    let started = Instant::now();
    let error = refusal(node.runtime().check(node.namespace(), kept.attachment()))?;
    let took = started.elapsed();
    ensure!(error.code == 11 && error.message.contains("did not answer"), "{error}");
    ensure!(took < SECONDS, "a CHECK that may take a second gave up after {took:?}");
    let hurried = lab.node_mut("node1")?.runtime_mut().conflist().clone();
    lab.node_mut("node1")?.runtime_mut().set_conflist(patient.clone());
    let started = Instant::now();
    lab.detach(&web)?;
    let took = started.elapsed();
    ensure!(took < MOST_OF_A_DEL + SECONDS, "a DEL took {took:?}");
    let left = spool(&lab)?;
    ensure!(left.len() == 1, "{left:?}");
    ping::reaches(lab.node("node1")?.namespace(), kept.address()?)?;
    status_under_a_hung_daemon(&mut lab, hurried)?;
    gc_under_a_hung_daemon(&mut lab, &kept)?;
    lab.node_mut("node1")?.runtime_mut().set_conflist(patient);

    lab.node("node1")?.daemon()?.signal(Signal::SIGCONT)?;
    // An ADD in the same namespace before the daemon has looked into the spool: what it gets is
    // its own, and not what the tombstone names.
    lab.attach(&mut web)?;
    wait_for("the spool to be worked off", LONG, || {
        let left = spool(&lab)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    // Nobody waits for the answer to the late ADD any more, so nothing was given for it; and the pods that GC
    // has left no note for are found, once their namespaces are gone.
    drop(stale);
    in_use(&lab, 2)?;
    let node = lab.node("node1")?;
    for pod in [&web, &kept] {
        node.runtime().check(node.namespace(), pod.attachment())?;
        ping::reaches(node.namespace(), pod.address()?)?;
    }
    node.runtime().add(node.namespace(), late.attachment())?;
    in_use(&lab, 3)
}

/// It believes for a while in a daemon that was ready, and never waits long for it.
fn status_under_a_hung_daemon(lab: &mut Lab, hurried: Value) -> Result<()> {
    const MOST: Duration = Duration::from_secs(2);
    let timed = |lab: &Lab| {
        let node = lab.node("node1")?;
        let started = Instant::now();
        let status = node.runtime().status(node.namespace());
        let took = started.elapsed();
        ensure!(took < MOST + SECONDS, "STATUS took {took:?}");
        Ok(status)
    };
    timed(lab)??;
    // Its last sign of life is older than a second by now.
    lab.node_mut("node1")?.runtime_mut().set_conflist(hurried);
    let error = refusal(timed(lab)?)?;
    ensure!(error.code == 50 && error.to_string().contains("it was ready last"), "{error}");
    Ok(())
}

/// Links go, and one note stands for all: each would take as long as the daemon is waited for.
fn gc_under_a_hung_daemon(lab: &mut Lab, kept: &Pod) -> Result<()> {
    const MOST: Duration = Duration::from_secs(16);
    lab.node_mut("node1")?.runtime_mut().set_timeout(MOST.as_secs());
    let before = spool(lab)?.len();
    let node = lab.node("node1")?;
    let started = Instant::now();
    let error = refusal(node.runtime().gc(node.namespace(), &[kept.attachment()]))?;
    let took = started.elapsed();
    ensure!(error.code == 11 && error.to_string().contains("did not answer"), "{error}");
    ensure!(took < MOST + SECONDS, "a GC that may take {MOST:?} took {took:?}");
    let ends = host_ends(node.namespace())?;
    ensure!(ends.len() == 1, "{ends:?}");
    let left = spool(lab)?;
    ensure!(left.len() == before + 1, "{before} before, and {left:?}");
    ping::reaches(node.namespace(), kept.address()?)
}
