//! GC and STATUS, as CRI-O and containerd 2 call them.

mod meanwhile;
mod trouble;

use std::{fs, net::Ipv4Addr, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cni::{self, Attachment, Runtime},
    lab::{Lab, Pod},
    netns::Namespace,
    ping, programs,
    ptrace::{self, Ended},
    snapshot::Snapshot,
    wait::wait_for,
};

pub(crate) use self::{
    meanwhile::{
        an_add_that_fails_by_itself_waits_for_no_daemon, g_09_an_add_meanwhile_is_left_alone,
        g_09_an_add_that_lost_its_address_fails_at_once,
    },
    trouble::{
        g_04_a_link_with_the_alias_of_another_is_told, g_04_links_go_without_a_daemon,
        g_04_one_that_stays_keeps_no_other,
    },
};
use crate::{
    SECONDS,
    plugin::{one_node, refusal, standalone},
};

pub(crate) fn g_02_what_is_not_listed_is_freed() -> Result<()> {
    let mut lab = one_node()?;
    let keep = lab.add_pod("node1", "keep")?;
    let node = lab.node("node1")?.namespace();
    wait_for("links to settle", SECONDS, || {
        let links = node.ip("address show")?;
        ensure!(!links.contains("NO-CARRIER") && !links.contains("tentative"), "{links}");
        Ok(())
    })?;
    let before = Snapshot::namespace(node)?;
    let lost = [lab.add_pod("node1", "lost")?, lab.add_pod("node1", "gone")?];
    let [_, gone] = lost;
    drop(gone);
    let node = lab.node("node1")?;
    node.runtime().gc(node.namespace(), &[keep.attachment()])?;
    let left = before.differences(&Snapshot::namespace(node.namespace())?);
    ensure!(left.is_empty(), "{left:#?}");
    let ipam = node.ctl_json(&["ipam", "show", "--show-blocks"])?;
    ensure!(ipam["blocks"][0]["used"] == 1, "{ipam}");
    ping::reaches(node.namespace(), keep.address()?)?;
    node.runtime().check(node.namespace(), keep.attachment())
}

/// One container's other interface is another attachment, and so is the same interface of another one.
pub(crate) fn g_03_what_is_listed_stays_by_container_and_interface() -> Result<()> {
    let mut lab = one_node()?;
    let pods = [lab.bare_pod("node1", "web")?, lab.bare_pod("node1", "api")?];
    let node = lab.node("node1")?;
    let mut attachments = Vec::new();
    for (pod, ifname) in pods.iter().flat_map(|pod| [(pod, "eth0"), (pod, "net1")]) {
        let mut attachment = pod.attachment().clone();
        ifname.clone_into(&mut attachment.ifname);
        node.runtime().add(node.namespace(), &attachment)?;
        attachments.push(attachment);
    }
    let [web, web1, api, api1] = attachments.as_slice() else { bail!("{attachments:?}") };
    let lives =
        |attachment: &Attachment| node.runtime().check(node.namespace(), attachment).is_ok();
    node.runtime().gc(node.namespace(), &[web, web1, api, api1])?;
    ensure!(attachments.iter().all(lives), "what is listed was freed");
    node.runtime().gc(node.namespace(), &[api1, web])?;
    let alive: Vec<bool> = attachments.iter().map(lives).collect();
    ensure!(alive == [true, false, false, true], "{alive:?}");
    ensure!(node.addresses_in_use()? == 2, "{} addresses are in use", node.addresses_in_use()?);
    node.runtime().gc(node.namespace(), &[web1, api])?;
    ensure!(!attachments.iter().any(lives), "what is not listed is there still");
    ensure!(node.addresses_in_use()? == 0, "{} addresses are in use", node.addresses_in_use()?);
    Ok(())
}

