//! The programs inside: what makes the Nodes and their tokens, what a kubelet does, and the nodes themselves.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Node, ServiceAccount},
};
use kube::{
    Api, Client, Config,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use twill_node_daemon::fleet::Member;
use twill_tests::random::Random;

use super::site::{ACCOUNT, NAMESPACE, SETTLED, TOKEN};

/// Requests at a time of those who prepare.
const AT_ONCE: usize = 16;

/// Images that a Node tells of: a kubelet names 50 at the most.
const IMAGES: u32 = 50;

/// What a process of this program is.
#[derive(Debug, Clone, Subcommand)]
pub(super) enum Part {
    /// Makes Nodes as a kubelet does, and a kubeconfig for each.
    #[command(hide = true)]
    Prepare { kubeconfig: PathBuf, nodes: u32, template: PathBuf, directory: PathBuf },
    /// Writes what some kubelets write every five minutes.
    #[command(hide = true)]
    Heartbeat { kubeconfig: PathBuf, nodes: u32, count: u32, seed: u64 },
    /// The nodes, all at once, until it is killed.
    #[command(hide = true)]
    Nodes { nodes: u32, blocks: usize, seed: u64, directory: PathBuf },
}

/// The name of a Node.
pub(super) fn name(number: u32) -> String {
    format!("node{number:05}")
}

impl Part {
    pub(super) fn run(&self) -> Result<()> {
        // A node waits for answers on threads of its own: for its report, its fills, its lease, its claims
        // and its start. With fewer, all that there are wait, and none is left to read the answers.
        let threads = match self {
            Self::Nodes { nodes, .. } => 64 + 8 * *nodes as usize,
            Self::Prepare { .. } | Self::Heartbeat { .. } => 64,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(threads)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            match self {
                Self::Prepare { kubeconfig, nodes, template, directory } => {
                    prepare(kubeconfig, *nodes, template, directory).await
                }
                Self::Heartbeat { kubeconfig, nodes, count, seed } => {
                    heartbeat(kubeconfig, *nodes, *count, *seed).await
                }
                Self::Nodes { nodes, blocks, seed, directory } => {
                    start(*nodes, *blocks, *seed, directory).await
                }
            }
        })
    }
}

