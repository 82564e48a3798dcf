//! First in a chain with the reference plugins, each with traffic.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};
use twill_tests::{cni, netns::Namespace, ping, process::check, snapshot::Snapshot};

use crate::tool::Site;

/// How long one exchange may take.
const PATIENCE: Duration = Duration::from_secs(20);

fn chain(plugin: Value) -> impl Fn(&mut Value) {
    move |list| {
        if let Some(plugins) = list["plugins"].as_array_mut() {
            plugins.push(plugin.clone());
        }
    }
}

/// Takes one connection in the pod, reads it to its end and answers how much there was.
fn serve(pod: &Namespace, port: u16) -> Result<JoinHandle<Result<u64>>> {
    let listener = pod.enter(|| TcpListener::bind(("0.0.0.0", port)))??;
    Ok(thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut bytes = vec![0; 64 * 1024];
        let mut count = 0;
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => break,
                Ok(read) => count += read as u64,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        stream.write_all(&count.to_be_bytes())?;
        Ok(count)
    }))
}

/// Sends this much and waits until the other side has it all; how long that took.
fn send(from: &Namespace, to: SocketAddr, count: usize) -> Result<Duration> {
    from.enter(|| -> Result<Duration> {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)
            .with_context(|| format!("cannot connect to {to}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let start = Instant::now();
        stream.write_all(&vec![7; count])?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut answer = [0; 8];
        stream.read_exact(&mut answer)?;
        ensure!(u64::from_be_bytes(answer) == count as u64, "not all of it came");
        Ok(start.elapsed())
    })?
}

/// After the last DEL: nothing of the pods is left, nor of what the packet filter said of them.
fn nothing_is_left(site: &Site, before: &Snapshot, of_pods: &[&str]) -> Result<()> {
    ensure!(site.used()? == 0, "addresses are still in use");
    let rules = site.filter_with(of_pods)?;
    ensure!(rules.is_empty(), "{rules:#?}");
    site.wait_as_before(before)
}

fn address(result: &Value) -> Result<IpAddr> {
    cni::addresses(result)?.first().copied().context("no address")
}

pub(crate) fn portmap_leads_to_the_pod_from_outside() -> Result<()> {
    for backend in ["iptables", "nftables"] {
        let portmap = json!({"type": "portmap", "backend": backend, "snat": true,
            "capabilities": {"portMappings": true}});
        let mut site = Site::new(chain(portmap))?;
        site.capabilities =
            json!({"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]});
        let before = Snapshot::namespace(site.node()?)?;
        let (pod, result) = site.add("web")?;
        let address = address(&result)?.to_string();
        let of_pod = ["8080", &*address];
        ensure!(!site.filter_with(&of_pod)?.is_empty(), "{backend}: it has made no rule");
        let served = serve(&pod, 80)?;
        let to = SocketAddr::from(([192, 168, 2, 11], 8080));
        send(site.lab.router("tor")?, to, 1000).with_context(|| backend.to_owned())?;
        ensure!(served.join().map_err(|_| anyhow!("the server panicked"))?? == 1000);
        site.call("check", pod.path())?;
        site.del(&pod)?;
        nothing_is_left(&site, &before, &of_pod)?;
        ensure!(send(site.lab.router("tor")?, to, 1).is_err(), "the port leads somewhere still");
        site.lab.remove()?;
    }
    Ok(())
}

/// In both directions, which the plugin does by different means: a shaper on the pod's link, and
/// one on a link of its own that it redirects the pod's packets to.
pub(crate) fn bandwidth_slows_the_pod_down() -> Result<()> {
    const RATE: u64 = 8_000_000;
    const BURST: u64 = 800_000;
    const BYTES: usize = 1_000_000;
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let mut site = Site::new(chain(bandwidth))?;
    site.capabilities = json!({"bandwidth": {
        "ingressRate": RATE, "ingressBurst": BURST, "egressRate": RATE, "egressBurst": BURST}});
    let node = site.node()?;
    let before = Snapshot::namespace(node)?;
    let (pod, result) = site.add("web")?;
    let listed = node.output(Command::new("tc").args(["-json", "qdisc", "show"]))?;
    let listed: Value = serde_json::from_str(&check("tc", &listed)?)?;
    let on = |kind: &str| -> Vec<&Value> {
        let all = listed.as_array().into_iter().flatten();
        all.filter(|qdisc| qdisc["kind"] == kind).map(|qdisc| &qdisc["dev"]).collect()
    };
    let link = &result["interfaces"][0]["name"];
    ensure!(on("tbf").len() == 2 && on("tbf").contains(&link), "{listed}");
    ensure!(on("ingress") == [link], "{listed}");

    // What is above the burst cannot have come faster than the rate, whatever else is going on.
    let least = (BYTES as f64 * 8.0 - BURST as f64) / RATE as f64;
    for (from, to, to_address) in
        [(node, &pod, address(&result)?), (&pod, node, "192.168.2.11".parse()?)]
    {
        let served = serve(to, 80)?;
        let took = send(from, SocketAddr::from((to_address, 80)), BYTES)?;
        served.join().map_err(|_| anyhow!("the server panicked"))??;
        let half = least / 2.0;
        ensure!(took.as_secs_f64() > half, "{BYTES} bytes to {to_address} in {took:?}: {least} s");
    }
    site.call("check", pod.path())?;
    site.del(&pod)?;
    nothing_is_left(&site, &before, &[])
}

/// The plugin flushes the pod's neighbours, the permanent ones for the gateways too. Where the node
/// has no default route, its answer for that of IPv4 hangs on our own route alone.
pub(crate) fn tuning_may_change_the_hardware_address() -> Result<()> {
    const MAC: &str = "02:00:00:00:00:77";
    let tuning = json!({"type": "tuning", "mac": MAC,
        "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}});
    let site = Site::dual_stack(chain(tuning))?;
    for default_route in [false, true] {
        if default_route {
            site.node()?.ip("route add default via 192.168.2.1")?;
        }
        let before = Snapshot::namespace(site.node()?)?;
        let (one, first) = site.add("one")?;
        let (two, second) = site.add("two")?;
        let (to_one, to_two) = (cni::addresses(&first)?, cni::addresses(&second)?);
        ensure!(to_one.len() == 2 && to_two.len() == 2, "{first} {second}");
        for (family, to_node) in ["192.168.2.11", "2001:db8:2::11"].into_iter().enumerate() {
            ping::reaches(site.node()?, to_one[family])?;
            ping::reaches(&one, to_node.parse()?)?;
            ping::reaches(&two, to_one[family])?;
            ping::reaches(&one, to_two[family])?;
        }
        ensure!(first["interfaces"][1]["mac"] == MAC, "{first}");
        for pod in [&one, &two] {
            ensure!(pod.ip("link show eth0")?.contains(MAC), "another hardware address");
            let key = "/proc/sys/net/ipv4/conf/eth0/log_martians";
            ensure!(pod.enter(|| fs::read_to_string(key))??.trim() == "1", "{key} is not set");
            site.call("check", pod.path())?;
            site.del(pod)?;
        }
        nothing_is_left(&site, &before, &[])?;
    }
    Ok(())
}

pub(crate) fn firewall_lets_the_pod_through() -> Result<()> {
    let site = Site::new(|_| {})?;
    let iptables = |arguments: &[&str]| -> Result<String> {
        let mut command = Command::new("iptables");
        let output = site.node()?.output(command.args(arguments))?;
        check(&format!("iptables {arguments:?}"), &output)
    };
    iptables(&["-P", "FORWARD", "DROP"])?;
    let before = Snapshot::namespace(site.node()?)?;
    let (one, first) = site.add("one")?;
    let (two, second) = site.add("two")?;
    ensure!(ping::reaches(&one, address(&second)?).is_err(), "the policy lets everything through");
    for pod in [&one, &two] {
        site.del(pod)?;
    }
    drop((first, one, two));
    site.configure(chain(json!({"type": "firewall", "backend": "iptables"})))?;
    let (one, first) = site.add("three")?;
    let (two, second) = site.add("four")?;
    ping::reaches(&one, address(&second)?)?;
    ping::reaches(&two, address(&first)?)?;
    let of_pods = [address(&first)?.to_string(), address(&second)?.to_string()];
    let of_pods: Vec<&str> = of_pods.iter().map(String::as_str).collect();
    ensure!(!site.filter_with(&of_pods)?.is_empty(), "it has made no rule");
    for pod in [&one, &two] {
        site.call("check", pod.path())?;
        site.del(pod)?;
    }
    nothing_is_left(&site, &before, &of_pods)
}
