//! etcd and kube-apiserver.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};

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

/// The first address is the API server's own service.
const SERVICE_CIDR: &str = "10.96.0.0/16";
const OWN_SERVICE: &str = "10.96.0.1";

/// An API server with RBAC and nothing in it, and its store.
pub struct ApiServer {
    /// The namespace that both are in.
    namespace: Namespace,
    directory: PathBuf,
    admin: Files,
    // In this order they are dropped.
    server: Daemon,
    etcd: Daemon,
}

impl ApiServer {
    /// Starts both in a namespace of this name, and waits until the server is ready. Data and logs
    /// go below `directory`, which should be on a tmpfs.
    pub fn start(name: &str, directory: &Path) -> Result<Self> {
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
        let log = directory.join("kube-apiserver.log");
        let mut command = kube_apiserver(&pki, &directory.join("run"))?;
        let server = Daemon::start("kube-apiserver", &namespace, &mut command, &log)?;
        let directory = directory.to_owned();
        let mut started = Self { namespace, directory, admin, server, etcd };
        started.wait_ready()?;
        Ok(started)
    }

    /// kubectl as a user who may do everything.
    pub fn kubectl(&self) -> Kubectl<'_> {
        Kubectl::new(&self.admin, &self.namespace)
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
            let alive = self.etcd.alive().and_then(|()| self.server.alive());
            match alive {
                Ok(()) => self.kubectl().run(&["get", "--raw", "/readyz"]).map(Ok),
                Err(error) => Ok(Err(error)),
            }
        })??;
        Ok(())
    }
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

fn kube_apiserver(pki: &Pki, run: &Path) -> Result<Command> {
    let places = format!(
        "DNS:localhost,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:{ADDRESS},IP:{OWN_SERVICE}"
    );
    let server = pki.server("kube-apiserver", &places)?;
    let mut command = Command::new(programs::go_tool("kubernetes", "kube-apiserver")?);
    let mut file = |flag: &str, path: &Path| {
        command.arg(format!("--{flag}={}", path.display()));
    };
    file("cert-dir", run);
    file("client-ca-file", &pki.authority().certificate);
    file("tls-cert-file", &server.certificate);
    file("tls-private-key-file", &server.key);
    // A private key has the public one in it.
    file("service-account-key-file", &pki.token_key());
    file("service-account-signing-key-file", &pki.token_key());
    command
        .arg(format!("--etcd-servers={ETCD}"))
        .arg(format!("--bind-address={ADDRESS}"))
        .arg(format!("--advertise-address={ADDRESS}"))
        .arg(format!("--secure-port={PORT}"))
        .arg(format!("--service-cluster-ip-range={SERVICE_CIDR}"))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .args(["--authorization-mode=Node,RBAC", "--endpoint-reconciler-type=none"])
        .args(["--profiling=false", "--allow-privileged=true"]);
    Ok(command)
}