pub(crate) fn g_06_g_07_the_list_in_all_its_spellings() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let call = |keys: Value| -> Result<Value> {
        let mut netconf = node.runtime().conflist()["plugins"][0].clone();
        netconf["name"] = json!("pods");
        netconf["cniVersion"] = json!("1.1.0");
        for (key, value) in keys.as_object().into_iter().flatten() {
            netconf[key] = value.clone();
        }
        let environment = [("CNI_COMMAND".to_owned(), "GC".to_owned())];
        let stdin = netconf.to_string();
        let output =
            node.runtime().execute(node.namespace(), "twill", &environment, stdin.as_bytes())?;
        cni::parse("GC", "twill", &output)
    };
    let used = || -> Result<Value> {
        Ok(node.ctl_json(&["ipam", "show", "--show-blocks"])?["blocks"][0]["used"].clone())
    };
    let attachment = pod.attachment();
    let listed = json!([{"containerID": attachment.container_id, "ifname": attachment.ifname}]);
    // G-07: no list at all, or none that can be read, frees nothing.
    for keys in [
        json!({}),
        json!({"cni.dev/valid-attachments": "all"}),
        json!({"cni.dev/valid-attachments": [{"containerID": "a"}]}),
    ] {
        let error = refusal(call(keys.clone()))?;
        ensure!(error.code == 7, "{keys}: {error}");
        ensure!(used()? == 1, "{keys} freed a pod");
    }
    // G-06: the newer spelling counts where both are there.
    call(json!({"cni.dev/valid-attachments": listed, "cni.dev/attachments": []}))?;
    call(json!({"cni.dev/attachments": listed}))?;
    ensure!(used()? == 1, "a listed pod was freed");
    for key in ["cni.dev/attachments", "cni.dev/valid-attachments"] {
        node.runtime().add(node.namespace(), attachment)?;
        ensure!(used()? == 1, "no pod");
        call(json!({key: null}))?;
        ensure!(used()? == 0, "null is an empty list in {key}");
    }
    Ok(())
}

/// The alias of its link has room for a hash of it alone.
pub(crate) fn g_02_an_id_too_long_for_an_alias() -> Result<()> {
    let mut lab = one_node()?;
    let (mut keep, mut lost) = (lab.bare_pod("node1", "keep")?, lab.bare_pod("node1", "lost")?);
    keep.attachment_mut().container_id = "a".repeat(250);
    lost.attachment_mut().container_id = "b".repeat(250);
    for pod in [&mut keep, &mut lost] {
        lab.attach(pod)?;
    }
    let node = lab.node("node1")?;
    let links = node.namespace().ip("-details link show type veth")?;
    ensure!(links.matches(";hash=").count() == 2, "{links}");
    node.runtime().gc(node.namespace(), &[keep.attachment()])?;
    ensure!(node.addresses_in_use()? == 1, "{} addresses are in use", node.addresses_in_use()?);
    ensure!(node.namespace().route_to(lost.address()?).is_err(), "it is routed to still");
    ping::reaches(node.namespace(), keep.address()?)?;
    node.runtime().check(node.namespace(), keep.attachment())?;

    let (node, pod) = (Namespace::create("node")?, Namespace::create("pod")?);
    let run_dir = tempfile::tempdir_in("/run")?;
    let one = json!([{"cidr": "10.20.0.7/32", "blockSize": 32}]);
    let conflist = standalone("1.1.0", run_dir.path(), &one);
    let runtime = Runtime::new(conflist, vec![programs::directory()?]);
    for letter in ["c", "d"] {
        let netns = pod.path().display().to_string();
        runtime.add(&node, &Attachment::pod("prod", "web", &letter.repeat(250), &netns))?;
        runtime.gc(&node, &[])?;
        let links = node.ip("-oneline link show type veth")?;
        ensure!(links.is_empty(), "{links}");
    }
    Ok(())
}

/// Another network on the same node is none of its business, and neither is a link of another
/// program.
pub(crate) fn g_02_only_its_own_network() -> Result<()> {
    let mut lab = one_node()?;
    let pod = lab.add_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let other = Runtime::new(
        {
            let mut conflist = node.runtime().conflist().clone();
            conflist["name"] = json!("other");
            conflist
        },
        vec![programs::directory()?],
    );
    other.gc(node.namespace(), &[])?;
    ping::reaches(node.namespace(), pod.address()?)?;
    node.runtime().check(node.namespace(), pod.attachment())
}

