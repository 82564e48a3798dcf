//! Pods that are gone without a DEL, ADDs that died, and a daemon that is hung or out of space:
//! what is left is found and taken back, and nothing that lives is touched.

mod trouble;

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    lab::{Lab, Pod, Topology},
    netns::Namespace,
    ping, programs,
    ptrace::{self, Ended},
    random::Random,
    snapshot::Snapshot,
    wait::wait_for,
};

pub(crate) use self::trouble::{
    a_daemon_that_hangs_costs_neither_pod_nor_address, a_full_store_costs_neither_pod_nor_address,
    fill, status_tells_of_a_full_store,
};
use crate::{LONG, SECONDS};

/// Quick enough for a test.
const SETTINGS: &str = "reconcile: {intervalSeconds: 1, graceSeconds: 1}\n";

/// One node behind a ToR, with one pool for all and one of the rack's own segment for who names it;
/// its daemon does not run yet.
fn lab(settings: &str) -> Result<Lab> {
    let mut topology = Topology::new();
    topology.router("tor").on("seg-a", "192.168.2.1/24");
    topology
        .node("node1")
        .label("rack", "rack1")
        .label("env", "prod")
        .on("seg-a", "192.168.2.11/24")
        .settings(settings);
    topology.samples(&["ippool-app.yaml", "ipamconfig-default.yaml"])?;
    topology.resource(
        "lan.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: lan}\nspec: {cidr: \
         192.168.2.128/25, blockSize: 27, assignmentMode: Manual}\n",
    );
    topology.build()
}

fn running(settings: &str) -> Result<Lab> {
    let mut lab = lab(settings)?;
    lab.start_all()?;
    Ok(lab)
}

/// How often the daemon has looked for links that wait to be deleted, among all there are.
fn looks_for_all(lab: &Lab) -> Result<usize> {
    Ok(lab.node("node1")?.log().matches("looked_for_all=true").count())
}

/// A DEL says which link it has put aside; only one that does not know makes the daemon look.
pub(crate) fn a_link_that_a_del_names_is_not_looked_for() -> Result<()> {
    let mut lab = running("")?;
    wait_for("the look at the start", SECONDS, || {
        ensure!(looks_for_all(&lab)? == 1);
        Ok(())
    })?;
    let no_link_waits = |lab: &Lab| {
        wait_for("the links to be deleted", SECONDS, || {
            let links = lab.node("node1")?.namespace().ip("-oneline link show")?;
            ensure!(!links.contains("twd"), "{links}");
            Ok(())
        })
    };
    for name in ["web", "api", "db"] {
        let pod = lab.add_pod("node1", name)?;
        let attachment = pod.attachment().clone();
        lab.delete_pod(pod)?;
        no_link_waits(&lab)?;
        // As containerd does it.
        let node = lab.node("node1")?;
        node.runtime().del(node.namespace(), &attachment)?;
    }
    ensure!(looks_for_all(&lab)? == 1, "{}", lab.node("node1")?.log());
    // A DEL that died after it had put the link aside; the next one does not find it.
    let pod = lab.add_pod("node1", "died")?;
    let node = lab.node("node1")?;
    let container = &pod.attachment().container_id;
    let links = node.namespace().ip("-oneline link show")?;
    let link = links.lines().find(|line| line.contains(container)).context("the pod's link")?;
    let name = link.split_whitespace().nth(1).and_then(|name| name.split('@').next());
    let name = name.context("the link's name")?;
    let group = twill_types::DELETE_GROUP;
    node.namespace().ip_batch(&format!(
        "link set {name} down\nlink set {name} name twd0\nlink set twd0 group {group}\n"
    ))?;
    lab.delete_pod(pod)?;
    no_link_waits(&lab)?;
    wait_for("a look for all", SECONDS, || {
        ensure!(looks_for_all(&lab)? == 2, "{}", lab.node("node1")?.log());
        Ok(())
    })?;
    // What lies in the spool and tells of no DEL makes no work, and is out of the way.
    let node = lab.node("node1")?;
    let spool = node.dir().join("run/spool");
    fs::write(spool.join("twl0123456789ab.json"), "{")?;
    wait_for("it to be set aside", LONG, || {
        ensure!(spool.join("twl0123456789ab.json.bad").exists(), "{}", node.log());
        Ok(())
    })?;
    ensure!(looks_for_all(&lab)? == 2, "{}", node.log());
    Ok(())
}

