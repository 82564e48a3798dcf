//! What Twill changes on a host, against what `docs/host-changes.md` says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use twill_tests::{
    bird::{BirdConfig, Neighbor},
    lab::{Lab, Topology},
    netns::Namespace,
    process::check,
    programs,
    snapshot::Snapshot,
    wait::wait_for,
};

use crate::{LONG, SECONDS};

/// The lines of the tables: the change, with `<...>` for what differs from host to host.
fn documented() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(programs::source("docs/host-changes.md"))?;
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    Ok(rows.map(|(change, _)| change.to_owned()).collect())
}

/// Whether a change is the documented one, `<...>` standing for any word.
fn is(change: &str, pattern: &str) -> bool {
    let (change, pattern): (Vec<_>, Vec<_>) =
        (change.split(' ').collect(), pattern.split(' ').collect());
    change.len() == pattern.len()
        && change.iter().zip(pattern).all(|(word, pattern)| {
            match (pattern.split_once('<'), pattern.rsplit_once('>')) {
                (Some((head, _)), Some((_, tail))) => {
                    word.len() > head.len() + tail.len()
                        && word.starts_with(head)
                        && word.ends_with(tail)
                }
                _ => *word == pattern,
            }
        })
}

/// `/proc/sys/net` of a namespace, but for what belongs to single links.
fn sysctls(namespace: &Namespace) -> Result<BTreeMap<String, String>> {
    fn collect(directory: &Path, found: &mut BTreeMap<String, String>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                collect(&path, found);
            } else if let Ok(value) = fs::read_to_string(&path) {
                let key = path.strip_prefix("/proc/sys/").unwrap_or(&path);
                found.insert(key.display().to_string(), value.trim().to_owned());
            }
        }
    }
    namespace.enter(|| {
        let mut found = BTreeMap::new();
        collect(Path::new("/proc/sys/net"), &mut found);
        // A counter, no setting: how many connections are tracked.
        found.remove("net/netfilter/nf_conntrack_count");
        found
    })
}

/// The settings of a link, by key without the link's name.
fn of_link(all: &BTreeMap<String, String>, link: &str) -> BTreeMap<String, String> {
    let name = format!("/{link}/");
    all.iter()
        .filter(|(key, _)| key.contains(&name))
        .map(|(key, value)| (key.replace(&name, "/<link>/"), value.clone()))
        .collect()
}

fn files(directory: &Path, label: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = format!("{label}/{}", entry.file_name().to_string_lossy());
        if path.is_dir() {
            files(&path, &name, found);
        } else {
            found.insert(format!("file {name}"));
        }
    }
}

