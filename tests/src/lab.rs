//! Topologies in a few lines, and their life.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};

use crate::{
    bird::{Bird, BirdConfig},
    cni::{self, Attachment},
    netns::Namespace,
    programs,
    sandbox::LABS,
};

mod node;

use node::Source;

pub use node::Node;

/// A topology to be: machines, the segments that join them, the resources of the cluster.
#[derive(Debug, Default)]
pub struct Topology {
    machines: Vec<Machine>,
    resources: Vec<(String, String)>,
    kubeconfigs: Option<PathBuf>,
}

/// A node or a router of a [`Topology`].
#[derive(Debug, Default)]
pub struct Machine {
    name: String,
    is_node: bool,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
    /// Segment and addresses, in the order of `eth0`, `eth1`, ...
    links: Vec<(String, Vec<String>)>,
    gateways: Vec<String>,
    local: Vec<String>,
    bird: Option<BirdConfig>,
    settings: String,
    log_level: Option<&'static str>,
}

impl Machine {
    /// A label of the node.
    pub fn label(&mut self, key: &str, value: &str) -> &mut Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// An annotation of the node, beside the addresses.
    pub fn annotation(&mut self, key: &str, value: &str) -> &mut Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A link to a segment with this address (`192.168.2.11/24`). A second address on the same
    /// segment goes to the same link.
    pub fn on(&mut self, segment: &str, address: &str) -> &mut Self {
        match self.links.iter_mut().find(|(known, _)| known == segment) {
            Some((_, addresses)) => addresses.push(address.to_owned()),
            None => self.links.push((segment.to_owned(), vec![address.to_owned()])),
        }
        self
    }

    /// A default route.
    pub fn gateway(&mut self, address: &str) -> &mut Self {
        self.gateways.push(address.to_owned());
        self
    }

    /// An address on its loopback: a destination beyond the cluster.
    pub fn local(&mut self, address: &str) -> &mut Self {
        self.local.push(address.to_owned());
        self
    }

    /// Runs BIRD with this configuration.
    pub fn bird(&mut self, config: BirdConfig) -> &mut Self {
        self.bird = Some(config);
        self
    }

    /// More lines for the node's `twilld.yaml`.
    pub fn settings(&mut self, yaml: &str) -> &mut Self {
        self.settings.push_str(yaml);
        self
    }

    /// What the node's daemon logs, instead of everything.
    pub fn log_level(&mut self, level: &'static str) -> &mut Self {
        self.log_level = Some(level);
        self
    }

    fn all_addresses(&self) -> impl Iterator<Item = &String> {
        self.links.iter().flat_map(|(_, addresses)| addresses)
    }

    /// The manifest of the node: its name, its labels, the addresses of its first link.
    fn manifest(&self) -> String {
        let mut annotations = self.annotations.clone();
        for address in self.all_addresses() {
            let family = if address.contains(':') { "IPv6" } else { "IPv4" };
            let key = format!("projectcalico.org/{family}Address");
            annotations.entry(key).or_insert_with(|| address.clone());
        }
        let map = |entries: &BTreeMap<String, String>| {
            let lines: Vec<_> =
                entries.iter().map(|(key, value)| format!("    {key}: {value:?}\n")).collect();
            lines.concat()
        };
        let mut text = format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\n", self.name);
        for (key, entries) in [("labels", &self.labels), ("annotations", &annotations)] {
            if !entries.is_empty() {
                text += &format!("  {key}:\n{}", map(entries));
            }
        }
        text
    }
}

impl Topology {
    /// Without anything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node of the cluster. It has a `twilld` (to be started with [`Node::start`]) and a
    /// Node manifest.
    pub fn node(&mut self, name: &str) -> &mut Machine {
        self.machine(name, true)
    }

    /// Adds a machine that forwards.
    pub fn router(&mut self, name: &str) -> &mut Machine {
        self.machine(name, false)
    }

    fn machine(&mut self, name: &str, is_node: bool) -> &mut Machine {
        let index = self.machines.len();
        self.machines.push(Machine { name: name.to_owned(), is_node, ..Machine::default() });
        &mut self.machines[index]
    }

    /// A manifest among the cluster's resources.
    pub fn resource(&mut self, file: &str, text: &str) -> &mut Self {
        self.resources.push((file.to_owned(), text.to_owned()));
        self
    }

    /// Has each daemon use the API server that its `<node>.kubeconfig` in this directory leads to. The
    /// manifests are written all the same, for kubectl.
    pub fn kubernetes(&mut self, kubeconfigs: &Path) -> &mut Self {
        self.kubeconfigs = Some(kubeconfigs.to_owned());
        self
    }

    /// Manifests of `conf/samples/`, as they stand.
    pub fn samples(&mut self, files: &[&str]) -> Result<&mut Self> {
        for file in files {
            let path = programs::source("conf/samples").join(file);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            self.resource(file, &text);
        }
        Ok(self)
    }

