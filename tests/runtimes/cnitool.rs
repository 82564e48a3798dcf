//! libcni as it is, by cnitool.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use twill_tests::{cni, netns::Namespace, ping, snapshot::Snapshot};

use crate::tool::Site;

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
    // The runtime's side of it, which DEL and CHECK get their `prevResult` from.
    let cached: Value = serde_json::from_str(&fs::read_to_string(cache(&one)?)?)?;
    ensure!(cached["kind"] == "cniCacheV1" && cached["result"] == first, "{cached}");
    one.ip("route del default")?;
    let error = site.call("check", one.path()).err().map(|error| error.to_string());
    ensure!(error.as_ref().is_some_and(|error| error.contains("0.0.0.0/0")), "{error:?}");
    for pod in [&one, &two] {
        site.del(pod)?;
        site.del(pod)?;
    }
    ensure!(cache(&one).is_err() && cache(&two).is_err(), "a result is still cached");
    ensure!(site.used()? == 0, "addresses are still in use");
    site.wait_as_before(&before)
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
        // libcni itself refuses CHECK for what is older than the verb.
        let checked = site.call("check", pod.path());
        ensure!(checked.is_ok() == (version >= "0.4.0"), "{version}: {checked:?}");
        site.del(&pod)?;
    }
    ensure!(site.used()? == 0, "addresses are still in use");
    Ok(())
}

/// Writes a plugin's part of the list `twill` into a file of its own, or removes it.
fn apart(site: &Site, file: &str, plugin: Option<&Value>) -> Result<()> {
    let directory = site.list_directory().join("twill");
    fs::create_dir_all(&directory)?;
    let file = directory.join(file);
    match plugin {
        Some(plugin) => fs::write(file, plugin.to_string())?,
        None => fs::remove_file(file)?,
    }
    Ok(())
}

/// Parts of a list in the directory of its name come after those in the list itself, unless that says
/// that there are no others; ours may be one of them.
pub(crate) fn f_01_a_list_may_be_put_together_from_files() -> Result<()> {
    let site = Site::new(|_| {})?;
    let tuning = json!({"type": "tuning", "mtu": 1400});
    apart(&site, "20-tuning.conf", Some(&tuning))?;
    for (only, mtu) in [(Value::Null, 1400), (json!(false), 1400), (json!(true), 1500)] {
        let mut ours = Value::Null;
        site.configure(|list| {
            list["loadOnlyInlinedPlugins"] = only.clone();
            if only.is_null() {
                list.as_object_mut().map(|list| list.remove("loadOnlyInlinedPlugins"));
            }
            ours = list["plugins"][0].clone();
        })?;
        lives(&site, mtu).with_context(|| format!("only the list's own: {only}"))?;
        if only == true {
            continue;
        }
        // All of it in files.
        apart(&site, "10-twill.conf", Some(&ours))?;
        site.configure(|list| {
            list.as_object_mut().map(|list| list.remove("plugins"));
        })?;
        lives(&site, mtu).context("without plugins in the list itself")?;
        apart(&site, "10-twill.conf", None)?;
    }
    Ok(())
}

/// A pod with this MTU, through all verbs.
fn lives(site: &Site, mtu: u32) -> Result<()> {
    site.call("status", "/unused".as_ref())?;
    let (pod, result) = site.add("pod")?;
    ping::reaches(site.node()?, cni::addresses(&result)?[0])?;
    let link = pod.ip("link show dev eth0")?;
    ensure!(link.contains(&format!("mtu {mtu} ")), "no mtu {mtu}: {link}");
    site.call("check", pod.path())?;
    site.del(&pod)?;
    ensure!(pod.ip("link show dev eth0").is_err(), "its link is there still");
    ensure!(site.used()? == 0, "{} addresses are in use", site.used()?);
    Ok(())
}

/// The caller obeys them, as flags and as texts. A broken pod and a GC without a list tell whether the plugin was
/// called.
pub(crate) fn f_02_flags_of_the_list_may_be_texts() -> Result<()> {
    let site = Site::new(|_| {})?;
    let (pod, _) = site.add("pod")?;
    pod.ip("route del default")?;
    for (flag, disabled) in
        [(json!(true), true), (json!("true"), true), (json!(false), false), (json!("false"), false)]
    {
        site.configure(|list| list["disableCheck"] = flag.clone())?;
        let checked = site.call("check", pod.path());
        ensure!(checked.is_ok() == disabled, "disableCheck {flag}: {checked:?}");
        site.configure(|list| list["disableGC"] = flag.clone())?;
        let collected = site.call("gc", pod.path());
        ensure!(collected.is_ok() == disabled, "disableGC {flag}: {collected:?}");
    }
    site.del(&pod)?;
    drop(pod);
    // As a flag it has a test of its own.
    apart(&site, "20-tuning.conf", Some(&json!({"type": "tuning", "mtu": 1400})))?;
    for (text, mtu) in [("true", 1500), ("false", 1400)] {
        site.configure(|list| list["loadOnlyInlinedPlugins"] = json!(text))?;
        lives(&site, mtu).with_context(|| format!("loadOnlyInlinedPlugins {text}"))?;
    }
    Ok(())
}

/// cnitool calls GC without a list of what is to stay. libcni then first calls DEL for all that it
/// knows; what only the plugin may know stays, and the caller is told why.
pub(crate) fn gc_without_a_list_frees_nothing() -> Result<()> {
    let site = Site::new(|_| {})?;
    let (known, _) = site.add("known")?;
    let (pod, result) = site.add("unknown")?;
    fs::remove_file(cache(&pod)?)?;
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

/// The file of a pod's result in libcni's cache.
fn cache(pod: &Namespace) -> Result<PathBuf> {
    let path = pod.path().display().to_string();
    for entry in fs::read_dir("/var/lib/cni/results")? {
        let file = entry?.path();
        if fs::read_to_string(&file)?.contains(&path) {
            return Ok(file);
        }
    }
    bail!("libcni has cached no result for {path}")
}