/// Who makes the interface of a pod with an address from us.
#[derive(Debug, Clone, Copy)]
enum Foreign {
    /// A link with one end on the node.
    Ptp,
    /// Nothing of it is on the node: the pod is on the rack's own segment.
    Macvlan,
}

impl Foreign {
    /// A pod that the reference plugin makes.
    fn pod(self, lab: &mut Lab, name: &str) -> Result<Pod> {
        let list = self.list(lab)?;
        let runtime = lab.node_mut("node1")?.runtime_mut();
        let ours = runtime.conflist().clone();
        runtime.set_conflist(list);
        let pod = lab.add_pod("node1", name);
        lab.node_mut("node1")?.runtime_mut().set_conflist(ours);
        pod
    }

    /// Its network.
    fn list(self, lab: &Lab) -> Result<Value> {
        let run_dir = lab.node("node1")?.dir().join("run");
        let mut ipam = json!({"type": "twill-ipam", "mode": "daemon", "runDir": run_dir});
        let plugin = match self {
            Self::Ptp => json!({"type": "ptp", "ipam": ipam}),
            Self::Macvlan => {
                ipam["ipv4Pools"] = json!(["lan"]);
                ipam["prefixLength"] = json!(24);
                ipam["gateway"] = json!("192.168.2.1");
                json!({"type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": ipam})
            }
        };
        let name_of_network = format!("{self:?}").to_lowercase();
        Ok(json!({"cniVersion": "1.0.0", "name": name_of_network, "plugins": [plugin]}))
    }

