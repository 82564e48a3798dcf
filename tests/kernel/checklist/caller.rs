//! What the caller does, and that the plugin does not mind.

use std::{
    fs::{self, File, FileTimes},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    time::UNIX_EPOCH,
};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use twill_tests::{programs, wait::wait_for};

use super::{Answer, Site};
use crate::SECONDS;

/// The caller has chosen, and says so in `cniVersion`.
pub(crate) fn v_12_the_list_of_versions_is_the_callers() -> Result<()> {
    let site = Site::new()?;
    for (version, list) in [("0.4.0", json!(["1.0.0", "1.1.0", "9.9.9"])), ("1.1.0", json!([]))] {
        let call = |verb: &str| -> Result<_> {
            Ok(site
                .call(verb)?
                .config("/cniVersion", json!(version))
                .config("/cniVersions", list.clone()))
        };
        let result = call("ADD")?.run()?.object()?;
        ensure!(result["cniVersion"] == version, "{result}");
        call("CHECK")?.config("/prevResult", result).run()?.silent()?;
        call("DEL")?.run()?.silent()?;
    }
    site.as_new()
}

/// A call that is under way goes on with the old file.
pub(crate) fn o_08_the_program_is_replaced_by_renaming() -> Result<()> {
    let site = Site::new()?;
    let place = site.run_dir.path().join("twill");
    fs::copy(programs::find("twill")?, &place)?;
    let call = site.call("ADD")?;
    let mut command = Command::new(&place);
    command.envs(&call.environment).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.stderr(Stdio::piped());
    let mut running = site.host.spawn(&mut command)?;
    let program = format!("/proc/{}/exe", running.id());
    wait_for("the old program to run", SECONDS, || {
        ensure!(fs::read_link(&program)? == place, "it does not run yet");
        Ok(())
    })?;
    let fresh = site.run_dir.path().join("fresh");
    fs::copy(programs::find("twill")?, &fresh)?;
    fs::rename(&fresh, &place)?;
    let mut stdin = running.stdin.take().context("no input")?;
    stdin.write_all(call.netconf.to_string().as_bytes())?;
    drop(stdin);
    Answer(running.wait_with_output()?).object()?;
    site.call("DEL")?.run_as(Command::new(&place))?.silent()?;
    site.as_new()
}

pub(crate) fn d_08_del_does_without_a_previous_result() -> Result<()> {
    for version in ["0.1.0", "0.3.1", "0.4.0", "1.1.0"] {
        let site = Site::of_version(version)?;
        let result = site.add()?;
        site.call("DEL")?.config("/prevResult", Value::Null).run()?.silent()?;
        site.untouched()?;
        // Nor does it matter that there is one where none should be.
        site.add()?;
        site.call("DEL")?.config("/prevResult", result).run()?.silent()?;
        site.as_new()?;
    }
    Ok(())
}

/// Who is not to be called is not called; a call is obeyed.
pub(crate) fn c_07_a_check_is_made_whatever_the_list_says() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    for disabled in [json!(true), json!("true"), json!(false)] {
        site.call("CHECK")?.config("/disableCheck", disabled).run()?.silent()?;
    }
    site.pod.ip("link del eth0")?;
    for disabled in [json!(true), json!("true"), json!(false)] {
        site.call("CHECK")?.config("/disableCheck", disabled).run()?.refused(102, &[])?;
    }
    Ok(())
}

/// libcni's GC begins with a DEL of each attachment of its cache that is not to stay.
pub(crate) fn g_08_a_gc_is_made_whatever_the_list_says() -> Result<()> {
    let site = Site::new()?;
    for (disabled, deleted) in [(json!(true), false), (json!("true"), true), (json!(false), true)] {
        site.add()?;
        if deleted {
            site.call("DEL")?.run()?.silent()?;
        }
        let mut call = site.call("GC")?.config("/disableGC", disabled);
        call.netconf["cni.dev/valid-attachments"] = json!([]);
        call.run()?.silent()?;
        site.as_new()?;
    }
    Ok(())
}

pub(crate) fn g_01_gc_needs_version_1_1() -> Result<()> {
    let site = Site::new()?;
    site.add()?;
    let mut gc = site.call("GC")?;
    gc.netconf["cni.dev/valid-attachments"] = json!([]);
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let answer = gc.clone().config("/cniVersion", json!(version)).run()?;
        answer.refused(1, &["config version does not allow GC", version])?;
        site.call("CHECK")?.run()?.silent().context("it freed a pod")?;
    }
    gc.run()?.silent()?;
    site.as_new()
}

