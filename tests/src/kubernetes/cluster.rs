//! A whole cluster: the control plane, nodes, and the router that they sit behind.
//!
//! Each node has a link to the router with a network of each family of its own, 192.168.N.0/24 and
//! fd00:192:168:N::/64. The router is host 1 in each of them, the node host 10. There the control plane is, too:
//! 192.168.0.10.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow};

use super::{
    ApiServer, Kubectl,
    node::{Node, PAUSE, Site},
    runtime::Runtime,
};
use crate::{
    bird::{Bird, BirdConfig},
    image,
    netns::Namespace,
    process::Daemon,
    programs,
    sandbox::LABS,
    wait::wait_for,
};

/// The image of pods that only live, or call busybox.
pub const BUSYBOX: &str = "localhost/busybox:test";

/// How long nodes may take to be known.
const START: Duration = Duration::from_secs(60);

const CONTROL_PLANE: &str = "192.168.0.10";

/// The router: a namespace with BIRD.
pub struct Tor {
    bird: Bird,
    namespace: Namespace,
}

impl Tor {
    /// Its address in all sessions.
    pub const ADDRESS: &str = "192.168.0.1";

    /// An address of IPv6 that it has.
    pub const ADDRESS_V6: &str = "fd00:192:168::1";

    fn start(directory: &Path, config: BirdConfig) -> Result<Self> {
        let namespace = Namespace::create("tor")?;
        namespace.sysctl("ipv4/ip_forward", "1")?;
        namespace.sysctl("ipv6/conf/all/forwarding", "1")?;
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        let bird = Bird::start(&namespace, config, &directory.join("tor"))?;
        Ok(Self { bird, namespace })
    }

    /// Its BIRD.
    pub fn bird(&self) -> &Bird {
        &self.bird
    }

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Links a namespace to the networks `number`, as host 10 with the router for everything else.
    fn plug(&self, namespace: &Namespace, number: usize) -> Result<()> {
        // By this beginning BIRD knows links whose networks are its own.
        let (own, link) = (namespace.name(), format!("eth-{}", namespace.name()));
        self.namespace.ip_batch(&format!(
            "link add {link} type veth peer name eth0 netns {own}\n\
             addr add 192.168.{number}.1/24 dev {link}\n\
             addr add fd00:192:168:{number:x}::1/64 dev {link} nodad\nlink set {link} up\n"
        ))?;
        let [v4, v6] = addresses(number)?;
        namespace.ip_batch(&format!(
            "addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\nlink set eth0 up\n\
             route add default via 192.168.{number}.1\n\
             route add default via fd00:192:168:{number:x}::1\n"
        ))
    }
}

/// Those of host 10 in the networks `number`.
fn addresses(number: usize) -> Result<[IpAddr; 2]> {
    let number = u8::try_from(number).context("there are no more networks")?;
    let v6 = Ipv6Addr::new(0xfd00, 0x192, 0x168, number.into(), 0, 0, 0, 0x10);
    Ok([Ipv4Addr::new(192, 168, number, 10).into(), v6.into()])
}

/// A cluster that runs until this is dropped.
pub struct Cluster {
    // In this order they are dropped.
    nodes: Vec<Node>,
    managers: Vec<Daemon>,
    api: ApiServer,
    tor: Tor,
    directory: PathBuf,
    images: Vec<PathBuf>,
}

impl Cluster {
    /// Starts a cluster without nodes, behind a router of this configuration.
    pub fn start(name: &str, tor: BirdConfig) -> Result<Self> {
        let directory = Path::new(LABS).join(name);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let tor = Tor::start(&directory, tor)?;
        let api = directory.join("control");
        let api = ApiServer::start_at("control", &api, Some(CONTROL_PLANE))?;
        tor.plug(api.namespace(), 0)?;
        let mut images = Vec::new();
        for name in [PAUSE, BUSYBOX] {
            let place = directory.join("images").join(name.replace(['/', ':'], "-"));
            images.push(image::archive(&place, name)?);
        }
        let managers = vec![controller_manager(&api, &directory)?, scheduler(&api, &directory)?];
        Ok(Self { nodes: Vec::new(), managers, api, tor, directory, images })
    }

