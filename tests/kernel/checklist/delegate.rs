//! I: another IPAM plugin, executed by the rules for delegation.

use std::{
    fs,
    io::Write,
    net::IpAddr,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{ping, programs, ptrace, wait::wait_for};

use super::{Answer, Call, Site};
use crate::SECONDS;

/// What the plugin does that notes its calls, and gives one address.
pub(super) const WITNESS: &str = "echo $CNI_COMMAND >>calls
[ $CNI_COMMAND = ADD ] && echo '{\"ips\": [{\"address\": \"10.79.0.5/24\"}]}'
exit 0
";

/// Writes an IPAM plugin `witness`, which does `script` in a directory of its own; the directory is
/// given back, for `CNI_PATH`.
pub(super) fn plugin(site: &Site, script: &str) -> Result<PathBuf> {
    let directory = site.run_dir.path().join("plugins");
    fs::create_dir_all(&directory)?;
    let program = directory.join("witness");
    fs::write(&program, format!("#!/bin/sh\ncd {}\n{script}", directory.display()))?;
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    Ok(directory)
}

/// A call that is to execute it.
fn call<'a>(site: &'a Site, verb: &str, path: &Path) -> Result<Call<'a>> {
    let call = site.call(verb)?.config("/ipam", json!({"type": "witness"}));
    Ok(call.set("CNI_PATH", &path.display().to_string()))
}

/// The verbs that it was called with.
fn calls(directory: &Path) -> Result<Vec<String>> {
    let calls = fs::read_to_string(directory.join("calls"))?;
    Ok(calls.lines().map(str::to_owned).collect())
}

pub(crate) fn i_01_another_plugin_is_found_in_the_path_alone() -> Result<()> {
    let site = Site::new()?;
    let directory = plugin(&site, WITNESS)?;
    for path in ["", ":", "/nowhere:"] {
        let call = call(&site, "ADD", Path::new(path))?;
        // It is in the directory where the call is made, and in the caller's own path.
        let mut command = Command::new(programs::find("twill")?);
        command.current_dir(&directory).env("PATH", &directory);
        call.run_as(command)?.refused(7, &["witness", "CNI_PATH"])?;
    }
    ensure!(!directory.join("calls").exists(), "{:?}", calls(&directory)?);
    site.untouched()
}

/// What a route asks for that none here is; a gateway is always the node, and another one is told.
pub(crate) fn a_07_what_a_route_asks_for_in_vain_is_told() -> Result<()> {
    let site = Site::new()?;
    let giving = |route: Value| {
        let ips = json!([{"address": "10.79.0.5/24", "gateway": "10.79.0.1"}]);
        let result = json!({"ips": ips, "routes": [route]});
        plugin(
            &site,
            &format!("echo $CNI_COMMAND >>calls\n[ $CNI_COMMAND != ADD ] || echo '{result}'\n"),
        )
    };
    for (route, words) in [
        (json!({"dst": "0.0.0.0/0", "table": 100}), ["table", "100"]),
        (json!({"dst": "10.0.0.0/8", "scope": 253}), ["scope", "253"]),
    ] {
        let directory = giving(route.clone())?;
        let to = route["dst"].as_str().context("no destination")?;
        let answer = call(&site, "ADD", &directory)?.run()?;
        answer.refused(2, &["witness", to, words[0], words[1]])?;
        ensure!(calls(&directory)? == ["ADD", "DEL"], "{:?}", calls(&directory)?);
        fs::remove_file(directory.join("calls"))?;
    }
    for (gateway, warned) in [("10.79.0.1", false), ("10.79.0.254", true)] {
        let directory = giving(json!({"dst": "10.0.0.0/8", "gw": gateway, "table": 254}))?;
        let answer = call(&site, "ADD", &directory)?.run()?;
        answer.object()?;
        ensure!(answer.stderr().contains("10.0.0.0/8") == warned, "{answer:?}");
        let routes = site.pod.ip("route show 10.0.0.0/8")?;
        ensure!(routes.contains("via 169.254.1.1"), "{routes}");
        call(&site, "DEL", &directory)?.run()?.silent()?;
    }
    // In a configuration of ours, it is the configuration that is wrong.
    let routes = json!([{"dst": "0.0.0.0/0", "table": 100}]);
    let answer = site.call("ADD")?.config("/ipam/routes", routes).run()?;
    answer.refused(2, &["ipam.routes[0].table", "100"])?;
    site.as_new()
}

