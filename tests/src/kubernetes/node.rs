//! A node of a cluster: containerd, kubelet and kube-proxy on a machine of its own.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{
    machine::{Machine, Service},
    runtime::Runtime,
};
use crate::{netns::Namespace, programs, wait::wait_for};

const START: Duration = Duration::from_secs(60);

const SOCKET: &str = "/run/containerd/containerd.sock";

/// The image of sandboxes, as the [`Runtime`]'s configuration names it.
pub(super) const PAUSE: &str = "localhost/pause:test";

/// What a node has to know of its cluster.
#[derive(Debug)]
pub(super) struct Site<'a> {
    /// Of the node's own user.
    pub(super) kubeconfig: PathBuf,
    /// Of kube-proxy.
    pub(super) proxy_kubeconfig: PathBuf,
    /// The certificate authority of those who may call the kubelet.
    pub(super) authority: PathBuf,
    /// Archives of images.
    pub(super) images: &'a [PathBuf],
}

/// A node that runs until this is dropped, which is as if its power were cut.
#[derive(Debug)]
pub struct Node {
    name: String,
    addresses: [IpAddr; 2],
    runtime: Runtime,
    // Its programs end with the machine.
    containerd: Option<Service>,
    kubelet: Option<Service>,
    proxy: Service,
    machine: Machine,
    directory: PathBuf,
}

