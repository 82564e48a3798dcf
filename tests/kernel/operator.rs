//! What an operator does, right and wrong: manifests, configuration, `twillctl`, Ctrl-C.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use twill_tests::{
    lab::{Lab, Topology},
    process::read_lossy,
    programs, rack, sandbox,
    snapshot::Snapshot,
    wait::wait_for,
};

use crate::{
    LONG, SECONDS,
    plugin::{one_node, refusal},
};

/// Mistakes in manifests are told with file, line, field, value and remedy; what runs stays.
pub(crate) fn a_broken_manifest_breaks_nothing() -> Result<()> {
    let mut lab = rack::up()?;
    let pod = lab.add_pod("node1", "web")?;
    let session = lab.node("node1")?.peer(rack::TOR)?;
    let pool = fs::read_to_string(lab.resource("ippool-app.yaml"))?;
    let peer = fs::read_to_string(lab.resource("bgppeer-rack1.yaml"))?;
    for (file, text, needles) in [
        (
            "ippool-app.yaml",
            pool.replace("blockSize: 26", "blockSize: 33"),
            vec!["ippool-app.yaml:7", "spec.blockSize", "33", "/20 to /32"],
        ),
        (
            "ippool-app.yaml",
            pool.replace("cidr: 10.10.0.0/20", "cidr: 10.10.0.1/20"),
            vec!["ippool-app.yaml:6", "spec.cidr", "10.10.0.0/20"],
        ),
        (
            "ippool-app.yaml",
            pool.replace("blockSize:", "blokSize:"),
            vec!["ippool-app.yaml:7", "spec.blokSize", "blockSize"],
        ),
        (
            "ippool-app.yaml",
            pool.replace("env == \"prod\"", "env = \"prod\""),
            vec!["ippool-app.yaml:8", "spec.nodeSelector"],
        ),
        (
            "bgppeer-rack1.yaml",
            peer.replace("64513", "many"),
            vec!["bgppeer-rack1.yaml:8", "spec.asNumber", "many"],
        ),
        ("bgppeer-rack1.yaml", "kind: [".to_owned(), vec!["bgppeer-rack1.yaml", "cannot be read"]),
    ] {
        lab.write_resource(file, &text)?;
        wait_for(&format!("word of {text:?}"), LONG, || {
            let status = lab.node("node1")?.status()?;
            let told = status["problems"].to_string();
            for needle in &needles {
                let quoted = serde_json::to_string(needle)?;
                let needle = quoted.trim_matches('"');
                ensure!(told.contains(needle), "no {needle:?} in {told}");
            }
            Ok(())
        })?;
        // The log has it, too, for those who look there first.
        ensure!(lab.node("node1")?.log().contains(needles[0]), "not in the log");
        let right = if file.starts_with("ippool") { &pool } else { &peer };
        lab.write_resource(file, right)?;
        wait_for("no problem any more", LONG, || {
            let status = lab.node("node1")?.status()?;
            ensure!(status["problems"].as_array().is_none_or(Vec::is_empty), "{status}");
            Ok(())
        })?;
    }
    let after = lab.node("node1")?.peer(rack::TOR)?;
    ensure!(session["flaps"] == after["flaps"], "the session was reset: {session} {after}");
    twill_tests::ping::reaches(lab.router("tor")?, pod.address()?)?;
    let other = lab.add_pod("node1", "api")?;
    ensure!(other.addresses().len() == 1);
    Ok(())
}

/// What the daemon cannot start with is one clear line.
pub(crate) fn a_broken_configuration_is_refused_with_its_line() -> Result<()> {
    let lab = rack::topology()?.build()?;
    let config = lab.node("node1")?.config();
    let good = fs::read_to_string(&config)?;
    for (text, needles) in [
        (good.replace("runDir", "rundir"), vec!["twilld.yaml", "rundir", "runDir"]),
        (format!("{good}bgp: {{listenPort: 0}}\n"), vec!["twilld.yaml", "listenPort", "line"]),
        (format!("{good}fib: {{metric: lots}}\n"), vec!["twilld.yaml", "metric", "line"]),
        (format!("{good}fib: {{nexthopObjects: maybe}}\n"), vec!["nexthopObjects", "auto"]),
        (format!("{good}log2: [\n"), vec!["twilld.yaml", "line"]),
    ] {
        let file = lab.dir().join("broken/twilld.yaml");
        fs::create_dir_all(lab.dir().join("broken"))?;
        fs::write(&file, &text)?;
        let mut command = Command::new(programs::find("twilld")?);
        command.arg("--config").arg(&file);
        let output = lab.node("node1")?.namespace().output(&mut command)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "it started with {text}");
        ensure!(said.starts_with("twilld: "), "{said}");
        for needle in needles {
            ensure!(said.contains(needle), "no {needle:?} in {said:?}");
        }
    }
    Ok(())
}