/// The environment but for the verb, which is the same one, too; the whole configuration, byte by
/// byte; and what it says on standard error is said there.
pub(crate) fn i_01_another_plugin_gets_all_as_it_came() -> Result<()> {
    let site = Site::new()?;
    let script = "cat /proc/$$/environ >environment
cat >configuration
echo 'a word of the witness' >&2
[ $CNI_COMMAND != ADD ] || echo '{\"ips\": [{\"address\": \"10.79.0.5/24\"}]}'
";
    let directory = plugin(&site, script)?;
    let mut result = Value::Null;
    for verb in ["ADD", "CHECK", "STATUS", "GC", "DEL"] {
        let mut call = call(&site, verb, &directory)?
            .config("/args", json!({"future": {"a": [1, 2]}}))
            .config("/ipam/ranges", json!([[{"subnet": "10.79.0.0/24"}]]))
            .config("/prevResult", result.clone())
            .set("CNI_ARGS", "IgnoreUnknown=1;FUTURE=x;K8S_POD_NAME=web")
            .set("PATH", "/usr/bin:/bin")
            .set("SOMETHING_OF_THE_RUNTIME", "two words\nand a line");
        call.netconf["cni.dev/valid-attachments"] = json!([]);
        // Not as any library would write it again.
        let text = format!("\n{:#}\n ", call.netconf);
        let call = call.stdin(&text);
        let mut command = Command::new(programs::find("twill")?);
        command.env_clear();
        let answer = call.run_as(command)?;
        ensure!(answer.0.status.success(), "{verb}: {answer:?}");
        if verb == "ADD" {
            result = answer.object()?;
        }
        ensure!(answer.stderr() == "a word of the witness\n", "{verb}: {answer:?}");
        let given = fs::read_to_string(directory.join("environment"))?;
        let mut given: Vec<&str> = given.split_terminator('\0').collect();
        let own = call.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let mut own: Vec<String> = own.collect();
        given.sort_unstable();
        own.sort_unstable();
        ensure!(given == own, "{verb}: {given:?}, not {own:?}");
        let given = fs::read_to_string(directory.join("configuration"))?;
        ensure!(given == text, "{verb}: {given}");
    }
    site.untouched()
}

/// It knows nothing of Twill's annotations: a pod gets what it asks for, or a word.
pub(crate) fn e_17_what_another_plugin_cannot_know_is_refused() -> Result<()> {
    let site = Site::new()?;
    let directory = plugin(&site, WITNESS)?;
    let asking = |verb: &str, name: &str, value: &str| -> Result<_> {
        let key = format!("cni.projectcalico.org/{name}");
        let annotations = json!({"io.kubernetes.cri.pod-annotations": {key: value}});
        Ok(call(&site, verb, &directory)?.config("/runtimeConfig", annotations))
    };
    for (name, value) in
        [("ipAddrs", "10.79.0.7"), ("ipv4pools", "blue"), ("ipv6pools", "fd00:20::/64")]
    {
        let answer = asking("ADD", name, &format!("[\"{value}\"]"))?.run()?;
        let key = format!("cni.projectcalico.org/{name}");
        answer.refused(2, &[&key, value, "witness", "twill-ipam"])?;
        let result = asking("ADD", name, "[]")?.run()?.object()?;
        // As if its ADD had been that of an older plugin, which did not look at them.
        let check = asking("CHECK", name, &format!("[\"{value}\"]"))?;
        check.config("/prevResult", result).run()?.silent()?;
        asking("DEL", name, &format!("[\"{value}\"]"))?.run()?.silent()?;
        ensure!(calls(&directory)? == ["ADD", "CHECK", "DEL"], "{:?}", calls(&directory)?);
        fs::remove_file(directory.join("calls"))?;
    }
    // An address of no pool needs nobody to give it, where it is allowed.
    let (name, value) = ("ipAddrsNoIpam", "[\"192.0.2.5\"]");
    asking("ADD", name, value)?.run()?.refused(2, &["featureControl.ipAddrsNoIpam"])?;
    let allowed = json!({"ipAddrsNoIpam": true});
    let asking = |verb| {
        asking(verb, name, value).map(|call| call.config("/featureControl", allowed.clone()))
    };
    let result = asking("ADD")?.run()?.object()?;
    ensure!(twill_tests::cni::addresses(&result)? == ["192.0.2.5".parse::<IpAddr>()?], "{result}");
    ping::reaches(&site.host, "192.0.2.5".parse()?)?;
    asking("CHECK")?.config("/prevResult", result).run()?.silent()?;
    ensure!(!directory.join("calls").exists(), "{:?}", calls(&directory)?);
    // Whoever repeats a DEL may not say any more what the pod has asked for.
    asking("DEL")?.run()?.silent()?;
    ensure!(calls(&directory)? == ["DEL"], "{:?}", calls(&directory)?);
    site.untouched()
}