/// More than are deleted in one go, and nobody but the GC to delete them.
pub(crate) fn g_02_many_go_at_once() -> Result<()> {
    let node = Namespace::create("node")?;
    let run_dir = tempfile::tempdir_in("/run")?;
    let pools = json!([{"cidr": "10.20.0.0/27", "blockSize": 27}]);
    let conflist = standalone("1.1.0", run_dir.path(), &pools);
    let runtime = Runtime::new(conflist, vec![programs::directory()?]);
    let log = tempfile::tempdir_in("/run")?;
    let pods: Vec<Namespace> =
        (0..25).map(|n| Namespace::create(format!("pod{n}"))).collect::<Result<_>>()?;
    // Of the same interfaces in the same namespaces once more: nothing is in their way.
    for round in ["first", "second"] {
        for pod in &pods {
            let netns = pod.path().display().to_string();
            let container = format!("{round}-{}", pod.name());
            runtime.add(&node, &Attachment::pod("prod", "web", &container, &netns))?;
        }
        let opened = log.path().join("opened");
        let mut told = runtime.conflist().clone();
        told["plugins"][0]["logLevel"] = json!("trace");
        told["plugins"][0]["logFile"] = json!(opened);
        Runtime::new(told, vec![programs::directory()?]).gc(&node, &[])?;
        // To see who there is, and to release all of them.
        let log = fs::read_to_string(&opened)?;
        let times = log.matches("opening the address store").count();
        ensure!(times == 2, "opened {times} times: {log}");
        fs::remove_file(&opened)?;
        let links = node.ip("-oneline link show type veth")?;
        ensure!(links.is_empty(), "{links}");
    }
    Ok(())
}

/// Node1's runtime with an IPAM plugin that notes its calls in `/run/witness/calls`, gives one
/// address, and ends as the file `/run/witness/status` says.
fn with_witness(lab: &Lab) -> Result<Runtime> {
    let directory = Path::new("/run/witness");
    fs::create_dir(directory)?;
    let script = "#!/bin/sh\necho \"$CNI_COMMAND $(cat)\" >>/run/witness/calls\n[ $CNI_COMMAND = ADD ] && \
                  echo '{\"ips\": [{\"address\": \"10.79.0.5/24\"}]}'\nexit $(cat \
                  /run/witness/status 2>/dev/null || echo 0)\n";
    let program = directory.join("witness");
    fs::write(&program, script)?;
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755))?;
    let mut conflist = lab.node("node1")?.runtime().conflist().clone();
    conflist["plugins"][0]["ipam"] = json!({"type": "witness"});
    Ok(Runtime::new(conflist, vec![programs::directory()?, directory.to_owned()]))
}

/// A delegated IPAM plugin hears of it too, with the complete configuration as it came.
pub(crate) fn g_05_it_is_forwarded() -> Result<()> {
    let lab = one_node()?;
    let runtime = with_witness(&lab)?;
    let node = lab.node("node1")?;
    runtime.gc(node.namespace(), &[])?;
    runtime.status(node.namespace())?;
    let calls = fs::read_to_string("/run/witness/calls")?;
    let verbs: Vec<&str> = calls.lines().filter_map(|line| line.split(' ').next()).collect();
    ensure!(verbs == ["GC", "STATUS"], "{calls}");
    ensure!(calls.contains("cni.dev/valid-attachments") && calls.contains("runDir"), "{calls}");
    Ok(())
}