/// Words of `ip` that say what a change is, without counters and kernel's own remarks.
fn words(line: &str) -> String {
    let line = line.strip_prefix("+ ").unwrap_or(line);
    let line = line.split('\\').next().unwrap_or(line);
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

pub(crate) fn the_documented_changes_are_the_real_ones() -> Result<()> {
    let mut topology = Topology::new();
    let neighbor = Neighbor::new("node1", "192.168.2.11", 64512).local("192.168.2.1");
    topology
        .router("tor")
        .on("seg-a", "192.168.2.1/24")
        .bird(BirdConfig::new("192.168.2.1", 64513).neighbor(neighbor).announce("198.51.100.0/24"));
    topology
        .node("node1")
        .label("rack", "rack1")
        .label("env", "prod")
        .on("seg-a", "192.168.2.11/24")
        .on("seg-a", "2001:db8:2::11/64");
    topology.samples(&["ippool-app.yaml", "bgppeer-rack1.yaml"])?;
    topology.resource(
        "pool6.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pool6}\n\
         spec: {cidr: \"fd00:10::/112\", blockSize: 122, natOutgoing: true}\n",
    );
    topology.resource(
        "filter.yaml",
        "apiVersion: projectcalico.org/v3\nkind: BGPFilter\nmetadata: {name: racks}\nspec: {}\n---\n\
         apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: other}\n\
         spec: {node: other, peerIP: 192.168.2.9, asNumber: 64513, filters: [racks]}\n",
    );
    let mut lab = topology.build()?;
    let namespace = |lab: &twill_tests::lab::Lab| -> Result<Snapshot> {
        Snapshot::namespace(lab.node("node1")?.namespace())
    };
    let (before, settings) = (namespace(&lab)?, sysctls(lab.node("node1")?.namespace())?);
    let host = Snapshot::host()?;

    let runtime = lab.node_mut("node1")?.runtime_mut();
    let mut conflist = runtime.conflist().clone();
    conflist["plugins"][0]["ipam"]["assignIPv6"] = true.into();
    runtime.set_conflist(conflist);
    lab.start_all()?;
    lab.node("node1")?.wait_established(&["192.168.2.1"], LONG)?;
    lab.node("node1")?.wait_route("198.51.100.0/24", LONG)?;
    let pod = lab.add_pod("node1", "web")?;
    // A veth that nobody has set up, to compare with.
    let node = lab.node("node1")?.namespace();
    node.ip_batch("link add plain0 up type veth peer name plain1\n")?;
    let after = sysctls(node)?;
    node.ip_batch("link del plain0\n")?;

    let mut changes = BTreeSet::new();
    for line in before.differences(&namespace(&lab)?) {
        ensure!(line.starts_with("+ "), "something that was there is gone: {line}");
        changes.insert(words(&line));
    }
    let link = lab.node("node1")?.namespace().ip_json("link show type veth")?;
    let link = link.iter().filter_map(|link| link["ifname"].as_str());
    let link = link.filter(|name| name.starts_with("twl")).max().context("no link")?.to_owned();
    for neighbour in lab.node("node1")?.namespace().ip(&format!("neigh show dev {link}"))?.lines() {
        changes.insert(words(&format!("neighbour {neighbour}")));
    }
    changes.extend(wait_for("the table of nftables", SECONDS, || {
        let tables = nftables(lab.node("node1")?.namespace())?;
        ensure!(!tables.is_empty());
        Ok(tables)
    })?);
    let is_of_a_link =
        |key: &str| [&*link, "plain0", "plain1"].iter().any(|l| key.contains(&format!("/{l}/")));
    for (key, value) in after.iter().filter(|(key, _)| !is_of_a_link(key)) {
        if settings.get(key).is_some_and(|before| before != value) {
            changes.insert(format!("sysctl {key} = {value}"));
        }
    }
    let (ours, plain) = (of_link(&after, &link), of_link(&after, "plain0"));
    for (key, value) in &ours {
        if plain.get(key) != Some(value) {
            changes.insert(format!("sysctl {key} = {value}"));
        }
    }
    let node = lab.node("node1")?;
    files(&node.dir().join("run"), "runDir", &mut changes);
    let kept = node.dir().join("state/last-known-filters.json");
    wait_for("the filters to be kept", SECONDS, || {
        ensure!(kept.exists());
        Ok(())
    })?;
    files(&node.dir().join("state"), "stateDir", &mut changes);
    let mut resources = BTreeSet::new();
    files(&lab.dir().join("resources"), "resources", &mut resources);
    changes
        .extend(resources.into_iter().filter(|f| f.contains("/claims/") || f.contains("/status/")));

    let documented = documented()?;
    let unknown: Vec<_> =
        changes.iter().filter(|change| !documented.iter().any(|p| is(change, p))).collect();
    ensure!(unknown.is_empty(), "changes that docs/host-changes.md does not name:\n{unknown:#?}");
    let absent: Vec<_> =
        documented.iter().filter(|p| !changes.iter().any(|change| is(change, p))).collect();
    ensure!(absent.is_empty(), "docs/host-changes.md names what is not there:\n{absent:#?}");

    // Nothing outside the node's namespace and its directories: no file, mount or process but
    // the daemon's.
    let elsewhere: Vec<_> = host
        .differences(&Snapshot::host()?)
        .into_iter()
        .filter(|line| !line.contains("/run/netns/") && !line.contains("twilld"))
        .collect();
    ensure!(elsewhere.is_empty(), "{elsewhere:#?}");
    lab.delete_pod(pod)?;
    wait_for("the pod's link to go", SECONDS, || {
        ensure!(lab.node("node1")?.namespace().ip(&format!("link show {link}")).is_err());
        Ok(())
    })
}

/// The tables of nftables. A new namespace has none.
fn nftables(namespace: &Namespace) -> Result<BTreeSet<String>> {
    let output = namespace.output(Command::new("nft").args(["list", "tables"]))?;
    let tables = check("nft list tables", &output)?;
    Ok(tables.lines().map(|table| format!("nftables {table}")).collect())
}

/// The commands of the page, in their order, leave nothing of Twill's in the tables of a node that it is
/// gone from, nexthop objects included.
pub(crate) fn the_documented_commands_remove_all_routes() -> Result<()> {
    let page = fs::read_to_string(programs::source("docs/host-changes.md"))?;
    let is_command = |line: &&str| line.starts_with("ip ") || line.starts_with("nft ");
    let commands: Vec<&str> = page.lines().filter(is_command).collect();
    ensure!(!commands.is_empty(), "the page has no commands");
    let mut topology = Topology::new();
    for (name, address, address6) in
        [("tor1", "192.168.2.1", "2001:db8:2::1"), ("tor2", "192.168.2.2", "2001:db8:2::2")]
    {
        let neighbors = [("node4", address, "192.168.2.11"), ("node6", address6, "2001:db8:2::11")];
        let bird = neighbors.into_iter().fold(
            BirdConfig::new(address, 64513)
                .announce("198.51.100.0/24")
                .announce("2001:db8:ff::/64"),
            |bird, (protocol, own, node)| {
                bird.neighbor(Neighbor::new(protocol, node, 64512).local(own))
            },
        );
        topology
            .router(name)
            .on("seg-a", &format!("{address}/24"))
            .on("seg-a", &format!("{address6}/64"))
            .bird(bird);
        for (number, address) in [(4, address), (6, address6)] {
            topology.resource(
                &format!("{name}-{number}.yaml"),
                &format!(
                    "apiVersion: projectcalico.org/v3\nkind: BGPPeer\n\
                     metadata: {{name: {name}-{number}}}\n\
                     spec: {{peerIP: \"{address}\", asNumber: 64513}}\n"
                ),
            );
        }
    }
    topology.node("node1").on("seg-a", "192.168.2.11/24").on("seg-a", "2001:db8:2::11/64");
    topology.resource(
        "pool.yaml",
        "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: pool}\n\
         spec: {cidr: 10.10.0.0/20, blockSize: 26, natOutgoing: true}\n",
    );
    let mut lab = topology.build()?;
    lab.start_all()?;
    let own = |lab: &Lab| -> Result<String> {
        let node = lab.node("node1")?.namespace();
        let tables = ["route show proto 116", "-6 route show proto 116", "nexthop show proto 116"];
        tables.into_iter().map(|table| node.ip(table)).collect()
    };
    wait_for("routes that name objects", LONG, || {
        let own = own(&lab)?;
        let shared = own.lines().filter(|line| line.contains(" nhid ")).count();
        ensure!(shared == 2 && own.contains("group"), "{own}");
        Ok(())
    })?;
    wait_for("the table of nftables", SECONDS, || {
        ensure!(!nftables(lab.node("node1")?.namespace())?.is_empty());
        Ok(())
    })?;
    lab.node_mut("node1")?.stop()?;
    for command in commands {
        let mut words = command.split_whitespace();
        let mut program = Command::new(words.next().context("no program")?);
        check(command, &lab.node("node1")?.namespace().output(program.args(words))?)?;
    }
    ensure!(nftables(lab.node("node1")?.namespace())?.is_empty(), "a table is left");
    let left = own(&lab)?;
    ensure!(left.trim().is_empty(), "{left}");
    Ok(())
}
