//! etcd and kube-apiserver.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    kubectl::{Files, Kubectl},
    pki::{Pki, kubeconfig},
};
use crate::{netns::Namespace, process::Daemon, programs, wait::wait_for};

/// How long a start may take on a machine that is busy.
const START: Duration = Duration::from_secs(90);

const ETCD: &str = "http://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";

/// The API server's address and port in its namespace.
const ADDRESS: &str = "127.0.0.1";
const PORT: u16 = 6443;

/// One of the names in the server's certificate, for those who reach it by another address.
const SERVER_NAME: &str = "localhost";

/// The account of node daemons, in `conf/rbac/twill-node.yaml`.
const NODE_ACCOUNT: (&str, &str) = ("twill-system", "twill-node");

/// The first address is the API server's own service.
const SERVICE_CIDR: &str = "10.96.0.0/16";
const OWN_SERVICE: &str = "10.96.0.1";

/// An API server with RBAC and nothing in it, and its store.
pub struct ApiServer {
    /// The namespace that both are in.
    namespace: Namespace,
    directory: PathBuf,
    admin: Files,
    pki: Pki,
    /// The address that the service `kubernetes` leads to, where it leads to any.
    address: Option<String>,
    // In this order they are dropped.
    server: Option<Daemon>,
    etcd: Daemon,
}

impl ApiServer {
    /// Starts both in a namespace of this name, and waits until the server is ready. Data and logs
    /// go below `directory`, which should be on a tmpfs.
    pub fn start(name: &str, directory: &Path) -> Result<Self> {
        Self::start_at(name, directory, None)
    }

    /// The same for a cluster whose nodes reach the server at this address, directly and as the service
    /// `kubernetes`.
    pub(super) fn start_at(name: &str, directory: &Path, address: Option<&str>) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let namespace = Namespace::create(name)?;
        let pki = Pki::create(directory.join("pki"))?;
        let admin = directory.join("admin.kubeconfig");
        let user = pki.client("admin", &["system:masters"])?;
        kubeconfig(&admin, &format!("https://{ADDRESS}:{PORT}"), &pki.authority(), &user)?;
        let admin = Files::new(admin, directory.join("cache"))?;

        let log = directory.join("etcd.log");
        let etcd = Daemon::start("etcd", &namespace, &mut etcd(&directory.join("etcd")), &log)
            .context("etcd does not start. Install it by\n    hack/install-tools kubernetes")?;
        let directory = directory.to_owned();
        let address = address.map(str::to_owned);
        let mut started = Self { namespace, directory, admin, pki, address, server: None, etcd };
        started.start_server()?;
        Ok(started)
    }

    /// Starts the server, at first or again, and waits until it is ready.
    pub fn start_server(&mut self) -> Result<()> {
        let log = self.directory.join("kube-apiserver.log");
        let mut command = kube_apiserver(&self.pki, &self.directory, self.address.as_deref())?;
        self.server = Some(Daemon::start("kube-apiserver", &self.namespace, &mut command, &log)?);
        self.wait_ready()
    }

    /// Kills the server; etcd stays.
    pub fn kill_server(&mut self) -> Result<()> {
        self.server.take().context("no API server runs")?.kill9()
    }

    /// Gives the server's namespace a link to a segment, with this address (`192.168.2.250/24`).
    pub fn join(&self, fabric: &Namespace, segment: &str, address: &str) -> Result<()> {
        let own = self.namespace.name();
        fabric.ip_batch(&format!(
            "link add wire-api type veth peer name eth0 netns {own}\n\
             link set wire-api master {segment} up\n"
        ))?;
        self.namespace.ip_batch(&format!("addr add {address} dev eth0\nlink set eth0 up\n"))
    }

    /// Takes the link away, or puts it back: packets are lost without a word.
    pub fn set_reachable(&self, reachable: bool) -> Result<()> {
        let state = if reachable { "up" } else { "down" };
        self.namespace.ip_batch(&format!("link set eth0 {state}\n"))
    }

    /// Where [`ApiServer::write_node_kubeconfig`] writes, by the name of the node.
    pub fn node_kubeconfigs(&self) -> PathBuf {
        self.directory.join("nodes")
    }

    /// Writes a kubeconfig of the node daemons' account, bound to a Node, which reaches the server at this
    /// address.
    pub fn write_node_kubeconfig(&self, node: &str, address: &str) -> Result<PathBuf> {
        let bound = ["--bound-object-kind=Node", "--bound-object-name", node];
        self.write_token(node, NODE_ACCOUNT.1, &bound, address)
    }

    /// Writes a kubeconfig of another account of the daemons' namespace, for programs in the server's own
    /// network namespace.
    pub fn write_account_kubeconfig(&self, account: &str) -> Result<PathBuf> {
        self.write_token(account, account, &[], ADDRESS)
    }

    /// Writes a kubeconfig with a token of an account of the daemons' namespace.
    fn write_token(
        &self,
        name: &str,
        account: &str,
        bound: &[&str],
        address: &str,
    ) -> Result<PathBuf> {
        let namespace = NODE_ACCOUNT.0;
        let token = ["create", "token", account, "-n", namespace];
        let token = self.kubectl().run(&[&token[..], bound].concat())?;
        let directory = self.node_kubeconfigs();
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let path = directory.join(format!("{name}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\n\
             clusters: [{{name: test, cluster: {{server: \"https://{address}:{PORT}\", \
             certificate-authority: {}, tls-server-name: {SERVER_NAME}}}}}]\n\
             users: [{{name: node, user: {{token: \"{}\"}}}}]\n\
             contexts: [{{name: test, context: {{cluster: test, user: node, namespace: {namespace}}}}}]\n\
             current-context: test\n",
            self.pki.authority().certificate.display(),
            token.trim(),
        );
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// What the node daemons have asked of the server so far: `VERB RESOURCE` for each request.
    pub fn node_requests(&self) -> Result<Vec<String>> {
        let request = |event: &Value| {
            let resource = &event["objectRef"]["resource"];
            format!("{} {}", text(&event["verb"]), text(resource))
        };
        Ok(self.audited()?.iter().map(request).collect())
    }

    /// What the server has refused the node daemons so far: `VERB RESOURCE NAME` or `VERB RESOURCE/SUBRESOURCE NAME`
    /// for each request.
    pub fn node_refusals(&self) -> Result<Vec<String>> {
        let refusal = |event: &Value| {
            let object = &event["objectRef"];
            let mut resource = text(&object["resource"]).to_owned();
            if let Some(subresource) = object["subresource"].as_str() {
                resource.push('/');
                resource.push_str(subresource);
            }
            format!("{} {resource} {}", text(&event["verb"]), text(&object["name"]))
        };
        let events = self.audited()?;
        let refused = events.iter().filter(|event| event["responseStatus"]["code"] == 403);
        Ok(refused.map(refusal).collect())
    }

    /// What the server has noted about the node daemons' requests.
    fn audited(&self) -> Result<Vec<Value>> {
        let path = self.directory.join("audit.log");
        let log =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // The last one may be half written.
        let lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        lines.map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    /// Keys and certificates of the cluster.
    pub(super) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// Writes a kubeconfig of one user, who reaches the server at an address.
    pub(super) fn write_kubeconfig(
        &self,
        user: &str,
        groups: &[&str],
        address: &str,
    ) -> Result<PathBuf> {
        let identity = self.pki.client(user, groups)?;
        let path = self.directory.join(format!("{}.kubeconfig", user.replace(':', "-")));
        let server = format!("https://{address}:{PORT}");
        kubeconfig(&path, &server, &self.pki.authority(), &identity)?;
        Ok(path)
    }

    /// kubectl as a user who may do everything.
    pub fn kubectl(&self) -> Kubectl<'_> {
        Kubectl::new(&self.admin, &self.namespace)
    }

    /// The kubeconfig of the user who may do everything, for use in [`ApiServer::namespace`].
    pub fn kubeconfig(&self) -> &Path {
        self.admin.kubeconfig()
    }

    /// The namespace in which the server is at 127.0.0.1.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where its data are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn wait_ready(&mut self) -> Result<()> {
        wait_for("the API server to be ready", START, || {
            // The server waits for etcd by itself, and ends when that takes too long.
            let server = self.server.as_mut().context("no API server runs")?;
            let alive = self.etcd.alive().and_then(|()| server.alive());
            match alive {
                Ok(()) => self.kubectl().run(&["get", "--raw", "/readyz"]).map(Ok),
                Err(error) => Ok(Err(error)),
            }
        })??;
        Ok(())
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn etcd(data: &Path) -> Command {
    let mut command = Command::new("etcd");
    command
        .args(["--name", "test", "--log-level", "warn", "--unsafe-no-fsync"])
        .args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD])
        .args(["--listen-peer-urls", ETCD_PEERS, "--initial-advertise-peer-urls", ETCD_PEERS])
        .args(["--initial-cluster", &format!("test={ETCD_PEERS}")])
        .arg("--data-dir")
        .arg(data);
    command
}