/// Two daemons for one node: the second waits for the first and says who has it.
pub(crate) fn a_second_daemon_does_not_touch_the_store_of_the_first() -> Result<()> {
    let mut lab = one_node()?;
    let before = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let mut command = Command::new(programs::find("twilld")?);
    command.arg("--config").arg(node.config()).stderr(Stdio::piped()).stdout(Stdio::null());
    let mut second = node.namespace().spawn(&mut command)?;
    // It has to be killed in the end, also when something fails.
    let pod = lab.add_pod("node1", "api");
    let waiting = second.try_wait()?;
    let first = lab.node("node1")?.daemon()?.pid();
    kill(Pid::from_raw(i32::try_from(second.id())?), Signal::SIGKILL)?;
    second.wait()?;
    ensure!(waiting.is_none(), "the second one ended: {waiting:?}");
    ensure!(pod?.addresses() != before.addresses());
    let held = read_lossy(&lab.node("node1")?.dir().join("run/ipam/owner.lock"));
    ensure!(held.contains(&first.to_string()), "the lock does not say who holds it: {held:?}");
    Ok(())
}

/// Everything that limits which addresses a node gives, each with a reason that names the remedy.
pub(crate) fn a_node_without_addresses_says_why() -> Result<()> {
    let mut lab = one_node()?;
    let pool = fs::read_to_string(lab.resource("ippool-app.yaml"))?;
    let add = |lab: &mut Lab, name: &str| lab.add_pod("node1", name);
    for (number, (text, needles)) in [
        (
            pool.replace("blockSize: 26", "blockSize: 26\n  disabled: true"),
            ["app-pool", "disabled"],
        ),
        (pool.replace("prod", "test"), ["app-pool", "env == \"test\""]),
    ]
    .into_iter()
    .enumerate()
    {
        lab.write_resource("ippool-app.yaml", &text)?;
        wait_for("an ADD that fails with the reason", LONG, || {
            let error = refusal(add(&mut lab, &format!("n{number}-{}", unique())))?;
            for needle in needles {
                ensure!(error.to_string().contains(needle), "no {needle:?} in {error}");
            }
            Ok(())
        })?;
    }
    // No block of its own, and none may be taken.
    lab.write_resource("ippool-app.yaml", &pool)?;
    let config = fs::read_to_string(lab.resource("ipamconfig-default.yaml"))?;
    let no_blocks = config.replace("autoAllocateBlocks: true", "autoAllocateBlocks: false");
    lab.write_resource("ipamconfig-default.yaml", &no_blocks)?;
    wait_for("an ADD without a block", LONG, || {
        let error = refusal(add(&mut lab, &format!("b{}", unique())))?;
        ensure!(error.message.contains("autoAllocateBlocks"), "{error}");
        Ok(())
    })?;
    // A block by name, of two addresses: the third pod gets none.
    let node = fs::read_to_string(lab.resource("node1.yaml"))?;
    lab.write_resource("node1.yaml", &format!("{node}spec:\n  blocks: [10.10.3.64/31]\n"))?;
    let first = wait_for("an address of the static block", LONG, || {
        add(&mut lab, &format!("s{}", unique()))
    })?;
    let second = add(&mut lab, "second")?;
    let mut got = [first.address()?.to_string(), second.address()?.to_string()];
    got.sort();
    ensure!(got == ["10.10.3.64", "10.10.3.65"], "{got:?}");
    let error = refusal(add(&mut lab, "third"))?;
    ensure!(error.code == 101, "{error}");
    Ok(())
}