/// Its CHECK is executed, and what it finds is the answer.
pub(crate) fn c_05_a_check_is_forwarded_and_its_error_is_ours() -> Result<()> {
    let site = Site::new()?;
    let directory = plugin(&site, WITNESS)?;
    let result = call(&site, "ADD", &directory)?.run()?.object()?;
    fs::remove_file(directory.join("calls"))?;
    let check = call(&site, "CHECK", &directory)?.config("/prevResult", result);
    check.run()?.silent()?;
    ensure!(calls(&directory)? == ["CHECK"], "{:?}", calls(&directory)?);
    plugin(&site, "echo '{\"code\": 77, \"msg\": \"x\"}'\nexit 1\n")?;
    let error = check.run()?.error()?;
    ensure!(error.code == 77 && error.message == "witness: x", "{error}");
    plugin(&site, WITNESS)?;
    call(&site, "DEL", &directory)?.run()?.silent()?;
    site.untouched()
}

pub(crate) fn s_04_the_status_of_another_plugin_is_ours() -> Result<()> {
    let site = Site::new()?;
    let directory = plugin(&site, WITNESS)?;
    call(&site, "STATUS", &directory)?.run()?.silent()?;
    ensure!(calls(&directory)? == ["STATUS"], "{:?}", calls(&directory)?);
    let printed =
        json!({"cniVersion": "1.1.0", "code": 50, "msg": "no lease", "details": "ask Bob"});
    plugin(&site, &format!("echo '{printed}'\nexit 1\n"))?;
    let error = call(&site, "STATUS", &directory)?.run()?.error()?;
    ensure!(error.code == 50 && error.message == "witness: no lease", "{error}");
    ensure!(error.details == "ask Bob", "{error}");
    site.untouched()
}

/// Neither what it reads nor what it leaves behind keeps the call beyond its time.
pub(crate) fn i_03_a_plugin_that_hangs_is_ended_in_time() -> Result<()> {
    let site = Site::new()?;
    // Its pipes are held by a process that the plugin waits for, and by one that outlives it.
    // The one that ends by itself has time for that on a busy machine, too, and takes less.
    for (script, seconds, at_most) in
        [("sleep 1000; :", 1, 10), ("sleep 1000 2>/dev/null &", 60, 30)]
    {
        let directory = plugin(&site, script)?;
        for verb in ["ADD", "DEL", "GC", "STATUS"] {
            let mut call = call(&site, verb, &directory)?.config("/timeoutSeconds", json!(seconds));
            call.netconf["cni.dev/valid-attachments"] = json!([]);
            let start = Instant::now();
            let answer = call.run()?;
            let took = start.elapsed();
            ensure!(took < Duration::from_secs(at_most), "{verb} took {took:?}");
            if script.ends_with(':') {
                answer.refused(11, &["witness", "in time"])?;
            } else if verb == "ADD" {
                answer.refused(6, &["witness"])?;
            } else {
                answer.silent()?;
            }
        }
        if script.ends_with(':') {
            wait_for("the end of all that it started", SECONDS, || {
                let left = running("sleep\x001000")?;
                ensure!(left.is_empty(), "{left:?}");
                Ok(())
            })?;
        }
    }
    site.untouched()
}

/// Nobody is there any more to end it.
pub(crate) fn i_03_a_plugin_ends_with_a_call_that_is_killed() -> Result<()> {
    let site = Site::new()?;
    let directory = plugin(&site, "echo $$ >pid.new\nmv pid.new pid\nexec sleep 1000\n")?;
    let call = call(&site, "ADD", &directory)?;
    let mut command = Command::new(programs::find("twill")?);
    command.envs(&call.environment).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut twill = site.host.spawn(&mut command)?;
    let mut stdin = twill.stdin.take().context("standard input")?;
    stdin.write_all(call.netconf.to_string().as_bytes())?;
    drop(stdin);
    let mut process = PathBuf::from("/proc");
    wait_for("the plugin to run", SECONDS, || {
        process = Path::new("/proc").join(fs::read_to_string(directory.join("pid"))?.trim());
        Ok(())
    })?;
    ensure!(process.exists(), "{}", process.display());
    twill.kill()?;
    twill.wait()?;
    wait_for("the plugin to end", SECONDS, || {
        let status = fs::read_to_string(process.join("stat")).unwrap_or_default();
        // Whoever adopts it may take its time to wait for it.
        ensure!(status.is_empty() || status.contains(") Z "), "{status}");
        Ok(())
    })
}