fn kube_apiserver(pki: &Pki, directory: &Path, address: Option<&str>) -> Result<Command> {
    let policy = directory.join("audit.yaml");
    let (namespace, account) = NODE_ACCOUNT;
    // A watch may stand there twice: when it begins and when it is over.
    let text = format!(
        "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\n\
         rules:\n\
         - {{level: Metadata, users: [\"system:serviceaccount:{namespace}:{account}\"]}}\n\
         - {{level: None}}\n"
    );
    fs::write(&policy, text).with_context(|| format!("cannot write {}", policy.display()))?;
    let mut places = format!(
        "DNS:localhost,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:{ADDRESS},IP:{OWN_SERVICE}"
    );
    if let Some(address) = address {
        places += &format!(",IP:{address}");
    }
    let server = pki.server("kube-apiserver", &places)?;
    let client = pki.client("kube-apiserver-kubelet-client", &["system:masters"])?;
    let mut command = Command::new(programs::go_tool("kubernetes", "kube-apiserver")?);
    let mut file = |flag: &str, path: &Path| {
        command.arg(format!("--{flag}={}", path.display()));
    };
    file("cert-dir", &directory.join("run"));
    file("audit-policy-file", &policy);
    file("audit-log-path", &directory.join("audit.log"));
    file("client-ca-file", &pki.authority().certificate);
    file("tls-cert-file", &server.certificate);
    file("tls-private-key-file", &server.key);
    file("kubelet-client-certificate", &client.certificate);
    file("kubelet-client-key", &client.key);
    // A private key has the public one in it.
    file("service-account-key-file", &pki.token_key());
    file("service-account-signing-key-file", &pki.token_key());
    command
        .arg(format!("--etcd-servers={ETCD}"))
        .arg("--bind-address=0.0.0.0")
        .arg(format!("--advertise-address={}", address.unwrap_or(ADDRESS)))
        .arg(format!("--secure-port={PORT}"))
        .arg(format!("--service-cluster-ip-range={SERVICE_CIDR}"))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(match address {
            Some(_) => "--endpoint-reconciler-type=lease",
            None => "--endpoint-reconciler-type=none",
        })
        .args(["--authorization-mode=Node,RBAC", "--kubelet-preferred-address-types=InternalIP"])
        .args(["--profiling=false", "--allow-privileged=true"]);
    Ok(command)
}