    /// What libcni keeps of a pod's ADD (`libcni/api.go`, `cachedInfo`).
    fn cached(self, lab: &Lab, pod: &Pod) -> Result<Value> {
        let list = self.list(lab)?;
        let mut encoder = Command::new("base64")
            .arg("--wrap=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        encoder.stdin.take().context("no input")?.write_all(list.to_string().as_bytes())?;
        let attachment = pod.attachment();
        Ok(json!({
            "kind": "cniCacheV1",
            "containerId": attachment.container_id,
            "config": String::from_utf8(encoder.wait_with_output()?.stdout)?,
            "ifName": attachment.ifname,
            "networkName": list["name"],
            "netns": attachment.netns,
            "result": {"cniVersion": "1.0.0", "ips": [{"address": format!("{}/24", pod.address()?)}]},
        }))
    }

    /// The pod answers who can see it: a node sees no macvlan of its own.
    fn answers(self, lab: &Lab, pod: &Pod) -> Result<()> {
        let from = match self {
            Self::Ptp => lab.node("node1")?.namespace(),
            Self::Macvlan => lab.router("tor")?,
        };
        ping::reaches(from, pod.address()?)
    }
}

fn in_use(lab: &Lab, wanted: u64) -> Result<()> {
    wait_for(&format!("{wanted} addresses in use"), LONG, || {
        let used = lab.node("node1")?.addresses_in_use()?;
        ensure!(used == wanted, "{used} are");
        Ok(())
    })
}

/// The node once the daemon has deleted what waits for it.
fn quiet(lab: &Lab) -> Result<Snapshot> {
    wait_for("parked links to go", SECONDS, || {
        let links = lab.node("node1")?.namespace().ip("link show type veth")?;
        ensure!(!links.contains("twd"), "{links}");
        Snapshot::namespace(lab.node("node1")?.namespace())
    })
}

/// The value of a metric that has just these labels.
pub(crate) fn metric(lab: &Lab, name: &str) -> Result<f64> {
    let address: SocketAddr = "127.0.0.1:9190".parse()?;
    let text = lab.node("node1")?.namespace().enter(|| -> Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.with_context(|| format!("no {name} in {text}"))?.parse()?)
}

/// The name of a pod's host end, by the alias that it still has.
fn host_end(lab: &Lab, pod: &Pod) -> Result<String> {
    let links = lab.node("node1")?.namespace().ip("-oneline link show type veth")?;
    let container = &pod.attachment().container_id;
    let link = links.lines().find(|line| line.contains(container)).context("no link of the pod")?;
    Ok(link.split([':', '@']).nth(1).context("no name")?.trim().to_owned())
}

/// Links whose name is that of a pod's host end.
fn host_ends(host: &Namespace) -> Result<Vec<String>> {
    let links = host.ip_json("link show type veth")?;
    let names = links.iter().filter_map(|link| link["ifname"].as_str());
    Ok(names.filter(|name| name.starts_with("twl")).map(str::to_owned).collect())
}

pub(crate) fn pods_that_are_gone_without_a_del_are_freed() -> Result<()> {
    let mut lab = running(&format!("{SETTINGS}metrics: {{listen: \"127.0.0.1:9190\"}}\n"))?;
    let (web, lost) = (lab.add_pod("node1", "web")?, lab.add_pod("node1", "lost")?);
    let (lan, gone) = (Foreign::Ptp.pod(&mut lab, "lan")?, Foreign::Ptp.pod(&mut lab, "gone")?);
    let flat = Foreign::Macvlan.pod(&mut lab, "flat")?;
    let away = Foreign::Macvlan.pod(&mut lab, "away")?;
    in_use(&lab, 6)?;
    let freed = [lost.address()?, gone.address()?, away.address()?];
    drop((lost, gone, away));
    in_use(&lab, 3)?;
    ping::reaches(lab.node("node1")?.namespace(), web.address()?)?;
    Foreign::Ptp.answers(&lab, &lan)?;
    Foreign::Macvlan.answers(&lab, &flat)?;
    for (metric_of, reason) in [(1.0, "link-gone"), (2.0, "namespace-gone")] {
        let name = format!("twill_ipam_reclaimed_total{{reason=\"{reason}\"}}");
        let value = metric(&lab, &name)?;
        ensure!((value - metric_of).abs() < f64::EPSILON, "{name} is {value}");
    }
    let log = lab.node("node1")?.log();
    for (pod, address) in ["prod/lost", "prod/gone", "prod/away"].iter().zip(freed) {
        let line = log.lines().find(|line| line.contains("released: ") && line.contains(pod));
        let line = line.with_context(|| format!("no word of {pod}"))?;
        ensure!(line.contains(&address.to_string()), "{line}");
    }
    // Their DELs may come all the same.
    lab.node("node1")?.runtime().check(lab.node("node1")?.namespace(), web.attachment())?;
    lab.delete_pod(web)?;
    in_use(&lab, 2)
}

/// Another daemon begins anew, and finds what the one before it had only begun to suspect.
pub(crate) fn a_restart_between_two_looks_forgets_nobody() -> Result<()> {
    // So long that the first daemon cannot have come to an end with it.
    let mut lab = running("reconcile: {intervalSeconds: 1, graceSeconds: 86400}\n")?;
    let (web, lost) = (lab.add_pod("node1", "web")?, lab.add_pod("node1", "lost")?);
    drop(lost);
    wait_for("the kernel to take the link away", SECONDS, || {
        let ends = host_ends(lab.node("node1")?.namespace())?;
        ensure!(ends.len() == 1, "{ends:?}");
        Ok(())
    })?;
    let node = lab.node_mut("node1")?;
    node.kill9()?;
    let config = std::fs::read_to_string(node.config())?;
    std::fs::write(node.config(), config.replace("86400", "1"))?;
    node.start()?;
    in_use(&lab, 1)?;
    ping::reaches(lab.node("node1")?.namespace(), web.address()?)
}

/// At each of many moments of an ADD: what the living do not need goes while they live, and the
/// rest with them.
pub(crate) fn what_a_killed_add_leaves_is_removed() -> Result<()> {
    const STEP: usize = 4;
    let mut lab = running(&format!("{SETTINGS}metrics: {{listen: \"127.0.0.1:9190\"}}\n"))?;
    let first = lab.add_pod("node1", "first")?;
    lab.detach(&first)?;
    in_use(&lab, 0)?;
    let before = quiet(&lab)?;
    let mut random = Random::from_environment();
    let mut pods = Vec::new();
    let mut at = 1 + random.below(STEP);
    loop {
        let pod = lab.bare_pod("node1", &format!("p{at}"))?;
        let node = lab.node("node1")?;
        let call = node.runtime().first_call("ADD", pod.attachment())?;
        let (twill, stdin) = (programs::find("twill")?, call.stdin());
        let environment = &call.environment;
        let ended = ptrace::run(node.namespace(), &twill, environment, stdin.as_bytes(), at)?;
        if let Ended::Completed { .. } = ended {
            lab.detach(&pod)?;
            break;
        }
        pods.push(pod);
        at += STEP;
    }
    let node = lab.node("node1")?;
    // An ADD that died between two sends to the kernel, which the steps may not have hit.
    node.namespace().ip("link add twl0123456789ab type veth peer name nobody")?;
    ensure!(host_ends(node.namespace())?.len() > 1, "no link was left; {random}");
    let named = || -> Result<Vec<String>> {
        let mut named = Vec::new();
        for end in host_ends(node.namespace())? {
            let shown = node.namespace().ip(&format!("link show {end}"))?;
            ensure!(shown.contains("alias twill;"), "{shown}");
            named.push(end);
        }
        Ok(named)
    };
    let named = wait_for("links without a name to go", LONG, named)?;
    // It has another name first, and is deleted with others.
    wait_for("its other end to go", LONG, || {
        ensure!(node.namespace().ip("link show nobody").is_err(), "it is there still");
        Ok(())
    })?;
    ensure!(!named.is_empty(), "no ADD got so far as to name its link; {random}");
    // Each is told by a line and counted by the metric.
    wait_for("what was removed to be told", LONG, || {
        let log = node.log();
        let told: Vec<_> =
            log.lines().filter(|line| line.contains("removed a link that an ADD left")).collect();
        let mut counted = 0;
        for reason in ["unnamed", "superseded", "unrecorded"] {
            let lines = told.iter().filter(|line| line.contains(&format!("why=\"{reason}\"")));
            let lines = u32::try_from(lines.count())?;
            counted += lines;
            if lines > 0 || reason == "unnamed" {
                let name = format!("twill_links_reclaimed_total{{reason=\"{reason}\"}}");
                let value = metric(&lab, &name)?;
                ensure!((value - f64::from(lines)).abs() < f64::EPSILON, "{value} of {told:#?}");
            }
        }
        ensure!(counted > 0 && counted as usize == told.len(), "{counted} of {told:#?}");
        Ok(())
    })?;
    drop(pods);
    in_use(&lab, 0)?;
    wait_for("the node to be as before", LONG, || {
        let left = before.differences(&Snapshot::namespace(lab.node("node1")?.namespace())?);
        let left: Vec<_> = left.iter().filter(|l| !l.starts_with("+ route unreachable")).collect();
        ensure!(left.is_empty(), "{left:#?}; {random}");
        Ok(())
    })
}

/// In a container without mount propagation the namespaces of later pods read as plain files.
pub(crate) fn a_daemon_that_sees_no_namespaces_frees_no_living_pod() -> Result<()> {
    let mut lab = lab(SETTINGS)?;
    let node = lab.node_mut("node1")?;
    node.launch_by(&["unshare", "--mount", "--propagation", "private"])?;
    node.wait_ready()?;
    let (web, lost) = (lab.add_pod("node1", "web")?, lab.add_pod("node1", "lost")?);
    let (lan, gone) = (Foreign::Ptp.pod(&mut lab, "lan")?, Foreign::Ptp.pod(&mut lab, "gone")?);
    let flat = Foreign::Macvlan.pod(&mut lab, "flat")?;
    let away = Foreign::Macvlan.pod(&mut lab, "away")?;
    wait_for("word of it", LONG, || {
        let status = lab.node("node1")?.status()?;
        let told = status["problems"].to_string();
        ensure!(told.contains("HostToContainer") && told.contains("/run/netns/"), "{status}");
        Ok(())
    })?;
    let shown = lab.node("node1")?.ctl(&["node", "status"])?;
    ensure!(shown.contains("Problems") && shown.contains("reads as a plain file"), "{shown}");
    // Whoever writes over a link's alias has not taken the pod away.
    let renamed = lab.add_pod("node1", "renamed")?;
    let name = host_end(&lab, &renamed)?;
    let node = lab.node("node1")?.namespace();
    node.ip(&format!("link set dev {name} alias somebody"))?;
    drop((lost, gone, away));
    // The link's absence is evidence; that the other paths read as nothing now is none.
    in_use(&lab, 6)?;
    let mut other = lab.add_pod("node1", "other")?;
    lab.attach(&mut other)?;
    drop(other);
    in_use(&lab, 6)?;
    ping::reaches(lab.node("node1")?.namespace(), web.address()?)?;
    ping::reaches(lab.node("node1")?.namespace(), renamed.address()?)?;
    Foreign::Ptp.answers(&lab, &lan)?;
    Foreign::Macvlan.answers(&lab, &flat)?;
    lab.delete_pod(web)?;
    in_use(&lab, 5)
}

/// Whoever empties a link's alias has not taken the pod away, either.
pub(crate) fn a_pod_whose_link_has_lost_its_alias_stays() -> Result<()> {
    let mut lab = running(SETTINGS)?;
    let (web, lost) = (lab.add_pod("node1", "web")?, lab.add_pod("node1", "lost")?);
    let host = lab.node("node1")?.namespace();
    host.ip_batch(&format!("link set dev {} alias \"\"\n", host_end(&lab, &web)?))?;
    // Left over for as long as the link without an alias is, and taken for it by the same looks.
    host.ip("link add twl0123456789ab type veth peer name nobody")?;
    drop(lost);
    in_use(&lab, 1)?;
    wait_for("the link of an ADD that died to go", LONG, || {
        ensure!(host.ip("link show nobody").is_err(), "it is there still");
        Ok(())
    })?;
    ping::reaches(host, web.address()?)?;
    lab.delete_pod(web)?;
    in_use(&lab, 0)
}

/// A link that belongs to no record, and whose owner cannot be told: it is told of, and stays.
pub(crate) fn links_without_a_record_are_kept_and_told() -> Result<()> {
    let mut lab = running(SETTINGS)?;
    let (mut web, mut lost) = (lab.bare_pod("node1", "web")?, lab.bare_pod("node1", "lost")?);
    let mut ends = Vec::new();
    for (pod, letter) in [(&mut web, "a"), (&mut lost, "b")] {
        // Too long for an alias, which holds a hash of it then.
        pod.attachment_mut().container_id = letter.repeat(250);
        let result = lab.attach(pod)?;
        ends.push(result["interfaces"][0]["name"].as_str().context("no name")?.to_owned());
    }
    let node = lab.node_mut("node1")?;
    node.kill9()?;
    std::fs::remove_dir_all(node.dir().join("run/ipam/store"))?;
    node.start()?;
    let told = |wanted: &[String]| {
        wait_for("word of the links", LONG, || {
            let status = lab.node("node1")?.status()?;
            let problems = status["problems"].as_array().context("no problems")?;
            ensure!(problems.len() == wanted.len(), "{status}");
            ensure!(wanted.iter().all(|end| status["problems"].to_string().contains(end)));
            Ok(())
        })
    };
    told(&ends)?;
    drop(lost);
    told(&ends[..1])?;
    ping::reaches(lab.node("node1")?.namespace(), web.address()?)?;
    lab.delete_pod(web)?;
    told(&[])
}

/// Of another main plugin's pod no link tells, but the runtime's library does.
pub(crate) fn a_lost_store_is_rebuilt_from_the_runtimes_cache() -> Result<()> {
    let mut lab = lab(SETTINGS)?;
    let node = lab.node("node1")?;
    let (results, store) = (node.dir().join("results"), node.dir().join("run/ipam/store"));
    fs::create_dir(&results)?;
    let config = fs::read_to_string(node.config())?;
    let cache = format!("ipam: {{resultCache: [{}]}}\n", results.display());
    fs::write(node.config(), config + &cache)?;
    lab.start_all()?;
    let flat = Foreign::Macvlan.pod(&mut lab, "flat")?;
    let gone = Foreign::Macvlan.pod(&mut lab, "gone")?;
    for pod in [&flat, &gone] {
        let cached = Foreign::Macvlan.cached(&lab, pod)?;
        fs::write(results.join(&pod.attachment().container_id), cached.to_string())?;
    }
    drop(gone);
    let node = lab.node_mut("node1")?;
    node.kill9()?;
    fs::remove_dir_all(&store)?;
    node.start()?;
    in_use(&lab, 1)?;
    let other = Foreign::Macvlan.pod(&mut lab, "other")?;
    ensure!(other.address()? != flat.address()?, "{:?} was given twice", other.addresses());
    Foreign::Macvlan.answers(&lab, &flat)?;
    Foreign::Macvlan.answers(&lab, &other)?;
    in_use(&lab, 2)?;
    drop(flat);
    in_use(&lab, 1)
}

/// A node on which the plugin was alone gets a daemon: it keeps the pods that it finds, tells of them, and
/// gives only what it has claimed.
pub(crate) fn a_daemon_that_takes_over_keeps_the_pods_of_before() -> Result<()> {
    let mut lab = lab(SETTINGS)?;
    let runtime = lab.node_mut("node1")?.runtime_mut();
    let ours = runtime.conflist().clone();
    let mut alone = ours.clone();
    alone["plugins"][0]["ipam"]["mode"] = json!("standalone");
    alone["plugins"][0]["ipam"]["pools"] = json!([{"cidr": "10.77.0.0/24", "blockSize": 26}]);
    runtime.set_conflist(alone);
    let old = lab.add_pod("node1", "old")?;
    ensure!(old.address()?.to_string().starts_with("10.77.0."), "{:?}", old.addresses());
    lab.node_mut("node1")?.runtime_mut().set_conflist(ours);
    lab.start_all()?;
    wait_for("word of the block that is not claimed", LONG, || {
        let shown = lab.node("node1")?.ctl(&["node", "status"])?;
        ensure!(shown.contains("the claim of 10.77.0.0/26 cannot be read, or is gone"), "{shown}");
        Ok(())
    })?;
    let host = lab.node("node1")?.namespace();
    ping::reaches(host, old.address()?)?;
    let new = lab.add_pod("node1", "new")?;
    ensure!(new.address()?.to_string().starts_with("10.10."), "{:?}", new.addresses());
    in_use(&lab, 2)?;
    let host = lab.node("node1")?.namespace();
    ping::reaches(host, old.address()?)?;
    ping::reaches(host, new.address()?)?;
    lab.delete_pod(old)?;
    in_use(&lab, 1)
}

/// The store is lost under running pods, in two ways: what their links tell is enough to go on.
pub(crate) fn a_lost_store_is_rebuilt_from_the_links() -> Result<()> {
    const PODS: u64 = 30;
    let mut lab = running(SETTINGS)?;
    let first = lab.add_pod("node1", "first")?;
    lab.detach(&first)?;
    let before = quiet(&lab)?;
    let mut pods = Vec::new();
    for number in 0..PODS {
        pods.push(lab.add_pod("node1", &format!("p{number}"))?);
    }
    let store = lab.node("node1")?.dir().join("run/ipam/store");
    for damaged in [false, true] {
        let node = lab.node_mut("node1")?;
        node.kill9()?;
        if damaged {
            std::fs::write(store.join("db"), vec![7; 65536])?;
        } else {
            std::fs::remove_dir_all(&store)?;
        }
        node.start()?;
        in_use(&lab, PODS + u64::from(damaged))?;
        // A new pod gets an address of its own, whatever was lost; it stays for the second round.
        let pod = lab.add_pod("node1", &format!("new-{damaged}"))?;
        ensure!(pods.iter().all(|other| other.addresses() != pod.addresses()), "given twice");
        pods.push(pod);
        // So does one that is attached again: what it had.
        let had = pods[0].addresses().to_vec();
        let mut again = pods.remove(0);
        lab.attach(&mut again)?;
        ensure!(again.addresses() == had, "{:?}, it had {had:?}", again.addresses());
        pods.push(again);
        for pod in &pods {
            ping::reaches(lab.node("node1")?.namespace(), pod.address()?)?;
        }
        let told = lab.node("node1")?.status()?["problems"].to_string();
        ensure!(told.contains("store.corrupt-1") == damaged, "{told}");
    }
    let twice = lab.node("node1")?.log().matches("record read from the link").count() as u64;
    ensure!(twice == 2 * PODS + 1, "{twice} records were read");
    for pod in &pods {
        lab.detach(pod)?;
    }
    in_use(&lab, 0)?;
    let left = before.differences(&quiet(&lab)?);
    let left: Vec<_> = left.iter().filter(|l| !l.starts_with("+ route unreachable")).collect();
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}
