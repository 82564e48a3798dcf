//! What the caller does, and that the plugin does not mind.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
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

/// Where the plugin's part of the list comes from, is not to be seen in it.
pub(crate) fn f_01_a_list_may_be_put_together_from_files() -> Result<()> {
    let site = Site::new()?;
    for only in [json!(true), json!("false")] {
        for verb in ["ADD", "DEL"] {
            let answer = site.call(verb)?.config("/loadOnlyInlinedPlugins", only.clone()).run()?;
            ensure!(answer.0.status.success(), "{answer:?}");
        }
    }
    site.as_new()
}

pub(crate) fn f_03_the_cache_of_results_is_the_callers() -> Result<()> {
    let names = || -> Vec<String> {
        let entries = fs::read_dir(Path::new("/var/lib/cni/results")).into_iter().flatten();
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let before = names();
    let site = Site::new()?;
    let result = site.add()?;
    // The cache is lost: the next ADD, by another run of the caller, gives the same answer.
    ensure!(site.call("ADD")?.run()?.object()? == result);
    site.call("DEL")?.config("/prevResult", Value::Null).run()?.silent()?;
    ensure!(names() == before, "{:?} was {before:?}", names());
    site.as_new()
}