    /// Makes the namespaces and links, writes the manifests, and starts the routers.
    pub fn build(self) -> Result<Lab> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // The first lab of a process has the plain names, which is what people read.
        let prefix = if number == 0 { String::new() } else { format!("lab{number}-") };
        let dir = Path::new(LABS).join(number.to_string());
        let resources = dir.join("resources");
        fs::create_dir_all(&resources)
            .with_context(|| format!("cannot make {}", resources.display()))?;
        for (file, text) in &self.resources {
            fs::write(resources.join(file), text)?;
        }
        let mut lab = Lab {
            nodes: BTreeMap::new(),
            birds: BTreeMap::new(),
            routers: BTreeMap::new(),
            fabric: Namespace::create(format!("{prefix}fabric"))?,
            prefix,
            dir,
            pods: 0,
            is_cluster: self.kubeconfigs.is_some(),
        };
        lab.make_segments(&self.machines)?;
        let mut wires = 0;
        let source = match &self.kubeconfigs {
            Some(path) => Source::Kubernetes(path),
            None => Source::Files,
        };
        for machine in self.machines {
            lab.add_machine(machine, (&resources, source), &mut wires)?;
        }
        Ok(lab)
    }
}

/// A running topology. What it made is gone when it is dropped.
#[derive(Debug)]
pub struct Lab {
    // Daemons end before their namespaces: fields are dropped in this order.
    birds: BTreeMap<String, Bird>,
    nodes: BTreeMap<String, Node>,
    routers: BTreeMap<String, Namespace>,
    fabric: Namespace,
    prefix: String,
    dir: PathBuf,
    pods: u32,
    /// Its daemons use an API server.
    is_cluster: bool,
}

impl Lab {
    fn make_segments(&self, machines: &[Machine]) -> Result<()> {
        let mut segments: Vec<_> = machines.iter().flat_map(|m| &m.links).map(|l| &l.0).collect();
        segments.sort();
        segments.dedup();
        let lines = segments.iter().map(|segment| {
            format!("link add {segment} up type bridge mcast_snooping 0 forward_delay 0\n")
        });
        self.fabric.ip_batch(&lines.collect::<String>())
    }

    fn add_machine(
        &mut self,
        machine: Machine,
        (resources, source): (&Path, Source<'_>),
        wires: &mut u32,
    ) -> Result<()> {
        let namespace = Namespace::create(format!("{}{}", self.prefix, machine.name))?;
        let mut inside = String::new();
        for (index, (segment, addresses)) in machine.links.iter().enumerate() {
            *wires += 1;
            let (wire, link) = (format!("wire{wires}"), format!("eth{index}"));
            self.fabric.ip_batch(&format!(
                "link add {wire} type veth peer name {link} netns {}\nlink set {wire} master \
                 {segment} up\n",
                namespace.name()
            ))?;
            for address in addresses {
                let nodad = if address.contains(':') { " nodad" } else { "" };
                inside += &format!("addr add {address} dev {link}{nodad}\n");
            }
            inside += &format!("link set {link} up\n");
        }
        for address in &machine.local {
            inside += &format!("addr add {address} dev lo\n");
        }
        for gateway in &machine.gateways {
            inside += &format!("route add default via {gateway}\n");
        }
        namespace.ip_batch(&inside)?;
        // A new namespace has what the machine has, and 2 is a problem that a node tells of.
        namespace.sysctl("ipv4/conf/all/rp_filter", "0")?;
        if machine.is_node {
            fs::write(resources.join(format!("{}.yaml", machine.name)), machine.manifest())?;
            let dir = self.dir.join(&machine.name);
            let level = machine.log_level.unwrap_or("debug");
            let settings = format!("log: {{level: {level}, format: text}}\n{}", machine.settings);
            let node = Node::new(&machine.name, namespace, &dir, (resources, source), &settings)?;
            self.nodes.insert(machine.name, node);
            return Ok(());
        }
        namespace.sysctl("ipv4/ip_forward", "1")?;
        namespace.sysctl("ipv6/conf/all/forwarding", "1")?;
        if let Some(config) = machine.bird {
            let bird = Bird::start(&namespace, config, &self.dir.join(&machine.name))?;
            self.birds.insert(machine.name.clone(), bird);
        }
        self.routers.insert(machine.name, namespace);
        Ok(())
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("the lab has no node {name}"))
    }