/// The processes with this command line.
fn running(command: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir("/proc")?.collect::<Result<Vec<_>, _>>()?;
    let found = entries.into_iter().map(|entry| entry.path()).filter(|path| {
        fs::read_to_string(path.join("cmdline")).is_ok_and(|line| line.starts_with(command))
    });
    Ok(found.collect())
}

/// What it prints instead of an error object is all that there is to tell.
pub(crate) fn i_03_an_error_that_is_no_object_is_quoted() -> Result<()> {
    let site = Site::new()?;
    let directory = plugin(&site, "echo 'pool exhausted, ask Bob'\nexit 1\n")?;
    let answer = call(&site, "ADD", &directory)?.run()?;
    answer.refused(999, &["witness", "exit status: 1", "ask Bob"])?;
    // The same for a result.
    let directory = plugin(&site, "echo 'all is well'\n")?;
    call(&site, "ADD", &directory)?.run()?.refused(6, &["witness", "all is well"])?;
    site.untouched()
}

/// No verb executes any program for addresses of ours, whatever is in `CNI_PATH`.
pub(crate) fn i_04_addresses_of_ours_need_no_second_process() -> Result<()> {
    let site = Site::new()?;
    let executed = |call: &Call<'_>| -> Result<(Answer, Vec<PathBuf>)> {
        let environment: Vec<_> = call.environment.clone().into_iter().collect();
        let (twill, stdin) = (programs::find("twill")?, call.netconf.to_string());
        let (output, programs) =
            ptrace::executed(&site.host, &twill, &environment, stdin.as_bytes())?;
        Ok((Answer(output), programs))
    };
    for verb in ["ADD", "ADD", "CHECK", "STATUS", "GC", "DEL", "DEL"] {
        let mut call = site.call(verb)?;
        if verb == "CHECK" {
            call.netconf["prevResult"] = site.add()?;
        }
        call.netconf["cni.dev/valid-attachments"] =
            json!([{"containerID": "c1", "ifname": "eth0"}]);
        let (answer, programs) = executed(&call)?;
        ensure!(answer.0.status.success(), "{verb}: {answer:?}");
        ensure!(programs.is_empty(), "{verb} executed {programs:?}");
    }
    // Where one is executed, it is seen.
    let directory = plugin(&site, WITNESS)?;
    let (answer, programs) = executed(&call(&site, "ADD", &directory)?)?;
    answer.object()?;
    ensure!(programs.len() == 1, "{programs:?}");
    call(&site, "DEL", &directory)?.run()?.silent()?;
    site.as_new()
}

/// A name that leads back here would be a chain of processes without an end.
pub(crate) fn i_04_our_own_program_is_not_executed_again() -> Result<()> {
    let site = Site::new()?;
    let directory = site.run_dir.path().join("plugins");
    fs::create_dir_all(&directory)?;
    let own = programs::find("twill")?;
    fs::hard_link(&own, directory.join("twill"))
        .or_else(|_| symlink(&own, directory.join("twill")))?;
    symlink(&own, directory.join("by-another-name"))?;
    fs::copy(&own, directory.join("copy"))?;
    let path = directory.display().to_string();
    for name in ["twill", "by-another-name", "copy"] {
        for verb in ["ADD", "DEL", "STATUS"] {
            let call = site.call(verb)?.config("/ipam", json!({"type": name}));
            let call = call.set("CNI_PATH", &path).config("/timeoutSeconds", json!(2));
            call.run()?.refused(7, &["ipam.type", name, "twill-ipam"])?;
        }
    }
    // What the network's own plugin is called.
    let call = site.call("ADD")?.config("/type", json!("lan")).config("/ipam/type", json!("lan"));
    call.run()?.refused(7, &["ipam.type", "lan", "twill-ipam"])?;
    site.untouched()
}

