//! First in a chain with the reference plugins, each with traffic.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cni, netns::Namespace, ping, process::check, snapshot::Snapshot, wait::wait_for,
};

use crate::{LONG, tool::Site};

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
            match stream.read(&mut bytes)? {
                0 => break,
                read => count += read as u64,
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

/// After the last DEL: the node is as before, but for its block and what `stays`.
fn as_before(site: &Site, before: &Snapshot, stays: &[&str]) -> Result<()> {
    ensure!(site.used()? == 0, "addresses are still in use");
    wait_for("the node to be as before", LONG, || {
        let left = before.differences(&Snapshot::namespace(site.node()?)?);
        let left: Vec<_> = left
            .iter()
            .filter(|line| !line.contains("unreachable"))
            .filter(|line| !stays.iter().any(|word| line.contains(word)))
            .collect();
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    })
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
        let (pod, _) = site.add("web")?;
        let served = serve(&pod, 80)?;
        let to = SocketAddr::from(([192, 168, 2, 11], 8080));
        send(site.lab.router("tor")?, to, 1000).with_context(|| backend.to_owned())?;
        ensure!(served.join().map_err(|_| anyhow::anyhow!("the server panicked"))?? == 1000);
        site.call("check", pod.path())?;
        site.del(&pod)?;
        as_before(&site, &before, &[])?;
        site.lab.remove()?;
    }
    Ok(())
}

pub(crate) fn bandwidth_slows_the_pod_down() -> Result<()> {
    const RATE: u64 = 8_000_000;
    const BURST: u64 = 800_000;
    let bandwidth = json!({"type": "bandwidth", "capabilities": {"bandwidth": true}});
    let mut site = Site::new(chain(bandwidth))?;
    site.capabilities = json!({"bandwidth": {"ingressRate": RATE, "ingressBurst": BURST}});
    let before = Snapshot::namespace(site.node()?)?;
    let (pod, result) = site.add("web")?;
    let served = serve(&pod, 80)?;
    // What is above the burst cannot have come faster than the rate, whatever else is going on.
    let bytes = 1_500_000;
    let took = send(site.node()?, SocketAddr::from((address(&result)?, 80)), bytes)?;
    served.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    let least = (bytes as f64 * 8.0 - BURST as f64) / RATE as f64;
    ensure!(took.as_secs_f64() > least * 0.8, "{bytes} bytes in {took:?}: at least {least:.1} s");
    site.call("check", pod.path())?;
    site.del(&pod)?;
    as_before(&site, &before, &[])
}

/// The plugin flushes the pod's neighbours, the permanent one for the gateway too; the node has no
/// default route, so that proxy ARP hangs on our own route for the gateway.
pub(crate) fn tuning_may_change_the_hardware_address() -> Result<()> {
    let tuning = json!({"type": "tuning", "mac": "02:00:00:00:00:77",
        "sysctl": {"net.ipv4.conf.IFNAME.log_martians": "1"}});
    let site = Site::new(chain(tuning))?;
    let before = Snapshot::namespace(site.node()?)?;
    let (one, first) = site.add("one")?;
    let (two, second) = site.add("two")?;
    ensure!(first["interfaces"][1]["mac"] == "02:00:00:00:00:77", "{first}");
    ping::reaches(site.node()?, address(&first)?)?;
    ping::reaches(&one, "192.168.2.11".parse()?)?;
    ping::reaches(&two, address(&first)?)?;
    ping::reaches(&one, address(&second)?)?;
    for pod in [&one, &two] {
        site.call("check", pod.path())?;
        site.del(pod)?;
    }
    as_before(&site, &before, &[])
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
    for pod in [&one, &two] {
        site.call("check", pod.path())?;
        site.del(pod)?;
    }
    as_before(&site, &before, &[])?;
    let rules = iptables(&["-S"])?;
    ensure!(!rules.contains("/32"), "rules of pods are left: {rules}");
    Ok(())
}