/// Names of namespaces are used once.
fn unique() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// `twillctl` against a running node: apply, get, status, and its errors.
pub(crate) fn twillctl_reads_and_writes() -> Result<()> {
    let mut topology = Topology::new();
    topology
        .node("node1")
        .label("rack", "rack1")
        .label("env", "prod")
        .on("seg-a", "192.168.2.11/24");
    let mut lab = topology.build()?;
    lab.start_all()?;
    let samples = programs::source("conf/samples");
    let samples = samples.to_str().context("a path that is no text")?;
    let node = lab.node("node1")?;
    let said = node.ctl(&["apply", "-f", samples])?;
    for line in
        ["IPPool/app-pool created", "BGPPeer/peer-rack1 created", "IPAMConfig/default created"]
    {
        ensure!(said.contains(line), "no {line:?} in {said}");
    }
    ensure!(node.ctl(&["apply", "-f", samples])?.contains("IPPool/app-pool unchanged"));
    let pools = node.ctl(&["get", "ippool"])?;
    ensure!(pools.contains("app-pool") && pools.contains("10.10.0.0/20"), "{pools}");
    wait_for("the node's word on the pool", LONG, || {
        let pool = node.ctl_json(&["get", "ippool", "app-pool"])?;
        let conditions = pool["status"]["nodes"][0]["conditions"].to_string();
        ensure!(conditions.contains("Accepted"), "{pool}");
        Ok(())
    })?;
    wait_for("the peers", LONG, || {
        let peers = node.ctl(&["bgp", "peers"])?;
        ensure!(peers.contains("192.168.2.1") && peers.contains("192.168.1.254"), "{peers}");
        Ok(())
    })?;
    let status = node.ctl(&["node", "status"])?;
    ensure!(status.contains("AS 64512"), "{status}");
    for (arguments, code, needle) in [
        (vec!["get", "ipool"], 2, "ippool"),
        (vec!["apply", "-f", "/nonexistent.yaml"], 1, "/nonexistent.yaml"),
        (vec!["frobnicate"], 2, "frobnicate"),
    ] {
        let output = node.ctl_output(&arguments)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(code), "{arguments:?}: {} {said}", output.status);
        ensure!(said.contains(needle), "{arguments:?}: {said}");
    }
    // Without a daemon it says so.
    lab.node_mut("node1")?.stop()?;
    let output = lab.node("node1")?.ctl_output(&["node", "status"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(1) && said.contains("twilld.sock"), "{said}");
    Ok(())
}

/// The demo, killed or interrupted at a random moment, leaves nothing behind.
pub(crate) fn a_killed_demo_leaves_nothing() -> Result<()> {
    let demo = programs::find("twill-demo")?;
    let before = Snapshot::host()?;
    let mut random = u64::from(std::process::id())
        .wrapping_add(u64::from(Instant::now().elapsed().subsec_nanos()));
    for signal in [Signal::SIGKILL, Signal::SIGINT, Signal::SIGKILL, Signal::SIGTERM] {
        // xorshift: any moment of the first two thirds of a demo, which takes two seconds.
        for shift in [13u32, 7, 17] {
            random ^= if shift == 7 { random >> shift } else { random << shift };
        }
        let moment = Duration::from_millis(50 + random % 1200);
        let mut child = sandbox::nested(&demo)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let pid = Pid::from_raw(i32::try_from(child.id())?);
        let mut lines = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let reader = std::thread::spawn(move || {
            // A full pipe would stop it.
            let _ = std::io::copy(&mut lines, &mut std::io::sink());
        });
        std::thread::park_timeout(moment);
        match signal {
            Signal::SIGKILL => kill(pid, signal)?,
            _ => killpg(pid, signal)?,
        }
        let status = child.wait()?;
        ensure!(!status.success(), "it was done after {moment:?}");
        wait_for(&format!("the end of all after {signal} at {moment:?}"), SECONDS, || {
            let left = before.differences(&Snapshot::host()?);
            ensure!(left.is_empty(), "{left:#?}");
            Ok(())
        })?;
        reader.join().ok().context("the reader panicked")?;
    }
    Ok(())
}

/// Without root there is an error that says so, not a silent success.
pub(crate) fn without_root_it_fails_and_says_so() -> Result<()> {
    // Where nobody but root may go, an unprivileged process cannot even start it.
    let copy = std::path::Path::new("/run/demo-copy");
    fs::copy(programs::find("twill-demo")?, copy)?;
    let mut command = sandbox::nested(copy);
    let output = command.uid(65534).gid(65534).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    fs::remove_file(copy)?;
    ensure!(!output.status.success() && said.contains("root"), "{} {said}", output.status);
    Ok(())
}
