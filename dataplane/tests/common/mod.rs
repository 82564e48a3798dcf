//! Namespaces to test in: never the machine's own.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends with the first surprise")]

use std::{
    io::Write,
    net::IpAddr,
    process::{Command, Stdio},
    thread,
};

use nix::sched::{CloneFlags, unshare};
use twill_dataplane::{
    Error, Netns,
    node::{self, SysctlChange},
    pod::{self, PodLink, PodLinkUp, Prepared, Sides},
};
use twill_types::{AttachmentId, Family};

/// Runs a test in a new network namespace, which is the node, on a thread of its own.
pub fn on_a_node(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root (CAP_SYS_ADMIN)");
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A new namespace for a pod. It goes when the handle is dropped.
pub fn pod_netns() -> Netns {
    let make = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("kernel tests need root (CAP_SYS_ADMIN)");
        Netns::current().unwrap()
    };
    thread::spawn(make).join().unwrap()
}

/// Runs `ip` in the namespace of the calling thread.
pub fn ip(arguments: &str) -> String {
    try_ip(arguments).unwrap_or_else(|error| panic!("ip {arguments}: {error}"))
}

pub fn try_ip(arguments: &str) -> Result<String, String> {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap().trim_end().to_owned()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

/// Runs many commands of `ip`, a line each.
pub fn batch(commands: &str) {
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    ip.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(ip.wait().unwrap().success());
}

/// Runs `ip` in a pod.
pub fn ip_in(pod: &Netns, arguments: &str) -> String {
    pod.enter(|| ip(arguments)).unwrap()
}

/// The value of a setting under `/proc/sys/net` in the namespace of the calling thread.
pub fn sysctl(key: &str) -> String {
    std::fs::read_to_string(format!("/proc/sys/net/{key}")).unwrap().trim().to_owned()
}

pub fn set_sysctl(key: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{key}"), value).unwrap();
}

pub fn attachment(container: &str) -> AttachmentId {
    AttachmentId { network: "test".into(), container_id: container.into(), ifname: "eth0".into() }
}

pub fn pod_link(container: &str, addresses: &[&str]) -> PodLink {
    PodLink {
        attachment: attachment(container),
        sequence: 5,
        addresses: addresses.iter().map(|ip| ip.parse::<IpAddr>().unwrap()).collect(),
        mtu: 1500,
        mac: None,
        routes: Vec::new(),
        pod_name: None,
    }
}

/// With sockets of its own, and nobody to tell of the link.
pub fn prepare(link: &PodLink, netns: &Netns) -> Result<Prepared, Error> {
    pod::prepare(link, netns, Sides::open(netns)?, |_| {})
}

/// Makes the node forward both families; what was changed for it.
pub fn ensure_forwarding() -> Vec<SysctlChange> {
    let mut changes = Vec::new();
    for family in [Family::V4, Family::V6] {
        node::ensure_forwarding(family, |change| changes.push(change)).unwrap();
    }
    changes
}

pub fn add(link: &PodLink, netns: &Netns) -> PodLinkUp {
    // What there is once for each node.
    node::ensure_gateway().unwrap();
    prepare(link, netns).unwrap().activate().unwrap()
}

/// A veth pair within the node: `uplink` with an address in 192.168.2.0/24 and fd00:2::/64, and its
/// other end as the router at .1 and ::1 has it.
pub fn uplink() {
    ip("link add uplink type veth peer name router");
    ip("link set uplink up");
    ip("link set router up");
    ip("address add 192.168.2.11/24 dev uplink");
    ip("address add fd00:2::11/64 dev uplink nodad");
}
