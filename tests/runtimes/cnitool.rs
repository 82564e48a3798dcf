//! libcni as it is, by cnitool.

use std::fs;

use anyhow::{Result, bail, ensure};
use serde_json::json;
use twill_tests::{cni, netns::Namespace, ping, snapshot::Snapshot, wait::wait_for};

use crate::{LONG, tool::Site};

pub(crate) fn every_verb_of_libcni() -> Result<()> {
    let site = Site::new(|_| {})?;
    site.call("status", "/unused".as_ref())?;
    let before = Snapshot::namespace(site.node()?)?;
    let (one, first) = site.add("one")?;
    let (two, second) = site.add("two")?;
    // libcni takes the newest version that both sides know.
    ensure!(first["cniVersion"] == "1.1.0", "{first}");
    let (here, there) = (cni::addresses(&first)?[0], cni::addresses(&second)?[0]);
    ping::reaches(&one, there)?;
    ping::reaches(&two, here)?;
    ping::reaches(site.node()?, here)?;
    for pod in [&one, &two] {
        site.call("check", pod.path())?;
    }
    one.ip("route del default")?;
    let error = site.call("check", one.path()).err().map(|error| error.to_string());
    ensure!(error.as_ref().is_some_and(|error| error.contains("0.0.0.0/0")), "{error:?}");
    for pod in [&one, &two] {
        site.del(pod)?;
        site.del(pod)?;
    }
    ensure!(site.used()? == 0, "addresses are still in use");
    wait_for("the links to go", LONG, || {
        let left = before.differences(&Snapshot::namespace(site.node()?)?);
        ensure!(left.iter().all(|line| line.contains("unreachable")), "{left:#?}");
        Ok(())
    })
}

pub(crate) fn each_version_is_what_libcni_asks_for() -> Result<()> {
    let site = Site::new(|_| {})?;
    for version in ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        site.configure(|list| {
            list["cniVersion"] = json!(version);
            list["cniVersions"] = json!([version]);
        })?;
        let (pod, result) = site.add(&format!("v{}", version.replace('.', "-")))?;
        ensure!(result["cniVersion"] == version, "{result}");
        ping::reaches(site.node()?, cni::addresses(&result)?[0])?;
        site.del(&pod)?;
    }
    ensure!(site.used()? == 0, "addresses are still in use");
    Ok(())
}

/// cnitool calls GC without a list of what is to stay. libcni then first calls DEL for all that it
/// knows; what only the plugin may know stays, and the caller is told why.
pub(crate) fn gc_without_a_list_frees_nothing() -> Result<()> {
    let site = Site::new(|_| {})?;
    let (known, _) = site.add("known")?;
    let (pod, result) = site.add("unknown")?;
    forget(&pod)?;
    let error = site.call("gc", known.path()).err().map(|error| error.to_string());
    let named = error.as_ref().is_some_and(|error| error.contains("cni.dev/valid-attachments"));
    ensure!(named, "{error:?}");
    ensure!(known.ip("link show eth0").is_err(), "libcni has not called DEL");
    ensure!(site.used()? == 1, "{} addresses are in use", site.used()?);
    ping::reaches(site.node()?, cni::addresses(&result)?[0])?;
    site.del(&pod)?;
    ensure!(site.used()? == 0, "{} addresses are in use", site.used()?);
    Ok(())
}

/// Removes a pod from libcni's cache of results.
fn forget(pod: &Namespace) -> Result<()> {
    let path = pod.path().display().to_string();
    for entry in fs::read_dir("/var/lib/cni/results")? {
        let file = entry?.path();
        if fs::read_to_string(&file)?.contains(&path) {
            return Ok(fs::remove_file(&file)?);
        }
    }
    bail!("libcni has cached no result for {path}")
}