    /// Adds nodes of these names and releases of containerd, and waits until the API server knows them. They
    /// start side by side. `images` are those that they get beside busybox.
    pub fn add_nodes(&mut self, nodes: &[(&str, Runtime)], images: &[PathBuf]) -> Result<()> {
        let images = [&self.images, images].concat();
        let proxy = self.api.write_kubeconfig("system:kube-proxy", &[], CONTROL_PLANE)?;
        let mut planned = Vec::new();
        for (name, runtime) in nodes {
            let number = self.nodes.len() + planned.len() + 1;
            let user = format!("system:node:{name}");
            let site = Site {
                kubeconfig: self.api.write_kubeconfig(&user, &["system:nodes"], CONTROL_PLANE)?,
                proxy_kubeconfig: proxy.clone(),
                authority: self.api.pki().authority().certificate,
                images: &images,
            };
            let namespace = Namespace::create(*name)?;
            self.tor.plug(&namespace, number)?;
            // As a machine comes that nobody has made a router. What a namespace begins with is the
            // machine's own setting.
            namespace.sysctl("ipv4/ip_forward", "0")?;
            namespace.sysctl("ipv6/conf/all/forwarding", "0")?;
            let directory = self.directory.join(name);
            planned.push(((*name, *runtime), addresses(number)?, namespace, directory, site));
        }
        let started: Vec<Result<Node>> = thread::scope(|scope| {
            let mut threads = Vec::new();
            for (node, addresses, namespace, directory, site) in planned {
                let start = move || Node::start(node, addresses, namespace, directory, &site);
                threads.push(scope.spawn(start));
            }
            let join = |thread: thread::ScopedJoinHandle<'_, Result<Node>>| {
                thread.join().map_err(|_| anyhow!("the thread that starts a node panicked"))?
            };
            threads.into_iter().map(join).collect()
        });
        for node in started {
            self.nodes.push(node?);
        }
        for (name, _) in nodes {
            wait_for(&format!("node {name}"), START, || match self.alive() {
                Ok(()) => self.kubectl().run(&["get", "node", name]).map(Ok),
                Err(error) => Ok(Err(error)),
            })??;
        }
        Ok(())
    }

    /// kubectl as a user who may do everything.
    pub fn kubectl(&self) -> Kubectl<'_> {
        self.api.kubectl()
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The API server.
    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// The same, to be stopped and started.
    pub fn api_mut(&mut self) -> &mut ApiServer {
        &mut self.api
    }

    /// The router.
    pub fn tor(&self) -> &Tor {
        &self.tor
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.with_context(|| format!("the cluster has no node {name}"))
    }

    /// The same, to be disturbed.
    pub fn node_mut(&mut self, name: &str) -> Result<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.name() == name);
        found.with_context(|| format!("the cluster has no node {name}"))
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Cuts a node's power: all that ran on it is gone, and what it told the API server stays.
    pub fn cut_power(&mut self, name: &str) -> Result<()> {
        let at = self.nodes.iter().position(|node| node.name() == name);
        let at = at.with_context(|| format!("the cluster has no node {name}"))?;
        drop(self.nodes.remove(at));
        Ok(())
    }

    /// Fails if a part of it has ended that should run.
    pub fn alive(&mut self) -> Result<()> {
        self.managers.iter_mut().try_for_each(Daemon::alive)?;
        self.nodes.iter_mut().try_for_each(Node::alive)
    }
}

fn controller_manager(api: &ApiServer, directory: &Path) -> Result<Daemon> {
    let kubeconfig = api.write_kubeconfig("system:kube-controller-manager", &[], "127.0.0.1")?;
    let authority = api.pki().authority();
    let mut command = Command::new(programs::go_tool("kubernetes", "kube-controller-manager")?);
    let mut file = |flag: &str, path: &Path| {
        command.arg(format!("--{flag}={}", path.display()));
    };
    file("kubeconfig", &kubeconfig);
    file("service-account-private-key-file", &api.pki().token_key());
    file("root-ca-file", &authority.certificate);
    file("cluster-signing-cert-file", &authority.certificate);
    file("cluster-signing-key-file", &authority.key);
    file("cert-dir", &directory.join("controller-manager"));
    command
        .args(["--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false"])
        .args(["--use-service-account-credentials=true", "--allocate-node-cidrs=false"]);
    let log = directory.join("kube-controller-manager.log");
    Daemon::start("kube-controller-manager", api.namespace(), &mut command, &log)
}

fn scheduler(api: &ApiServer, directory: &Path) -> Result<Daemon> {
    let kubeconfig = api.write_kubeconfig("system:kube-scheduler", &[], "127.0.0.1")?;
    let mut command = Command::new(programs::go_tool("kubernetes", "kube-scheduler")?);
    command.arg("--kubeconfig").arg(kubeconfig);
    command.args(["--leader-elect=false", "--bind-address=127.0.0.1", "--profiling=false"]);
    command.arg("--cert-dir").arg(directory.join("scheduler"));
    let log = directory.join("kube-scheduler.log");
    Daemon::start("kube-scheduler", api.namespace(), &mut command, &log)
}