/// Whatever happens after the address was given, or while it is.
pub(crate) fn a_12_an_address_of_another_plugin_is_given_back() -> Result<()> {
    let site = Site::new()?;
    // The pod has an interface of that name.
    let directory = plugin(&site, WITNESS)?;
    site.pod.ip_batch("link add eth0 up type veth peer name foreign\n")?;
    call(&site, "ADD", &directory)?.run()?.refused(103, &["eth0"])?;
    site.pod.ip_batch("link del eth0\n")?;
    ensure!(calls(&directory)? == ["ADD", "DEL"], "{:?}", calls(&directory)?);
    // The gateway of pods cannot be had.
    fs::remove_file(directory.join("calls"))?;
    site.host.ip("route add prohibit 169.254.1.1")?;
    call(&site, "ADD", &directory)?.run()?.refused(104, &[])?;
    site.host.ip("route del prohibit 169.254.1.1")?;
    ensure!(calls(&directory)? == ["ADD", "DEL"], "{:?}", calls(&directory)?);
    // It fails by itself, half way.
    let directory = plugin(&site, "echo $CNI_COMMAND >>calls\n[ $CNI_COMMAND = DEL ]\n")?;
    fs::remove_file(directory.join("calls"))?;
    call(&site, "ADD", &directory)?.run()?.refused(999, &["witness"])?;
    ensure!(calls(&directory)? == ["ADD", "DEL"], "{:?}", calls(&directory)?);
    // Not so where a pod lives with it: a second ADD of the same is refused by some plugins.
    let directory = plugin(&site, WITNESS)?;
    call(&site, "ADD", &directory)?.run()?.object()?;
    let failing = "echo $CNI_COMMAND >>calls\n[ $CNI_COMMAND = DEL ]\n";
    let directory = plugin(&site, failing)?;
    fs::remove_file(directory.join("calls"))?;
    call(&site, "ADD", &directory)?.run()?.refused(999, &["witness"])?;
    ensure!(calls(&directory)? == ["ADD"], "{:?}", calls(&directory)?);
    ping::reaches(&site.host, "10.79.0.5".parse()?)?;
    call(&site, "DEL", &directory)?.run()?.silent()?;
    // It hangs when it has already given it.
    let hanging = "echo $CNI_COMMAND >>calls\n[ $CNI_COMMAND = DEL ] || sleep 1000\n";
    let directory = plugin(&site, hanging)?;
    fs::remove_file(directory.join("calls"))?;
    // Half of the time is for it, and enough to get so far on a busy machine.
    let hurried = call(&site, "ADD", &directory)?.config("/timeoutSeconds", json!(8));
    hurried.run()?.refused(11, &["witness", "in time"])?;
    ensure!(calls(&directory)? == ["ADD", "DEL"], "{:?}", calls(&directory)?);
    site.untouched()
}

/// It alone can give its address back. The pod is cut off before, and a repeated DEL does the rest.
pub(crate) fn d_09_del_fails_as_long_as_another_plugin_does() -> Result<()> {
    let site = Site::new()?;
    let directory = plugin(&site, WITNESS)?;
    call(&site, "ADD", &directory)?.run()?.object()?;
    fs::remove_file(directory.join("witness"))?;
    for _ in 0..2 {
        call(&site, "DEL", &directory)?.run()?.refused(7, &["witness", "CNI_PATH"])?;
        site.untouched()?;
    }
    plugin(&site, "exit 1\n")?;
    call(&site, "DEL", &directory)?.run()?.refused(999, &["witness"])?;
    fs::remove_file(directory.join("calls"))?;
    plugin(&site, WITNESS)?;
    call(&site, "DEL", &directory)?.run()?.silent()?;
    ensure!(calls(&directory)? == ["DEL"], "{:?}", calls(&directory)?);
    site.untouched()
}

/// The addresses of a network that has another IPAM plugin by now, and a store that cannot be used:
/// the plugin hears of the DEL all the same.
pub(crate) fn i_03_a_del_is_forwarded_whatever_our_own_store_says() -> Result<()> {
    let site = Site::new()?;
    let directory = plugin(&site, WITNESS)?;
    site.add()?;
    let store = site.run_dir.path().join("ipam");
    fs::remove_dir_all(&store)?;
    fs::write(&store, "no directory")?;
    let call = call(&site, "DEL", &directory)?.config("/timeoutSeconds", json!(20));
    call.run()?.silent()?;
    ensure!(calls(&directory)? == ["DEL"], "{:?}", calls(&directory)?);
    site.untouched()
}