pub(crate) fn g_04_it_goes_on_after_an_error() -> Result<()> {
    let mut lab = one_node()?;
    let runtime = with_witness(&lab)?;
    let pod = lab.bare_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let before = Snapshot::namespace(node.namespace())?;
    runtime.add(node.namespace(), pod.attachment())?;
    ping::reaches(node.namespace(), "10.79.0.5".parse()?)?;
    fs::write("/run/witness/status", "1")?;
    let error = refusal(runtime.gc(node.namespace(), &[]))?;
    // It has said nothing of its own, so the code is that for a plugin that breaks.
    ensure!(error.code == 999 && error.message.starts_with("witness"), "{error}");
    let left = before.differences(&Snapshot::namespace(node.namespace())?);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

/// A node may have a million routes by BGP, and none of them says whose a link is.
pub(crate) fn what_peers_announce_is_not_read() -> Result<()> {
    let node = Namespace::create("node")?;
    let run_dir = tempfile::tempdir_in("/run")?;
    let pools = json!([{"cidr": "10.20.0.0/27", "blockSize": 27}]);
    let conflist = standalone("1.1.0", run_dir.path(), &pools);
    let runtime = Runtime::new(conflist, vec![programs::directory()?]);
    let (call, twill) = (runtime.first_gc(&[])?, programs::find("twill")?);
    let calls = || -> Result<usize> {
        let stdin = call.stdin();
        match ptrace::run(&node, &twill, &call.environment, stdin.as_bytes(), usize::MAX)? {
            Ended::Completed { output, calls } => cni::parse("GC", "twill", &output).map(|_| calls),
            Ended::Killed { number } => bail!("killed at {number}"),
        }
    };
    // The first one makes the store.
    calls()?;
    // What the store's threads do differs from time to time.
    let least = || {
        (0..5)
            .map(|_| calls())
            .try_fold(usize::MAX, |least, n| Ok::<_, anyhow::Error>(least.min(n?)))
    };
    let before = least()?;
    let route = |n: u32| {
        let network = Ipv4Addr::from(0x1400_0000 + (n << 8));
        format!("route add {network}/24 dev lo proto {}\n", twill_types::ROUTE_PROTOCOL)
    };
    node.ip_batch(&(0..100_000).map(route).collect::<String>())?;
    let after = least()?;
    // To read the table takes more than 300.
    ensure!(after < before + 100, "{before} system calls without routes, {after} with them");
    Ok(())
}

/// Another plugin gives the addresses since: of what ours gave, the link says so.
pub(crate) fn g_02_addresses_of_before_another_plugin_are_freed() -> Result<()> {
    let mut lab = one_node()?;
    let (keep, lost) = (lab.add_pod("node1", "keep")?, lab.add_pod("node1", "lost")?);
    let runtime = with_witness(&lab)?;
    let other = lab.bare_pod("node1", "other")?;
    let node = lab.node("node1")?;
    runtime.add(node.namespace(), other.attachment())?;
    runtime.gc(node.namespace(), &[keep.attachment()])?;
    ensure!(node.addresses_in_use()? == 1, "{} addresses are in use", node.addresses_in_use()?);
    let links = lost.namespace().ip("-oneline link show")?;
    ensure!(!links.contains("eth0"), "it is there still: {links}");
    ping::reaches(node.namespace(), keep.address()?)?;
    // The one that our store knows nothing of leaves no word for it.
    let spool = fs::read_dir(node.dir().join("run/spool"))?.collect::<Result<Vec<_>, _>>()?;
    ensure!(spool.iter().all(|entry| entry.file_name() == ".lock"), "{spool:?}");
    node.runtime().check(node.namespace(), keep.attachment())
}

pub(crate) fn s_02_status_says_whether_an_add_would_succeed() -> Result<()> {
    let mut lab = one_node()?;
    let node = lab.node("node1")?;
    wait_for("readiness", SECONDS, || node.runtime().status(node.namespace()))?;
    // A daemon that is away for a moment does not make the node NotReady.
    lab.node_mut("node1")?.kill9()?;
    let node = lab.node("node1")?;
    node.runtime().status(node.namespace())?;
    // One that has been away for longer does.
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["statusGraceSeconds"] = json!(1);
    runtime.set_conflist(conflist);
    let node = lab.node("node1")?;
    let error =
        wait_for("the grace to end", SECONDS, || refusal(node.runtime().status(node.namespace())))?;
    ensure!(error.code == 50 && error.message.contains("twilld.sock"), "{error}");
    Ok(())
}

/// A node whose only pool has two addresses, and a runtime for which exhaustion counts.
fn tiny_node() -> Result<Lab> {
    let mut lab = one_node()?;
    lab.write_resource("ippool-app.yaml", &pool("tiny", "10.30.0.0/31", "all()"))?;
    wait_for_pools(&lab, &["tiny"])?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["statusOnExhaustion"] = json!(true);
    runtime.set_conflist(conflist);
    Ok(lab)
}

fn pool(name: &str, cidr: &str, selector: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: {name}}}\nspec: {{cidr: \
         {cidr}, blockSize: 31, nodeSelector: \"{selector}\"}}\n"
    )
}

fn wait_for_pools(lab: &Lab, names: &[&str]) -> Result<()> {
    wait_for("the pools", SECONDS, || {
        let pools = lab.node("node1")?.ctl_json(&["ipam", "show"])?["pools"].clone();
        // Those that the daemon has read, too.
        let known = pools.as_array().into_iter().flatten().filter(|p| p["eligible"].is_object());
        let found: Vec<_> = known.map(|pool| pool["name"].clone()).collect();
        ensure!(found == names, "{pools}");
        Ok(())
    })
}