async fn client(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn prepare(kubeconfig: &Path, nodes: u32, template: &Path, to: &Path) -> Result<()> {
    let client = client(kubeconfig).await?;
    let template = fs::read_to_string(template)?;
    ensure!(template.contains(TOKEN), "no token has a place in {template}");
    fs::create_dir_all(to)?;
    let mut tasks = JoinSet::new();
    for number in 0..nodes {
        if tasks.len() >= AT_ONCE
            && let Some(done) = tasks.join_next().await
        {
            done??;
        }
        let (client, template) = (client.clone(), template.clone());
        let path = to.join(format!("{}.kubeconfig", name(number)));
        tasks.spawn(async move {
            let token = make(client, number).await?;
            Ok::<_, anyhow::Error>(fs::write(path, template.replace(TOKEN, &token))?)
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Makes a Node; a token that is bound to it.
async fn make(client: Client, number: u32) -> Result<String> {
    let (api, name) = (Api::<Node>::all(client.clone()), name(number));
    let address = format!("10.{}.{}.{}", 200 + (number >> 16), (number >> 8) & 255, number & 255);
    let node: Node = serde_json::from_value(json!({"metadata": {
        "name": name,
        "labels": {
            "beta.kubernetes.io/arch": "amd64", "beta.kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
            "kubernetes.io/hostname": name, "rack": format!("r{}", number / 40),
        },
        "annotations": {
            "node.alpha.kubernetes.io/ttl": "0",
            "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            "projectcalico.org/IPv4Address": format!("{address}/24"),
        },
    }}))?;
    let made = api.create(&PostParams::default(), &node).await;
    let made = made.with_context(|| format!("cannot make Node {name}"))?;
    let status = json!({"status": status(&name, &address)});
    // kubelet's own manager, so that the fields have the owners that they have.
    let params = PatchParams { field_manager: Some("kubelet".to_owned()), ..Default::default() };
    api.patch_status(&name, &params, &Patch::Strategic(&status)).await?;
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            bound_object_ref: Some(BoundObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Node".to_owned()),
                name: Some(name.clone()),
                uid: made.metadata.uid,
            }),
            expiration_seconds: Some(24 * 3600),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(client, NAMESPACE);
    let issued = accounts.create_token_request(ACCOUNT, &PostParams::default(), &request).await?;
    let token = issued.status.and_then(|status| status.token);
    token.with_context(|| format!("no token for {name}"))
}

/// What a kubelet says about its Node.
fn status(name: &str, address: &str) -> Value {
    let image = |number: u32| {
        let digest = format!("{number:064x}");
        json!({
            "names": [
                format!("registry.example.com/platform/service-{number:02}@sha256:{digest}"),
                format!("registry.example.com/platform/service-{number:02}:v1.{number}.0"),
            ],
            "sizeBytes": 50_000_000 + number,
        })
    };
    let amounts = json!({
        "cpu": "16", "memory": "65536000Ki", "pods": "110", "ephemeral-storage": "98831908Ki",
        "hugepages-1Gi": "0", "hugepages-2Mi": "0",
    });
    json!({
        "addresses": [
            {"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name},
        ],
        "capacity": amounts, "allocatable": amounts,
        "conditions": conditions(),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "images": (0..IMAGES).map(image).collect::<Vec<_>>(),
        "nodeInfo": {
            "architecture": "amd64", "bootID": "b", "containerRuntimeVersion": "containerd://2.1.0",
            "kernelVersion": "6.12.0", "kubeProxyVersion": "v1.36.0", "kubeletVersion": "v1.36.0",
            "machineID": "m", "operatingSystem": "linux", "osImage": "Debian GNU/Linux 13",
            "systemUUID": "u",
        },
    })
}

fn conditions() -> Value {
    let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str, is_so: bool, reason: &str, message: &str| {
        json!({
            "type": kind, "status": if is_so { "True" } else { "False" }, "reason": reason,
            "message": message, "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    json!([
        condition(
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available"
        ),
        condition(
            "DiskPressure",
            false,
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure"
        ),
        condition(
            "PIDPressure",
            false,
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available"
        ),
        condition("Ready", true, "KubeletReady", "kubelet is posting ready status"),
    ])
}

async fn heartbeat(kubeconfig: &Path, nodes: u32, count: u32, seed: u64) -> Result<()> {
    let api = Api::<Node>::all(client(kubeconfig).await?);
    let params = PatchParams { field_manager: Some("kubelet".to_owned()), ..Default::default() };
    let mut random = Random::new(seed);
    for _ in 0..count {
        let status = json!({"status": {"conditions": conditions()}});
        let node = name(u32::try_from(random.below(nodes as usize))?);
        api.patch_status(&node, &params, &Patch::Strategic(&status)).await?;
        // Conditions have seconds, and the same ones again would be no change.
        tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    }
    Ok(())
}

async fn start(nodes: u32, blocks: usize, seed: u64, directory: &Path) -> Result<()> {
    let begun = Instant::now();
    let mut order: Vec<u32> = (0..nodes).collect();
    let mut random = Random::new(seed);
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last + 1));
    }
    let mut starting = JoinSet::new();
    for number in order {
        let node = name(number);
        let member = Member {
            kubeconfig: directory.join(format!("{node}.kubeconfig")),
            state_dir: directory.join(&node),
            blocks,
            node,
        };
        starting.spawn(async move { member.start().await });
    }
    let mut running = JoinSet::new();
    while let Some(started) = starting.join_next().await {
        let node = started??;
        ensure!(node.blocks().len() >= blocks, "a node has {:?}", node.blocks());
        running.spawn(node.run());
    }
    writeln!(std::io::stdout(), "{SETTLED} {}", begun.elapsed().as_secs_f64())?;
    match running.join_next().await {
        Some(ended) => ended?.context("a node ended"),
        None => Ok(()),
    }
}