impl Node {
    pub(super) fn start(
        (name, runtime): (&str, Runtime),
        addresses: [IpAddr; 2],
        namespace: Namespace,
        directory: PathBuf,
        site: &Site<'_>,
    ) -> Result<Self> {
        let machine = Machine::start(name, namespace, &directory)?;
        // A kubelet that finds no network configuration waits for one.
        let directories = ["/etc/cni/net.d", "/opt/cni/bin"];
        machine.run("rm", &[&["-rf"][..], &directories].concat())?;
        machine.run("mkdir", &[&["-p"][..], &directories].concat())?;
        // The one plugin that containerd wants for itself; packages of kubelets bring it.
        let loopback = Path::new(programs::REFERENCE_PLUGINS).join("loopback");
        machine.run("cp", &[&loopback.to_string_lossy(), "/opt/cni/bin/loopback"])?;
        fs::write(directory.join("containerd.toml"), runtime.configuration())?;
        let settings = KUBELET.replace("AUTHORITY", &site.authority.to_string_lossy());
        fs::write(directory.join("kubelet.yaml"), settings)?;
        let settings = PROXY.replace("KUBECONFIG", &site.proxy_kubeconfig.to_string_lossy());
        fs::write(directory.join("kube-proxy.yaml"), settings)?;
        let mut proxy = machine.command(programs::go_tool("kubernetes", "kube-proxy")?)?;
        proxy.arg("--config").arg(directory.join("kube-proxy.yaml"));
        proxy.args(["--hostname-override", name]);
        let proxy = machine.service("kube-proxy", &mut proxy)?;
        let mut node = Self {
            name: name.to_owned(),
            addresses,
            runtime,
            containerd: None,
            kubelet: None,
            proxy,
            machine,
            directory,
        };
        node.start_containerd()?;
        site.images.iter().try_for_each(|image| node.import(image))?;
        fs::copy(&site.kubeconfig, node.directory.join("kubeconfig"))?;
        node.start_kubelet()?;
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the link to the router, of IPv4.
    pub fn address(&self) -> IpAddr {
        self.addresses[0]
    }

    /// The same of IPv4 and of IPv6.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    /// Its containerd's release.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// What its containerd wrote so far.
    pub fn containerd_log(&self) -> String {
        self.machine.log("containerd")
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        self.machine.namespace()
    }

    /// Runs a program on it to its end; its standard output.
    pub fn run(&self, program: impl AsRef<Path>, arguments: &[&str]) -> Result<String> {
        self.machine.run(program, arguments)
    }

    /// `ctr` for the kubelet's containers.
    pub fn ctr(&self, arguments: &[&str]) -> Result<String> {
        let first = ["--address", SOCKET, "--namespace", "k8s.io"];
        self.machine.run(self.runtime.ctr()?, &[&first[..], arguments].concat())
    }

    /// The sandboxes of a pod, those that have ended included.
    pub fn sandboxes(&self, pod: &str) -> Result<Vec<String>> {
        let filter = format!(
            "labels.\"io.kubernetes.pod.name\"=={pod},labels.\"io.cri-containerd.kind\"==sandbox"
        );
        let found = self.ctr(&["containers", "list", "--quiet", &filter])?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    /// Those of them whose process runs.
    pub fn running_sandboxes(&self, pod: &str) -> Result<Vec<String>> {
        let tasks = self.ctr(&["tasks", "list"])?;
        let runs = |id: &String| {
            tasks.lines().any(|line| line.starts_with(id.as_str()) && line.contains("RUNNING"))
        };
        let mut sandboxes = self.sandboxes(pod)?;
        sandboxes.retain(runs);
        Ok(sandboxes)
    }

    /// The path of a pod's network namespace, as this process sees it.
    pub fn pod_namespace(&self, pod: &str) -> Result<PathBuf> {
        let sandboxes = self.running_sandboxes(pod)?;
        let sandbox = sandboxes.first().with_context(|| format!("{pod} has no sandbox"))?;
        let info: Value = serde_json::from_str(&self.ctr(&["containers", "info", sandbox])?)?;
        let namespaces = info["Spec"]["linux"]["namespaces"].as_array().into_iter().flatten();
        let network = namespaces.into_iter().find(|namespace| namespace["type"] == "network");
        let path = network.and_then(|namespace| namespace["path"].as_str());
        let path = path.with_context(|| format!("{pod} has no network namespace"))?;
        Ok(self.machine.outside(Path::new(path)))
    }

    /// Gives containerd the images of an archive.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_string_lossy();
        self.ctr(&[self.runtime.import(), &[&archive]].concat()).map(drop)
    }

    /// What a server on its 127.0.0.1 answers to a GET.
    pub fn http(&self, port: u16, path: &str) -> Result<String> {
        let get = || -> Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.namespace().enter(get)?;
        let answer = answer.with_context(|| format!("no HTTP on port {port} of {}", self.name))?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
        ensure!(head.contains(" 200 "), "{path} on port {port} of {}: {answer}", self.name);
        Ok(body.to_owned())
    }

    /// Starts containerd, and waits until it answers.
    pub fn start_containerd(&mut self) -> Result<()> {
        let program = self.runtime.daemon()?;
        let mut command = self.machine.command(&program)?;
        // The shim is found beside it.
        let own = program.parent().context("no directory")?;
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", own.display()));
        command.arg("--config").arg(self.directory.join("containerd.toml"));
        let mut service = self.machine.service("containerd", &mut command)?;
        wait_for(&format!("containerd of {}", self.name), START, || match service.alive() {
            Ok(()) => self.ctr(&["version"]).map(Ok),
            Err(error) => Ok(Err(error)),
        })??;
        self.containerd = Some(service);
        Ok(())
    }

    /// Starts the kubelet.
    pub fn start_kubelet(&mut self) -> Result<()> {
        let mut command = self.machine.command(programs::go_tool("kubernetes", "kubelet")?)?;
        command.arg("--config").arg(self.directory.join("kubelet.yaml"));
        command.arg("--kubeconfig").arg(self.directory.join("kubeconfig"));
        command.args(["--hostname-override", &self.name, "--v=2"]);
        // By two it is known that the node, and so its pods, may have one of each family.
        let [v4, v6] = self.addresses;
        command.args(["--node-ip", &format!("{v4},{v6}")]);
        self.kubelet = Some(self.machine.service("kubelet", &mut command)?);
        Ok(())
    }

    /// Kills the kubelet.
    pub fn kill_kubelet(&mut self) -> Result<()> {
        self.kubelet.take().context("no kubelet runs")?.kill(Signal::SIGKILL)
    }

    /// Kills containerd; containers go on.
    pub fn kill_containerd(&mut self) -> Result<()> {
        self.containerd.take().context("no containerd runs")?.kill(Signal::SIGKILL)
    }

    /// Fails if something has ended that should run.
    pub fn alive(&mut self) -> Result<()> {
        self.machine.alive()?;
        self.proxy.alive()?;
        let services = [&mut self.containerd, &mut self.kubelet];
        services.into_iter().flatten().try_for_each(Service::alive)
    }
}

const KUBELET: &str = r#"apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: AUTHORITY}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
resolvConf: ""
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: "1%", imagefs.available: "1%"}
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
maxPods: 250
registryPullQPS: 0
"#;

/// No limit of its own on tracked connections: that one would be the whole machine's. What does not come from a pod
/// comes from outside, so that answers of services to the router's side come back this way.
const PROXY: &str = r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: KUBECONFIG}
mode: nftables
conntrack: {maxPerCore: 0}
detectLocalMode: InterfaceNamePrefix
detectLocal: {interfaceNamePrefix: twl}
metricsBindAddress: 127.0.0.1:10249
"#;