    /// The same, to start or stop its daemon.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        self.nodes.get_mut(name).with_context(|| format!("the lab has no node {name}"))
    }

    /// All nodes in the order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The BIRD of a router.
    pub fn bird(&self, name: &str) -> Result<&Bird> {
        self.birds.get(name).with_context(|| format!("the lab has no BIRD on {name}"))
    }

    /// The same, to reconfigure it.
    pub fn bird_mut(&mut self, name: &str) -> Result<&mut Bird> {
        self.birds.get_mut(name).with_context(|| format!("the lab has no BIRD on {name}"))
    }

    /// Stops the BIRD of a router at once, as if it had lost its power.
    /// Answers how it was configured.
    pub fn stop_bird(&mut self, name: &str) -> Result<BirdConfig> {
        let bird = self.birds.remove(name);
        let bird = bird.with_context(|| format!("the lab has no BIRD on {name}"))?;
        Ok(bird.config().clone())
    }

    /// Starts BIRD on a router as after a crash: what it forwarded by is still in the kernel.
    pub fn return_bird(&mut self, name: &str, config: BirdConfig) -> Result<()> {
        ensure!(!self.birds.contains_key(name), "BIRD runs already on {name}");
        let bird = Bird::start_with(self.router(name)?, config, &self.dir.join(name), &["-R"])?;
        self.birds.insert(name.to_owned(), bird);
        Ok(())
    }

    /// The namespace of a router.
    pub fn router(&self, name: &str) -> Result<&Namespace> {
        self.routers.get(name).with_context(|| format!("the lab has no router {name}"))
    }

    /// The namespace of a node or a router.
    pub fn namespace(&self, machine: &str) -> Result<&Namespace> {
        match self.nodes.get(machine) {
            Some(node) => Ok(node.namespace()),
            None => self.router(machine),
        }
    }

    /// The namespace with the segments (each a bridge by its name).
    pub fn fabric(&self) -> &Namespace {
        &self.fabric
    }

    /// Its files: `resources/` (the cluster's manifests), and a directory per machine.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends it, and removes its files too (a lab that is dropped leaves its logs).
    pub fn remove(self) -> Result<()> {
        let dir = self.dir.clone();
        drop(self);
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))
    }

    /// A file of the cluster's resources.
    pub fn resource(&self, file: &str) -> PathBuf {
        self.dir.join("resources").join(file)
    }

    /// Starts the daemons of all nodes, and waits until they serve.
    pub fn start_all(&mut self) -> Result<()> {
        for node in self.nodes.values_mut() {
            node.launch()?;
        }
        for node in self.nodes.values_mut() {
            node.wait_ready()?;
        }
        Ok(())
    }

    /// Writes a manifest among the cluster's resources, as an editor does: another file, renamed.
    pub fn write_resource(&self, file: &str, text: &str) -> Result<()> {
        let path = self.resource(file);
        let new = path.with_extension("new");
        fs::write(&new, text).with_context(|| format!("cannot write {}", new.display()))?;
        fs::rename(&new, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes a manifest.
    pub fn remove_resource(&self, file: &str) -> Result<()> {
        let path = self.resource(file);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// A pod's namespace, not attached to any network yet.
    pub fn bare_pod(&mut self, node: &str, name: &str) -> Result<Pod> {
        ensure!(self.nodes.contains_key(node), "the lab has no node {node}");
        self.pods += 1;
        let namespace = Namespace::create(format!("{}cni-{name}", self.prefix))?;
        // As long and as random-looking as a runtime's, but told apart by people.
        let id = format!("{:08x}{:056x}", self.pods, name.len());
        let netns = namespace.path().display().to_string();
        let mut attachment = Attachment::pod("prod", name, &id, &netns);
        if self.is_cluster {
            // As by a runtime without a kubelet: the API server need not have such a pod.
            attachment.args.retain(|(key, _)| key != "K8S_POD_UID");
        }
        Ok(Pod {
            name: name.to_owned(),
            node: node.to_owned(),
            attachment,
            addresses: Vec::new(),
            namespace,
        })
    }

    /// A pod: a namespace, and ADD on it.
    pub fn add_pod(&mut self, node: &str, name: &str) -> Result<Pod> {
        let mut pod = self.bare_pod(node, name)?;
        self.attach(&mut pod)?;
        Ok(pod)
    }

    /// ADD on a pod's namespace.
    pub fn attach(&self, pod: &mut Pod) -> Result<serde_json::Value> {
        let node = self.node(&pod.node)?;
        let result = node
            .runtime()
            .add(node.namespace(), &pod.attachment)
            .with_context(|| format!("ADD of pod {} on {}", pod.name, pod.node))?;
        pod.addresses = cni::addresses(&result)?;
        Ok(result)
    }

    /// DEL, then the namespace goes.
    pub fn delete_pod(&self, pod: Pod) -> Result<()> {
        self.detach(&pod)
    }

    /// DEL; the namespace stays.
    pub fn detach(&self, pod: &Pod) -> Result<()> {
        let node = self.node(&pod.node)?;
        node.runtime()
            .del(node.namespace(), &pod.attachment)
            .with_context(|| format!("DEL of pod {} on {}", pod.name, pod.node))
    }
}

/// A pod: a namespace on a node, and what its network gave it.
#[derive(Debug)]
pub struct Pod {
    name: String,
    node: String,
    attachment: Attachment,
    addresses: Vec<IpAddr>,
    namespace: Namespace,
}

impl Pod {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its node's name.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Its addresses, IPv4 first; none before ADD.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Its first address.
    pub fn address(&self) -> Result<IpAddr> {
        let first = self.addresses.first().copied();
        first.with_context(|| format!("pod {} has no address", self.name))
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// How it is called by the runtime.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The same, to have it called in another way.
    pub fn attachment_mut(&mut self) -> &mut Attachment {
        &mut self.attachment
    }
}