fn fill(lab: &mut Lab) -> Result<Vec<Pod>> {
    let pods = (0..2).map(|n| lab.add_pod("node1", &format!("p{n}"))).collect::<Result<_>>()?;
    no_address(lab, "more", "tiny")?;
    Ok(pods)
}

/// An ADD that finds no address in a pool.
fn no_address(lab: &mut Lab, pod: &str, pool: &str) -> Result<()> {
    let pod = lab.bare_pod("node1", pod)?;
    let node = lab.node("node1")?;
    let error = refusal(node.runtime().add(node.namespace(), pod.attachment()))?;
    ensure!(error.code == 101 && error.message.contains(pool), "{error}");
    Ok(())
}

/// S-03: exhaustion makes a node NotReady only where the configuration says so, since a kubelet
/// evicts pods from such a node; and only as long as it lasts, since such a node gets no ADD.
pub(crate) fn s_03_exhaustion_counts_by_option() -> Result<()> {
    let mut lab = tiny_node()?;
    let mut pods = fill(&mut lab)?.into_iter();
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let counts = runtime.conflist().clone();
    let mut plain = counts.clone();
    plain["plugins"][0]["statusOnExhaustion"] = json!(false);
    runtime.set_conflist(plain);
    let node = lab.node("node1")?;
    node.runtime().status(node.namespace())?;
    lab.node_mut("node1")?.runtime_mut().set_conflist(counts);
    let full = |lab: &Lab| -> Result<()> {
        let node = lab.node("node1")?;
        let error = refusal(node.runtime().status(node.namespace()))?;
        ensure!(error.code == 50 && error.message.contains("in use"), "{error}");
        Ok(())
    };
    full(&lab)?;
    // A DEL ends it.
    lab.delete_pod(pods.next().context("no pods")?)?;
    let node = lab.node("node1")?;
    node.runtime().status(node.namespace())?;
    let _again = lab.add_pod("node1", "again")?;
    no_address(&mut lab, "one-more", "tiny")?;
    full(&lab)?;
    // So does another pool.
    lab.write_resource("more.yaml", &pool("more", "10.31.0.0/31", "all()"))?;
    wait_for_pools(&lab, &["more", "tiny"])?;
    let node = lab.node("node1")?;
    node.runtime().status(node.namespace())
}

/// What one pod or one network asks for is not the node's own state.
pub(crate) fn s_03_a_full_pool_asked_for_by_name_is_not_the_nodes() -> Result<()> {
    let mut lab = tiny_node()?;
    lab.write_resource("blue.yaml", &pool("blue", "10.32.0.0/31", "env == 'blue'"))?;
    wait_for_pools(&lab, &["blue", "tiny"])?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let own = runtime.conflist().clone();
    let mut asking = own.clone();
    asking["plugins"][0]["runtimeConfig"] = json!({
        "io.kubernetes.cri.pod-annotations": {"cni.projectcalico.org/ipv4pools": "[\"blue\"]"}
    });
    runtime.set_conflist(asking);
    let _blue = [lab.add_pod("node1", "b0")?, lab.add_pod("node1", "b1")?];
    no_address(&mut lab, "b2", "blue")?;
    let node = lab.node("node1")?;
    node.runtime().status(node.namespace())?;

    // A foreign network needs a block of its own, and this pod has taken the only one.
    lab.node_mut("node1")?.runtime_mut().set_conflist(own.clone());
    let _pod = lab.add_pod("node1", "p0")?;
    let ipam =
        json!({"type": "twill-ipam", "mode": "daemon", "runDir": own["plugins"][0]["runDir"]});
    let plugins = json!([{"type": "ptp", "ipam": ipam}]);
    let lan = json!({"cniVersion": "1.0.0", "name": "lan", "plugins": plugins});
    lab.node_mut("node1")?.runtime_mut().set_conflist(lan);
    no_address(&mut lab, "lan", "tiny")?;
    lab.node_mut("node1")?.runtime_mut().set_conflist(own);
    let node = lab.node("node1")?;
    node.runtime().status(node.namespace())
}