/// The keys of the list that say what its caller does, as flags and as the texts that libcni takes for
/// them: should one come along, no verb minds.
pub(crate) fn f_02_flags_of_the_list_may_be_texts() -> Result<()> {
    let site = Site::new()?;
    for flag in [json!(true), json!(false), json!("true"), json!("false"), json!("True")] {
        let mut result = Value::Null;
        for verb in ["ADD", "CHECK", "STATUS", "GC", "DEL"] {
            let mut call = site
                .call(verb)?
                .config("/disableCheck", flag.clone())
                .config("/disableGC", flag.clone())
                .config("/loadOnlyInlinedPlugins", flag.clone())
                .config("/prevResult", result.clone());
            call.netconf["cni.dev/valid-attachments"] =
                json!([{"containerID": "c1", "ifname": "eth0"}]);
            let answer = call.run()?;
            ensure!(answer.stderr().is_empty(), "{verb}: {answer:?}");
            match verb {
                "ADD" => result = answer.object()?,
                _ => answer.silent().context(verb)?,
            }
        }
        site.untouched()?;
    }
    site.as_new()
}

/// A file's or directory's time of access, long ago.
fn age(path: &Path) -> Result<()> {
    Ok(File::open(path)?.set_times(FileTimes::new().set_accessed(UNIX_EPOCH))?)
}

/// Whether nothing has read it since.
fn is_unread(path: &Path) -> Result<bool> {
    Ok(fs::metadata(path)?.accessed()? == UNIX_EPOCH)
}

/// The cache tells another address, and is read by nobody: of a tmpfs like this one the kernel notes each
/// access.
pub(crate) fn f_03_the_cache_of_results_is_the_callers() -> Result<()> {
    // This test's alone: its mounts are. Not every machine has the directory.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_STRICTATIME;
    mount(Some("tmpfs"), "/var/lib", Some("tmpfs"), flags, Some("mode=755"))?;
    let cache = Path::new("/var/lib/cni/results");
    fs::create_dir_all(cache)?;
    let cached = cache.join("lab-c1-eth0");
    let stale = json!({
        "kind": "cniCacheV1",
        "containerId": "c1",
        "ifName": "eth0",
        "networkName": "lab",
        "result": {"cniVersion": "1.1.0", "ips": [{"address": "10.20.0.1/32"}]},
    })
    .to_string();
    fs::write(&cached, &stale)?;
    let all = [&cached, cache, Path::new("/var/lib/cni")];
    let fresh = || all.iter().try_for_each(|path| age(path));
    let unread = || -> Result<bool> {
        all.iter().try_fold(true, |unread, path| Ok(unread && is_unread(path)?))
    };
    // Who reads it is seen.
    fresh()?;
    fs::read(&cached)?;
    ensure!(!is_unread(&cached)?, "this file system notes no access");
    fresh()?;
    fs::read_dir(cache)?.count();
    ensure!(!is_unread(cache)?, "this file system notes no access to directories");

    fresh()?;
    let site = Site::new()?;
    let result = site.add()?;
    ensure!(result["ips"][0]["address"] == "10.20.0.0/32", "{result}");
    // The runtime's own part of it is lost: the next ADD gives the same answer.
    ensure!(site.call("ADD")?.run()?.object()? == result);
    site.call("CHECK")?.config("/prevResult", Value::Null).run()?.refused(7, &["prevResult"])?;
    site.call("CHECK")?.run()?.silent()?;
    site.call("STATUS")?.run()?.silent()?;
    let mut gc = site.call("GC")?;
    gc.netconf["cni.dev/valid-attachments"] = json!([{"containerID": "c1", "ifname": "eth0"}]);
    gc.run()?.silent()?;
    site.call("DEL")?.config("/prevResult", Value::Null).run()?.silent()?;
    ensure!(unread()?, "the cache was read");
    ensure!(fs::read_to_string(&cached)? == stale, "the cache was written to");
    let names: Vec<_> = fs::read_dir(cache)?.collect::<Result<_, _>>()?;
    ensure!(names.len() == 1, "{names:?}");
    site.as_new()
}
