//! From the command line to the running tasks, and to their end.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Parser;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};
use tracing::{info, warn};
use tracing_subscriber::filter::LevelFilter;
use twill_dataplane::{
    fib::{Fib, FibConfig},
    node::{ensure_forwarding, ensure_gateway, uplink_mtu},
    watch::Events,
};
use twill_ipam_store::{Options, OwnerLock, Service};
use twill_types::{Block, Family};

use crate::{
    api::Api,
    bgp::Bgp,
    claims::Claims,
    config::{Config, LogFormat, LogLevel},
    datastore::{self, ClaimStore, Snapshot},
    heartbeat, http,
    ipam::{Ipam, View, now_ms},
    metrics::Metrics,
    reaper,
    routes::{Routes, Sources, State},
    server,
    spool::{self, Spool},
};

/// How long a daemon waits for the one before it to let go of the store.
const TAKE_OVER: Duration = Duration::from_secs(15);

#[derive(Debug, Parser)]
#[command(name = "twilld", version, about = "The Twill node daemon")]
struct Args {
    /// The configuration file.
    #[arg(long, default_value = "/etc/twill/twilld.yaml")]
    config: PathBuf,
}

/// Runs `twilld`.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match start(&args.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Before logging is set up, and for those who start it by hand: one line for each
            // cause. Nobody may be reading.
            let _ = writeln!(std::io::stderr(), "twilld: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(path: &Path) -> anyhow::Result<()> {
    let config = Config::load(path)?;
    set_up_logging(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(run(config));
    // A store that is being written finishes by itself; nothing else is worth waiting for.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

fn set_up_logging(config: &Config) {
    let level = match config.log.level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    match config.log.format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(false).init(),
    }
}

/// The values that tasks pass on to each other.
struct Wiring {
    resources: watch::Receiver<Arc<Snapshot>>,
    owned: watch::Sender<Option<BTreeSet<Block>>>,
    view: watch::Sender<Arc<View>>,
    sources: watch::Sender<Sources>,
    mtu: watch::Sender<u32>,
}

async fn run(config: Config) -> anyhow::Result<()> {
    let node = config.node_name()?;
    info!(node, version = env!("CARGO_PKG_VERSION"), "starting");
    std::fs::create_dir_all(&config.run_dir)
        .with_context(|| format!("cannot make runDir {}", config.run_dir.display()))?;
    let ipam_dir = config.run_dir.join("ipam");
    let lock = OwnerLock::acquire(
        &ipam_dir.join("owner.lock"),
        &format!("twilld of node {node}"),
        Instant::now() + TAKE_OVER,
    )?;
    let spool = Spool::lock(&config.run_dir).context("cannot lock the spool")?;
    let service = open_store(&ipam_dir.join("store"))?;
    let drained = spool.drain(&service).context("cannot read the spool")?;
    if drained > 0 {
        info!(drained, "released what was deleted while no daemon ran");
    }

    let resources = datastore::watch(&config.datastore.directory, config.datastore.shared)
        .with_context(|| {
            format!("cannot read the resources in {}", config.datastore.directory.display())
        })?;
    let wiring = Wiring {
        resources,
        owned: watch::Sender::new(None),
        view: watch::Sender::default(),
        sources: watch::Sender::default(),
        mtu: watch::Sender::new(1500),
    };
    let mut tasks = JoinSet::new();
    let api = spawn_all(&config, &node, &service, wiring, &mut tasks)?;

    let socket = config.run_dir.join("twilld.sock");
    let listener =
        server::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    tasks.spawn({
        let api = Arc::clone(&api);
        async move { server::serve(listener, api).await.context("the socket failed") }
    });
    // From here on a DEL finds us.
    drop(spool);
    if let Some(address) = config.metrics.listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (metrics.listen)"))?;
        let api = Arc::clone(&api);
        tasks.spawn(async move { http::serve(listener, api).await.context("HTTP failed") });
    }
    info!(socket = %socket.display(), "ready");

    let result = wait_for_the_end(&mut tasks).await;
    let speaker = api.speaker.borrow().clone();
    if let Some((_, speaker)) = speaker {
        // Routes and pods stay as they are, and peers keep our routes (RFC 4724).
        speaker.stop().await;
    }
    tasks.shutdown().await;
    // A socket without a daemon would look like one that refuses.
    let _ = std::fs::remove_file(&socket);
    drop(lock);
    info!("stopped");
    result
}

fn open_store(directory: &Path) -> anyhow::Result<Arc<Service>> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    let boot_id =
        std::fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
    let options = Options { boot_id: boot_id.trim().to_owned(), hold_freed: true };
    let (service, report) = Service::open(directory, options)?;
    if let Some(aside) = report.set_aside {
        warn!(moved_to = %aside.display(), "the store was damaged, and an empty one is used");
    }
    Ok(Arc::new(service))
}

/// Starts the tasks that own the node's state.
fn spawn_all(
    config: &Config,
    node: &str,
    service: &Arc<Service>,
    wiring: Wiring,
    tasks: &mut JoinSet<anyhow::Result<()>>,
) -> anyhow::Result<Arc<Api>> {
    let mut fib = Fib::open(FibConfig { metric: config.fib.metric })?;
    let adopted = fib.learned()?;
    // The F bit is true only if our routes really are in the kernel.
    let restarting = !adopted.is_empty();
    if restarting {
        info!(routes = adopted.len(), "adopted the routes of the process before");
    }
    ensure_gateway()?;
    let changed = ensure_forwarding(&[Family::V4, Family::V6])?;
    for change in changed {
        info!(key = change.key, before = change.before, after = change.after, "sysctl changed");
    }
    let events = Events::open([fib.port()?])?;

    let (claim_commands, claim_queue) = mpsc::channel(256);
    let (reports, report_queue) = mpsc::unbounded_channel();
    let current = watch::Sender::new(None);
    let installed = watch::Sender::default();
    let conflicts = watch::Sender::new(BTreeMap::new());
    let claim_problems = watch::Sender::default();
    let bgp_problems = watch::Sender::default();
    let released = Arc::new(Notify::new());
    let claim_store = ClaimStore::open(&config.datastore.directory)?;

    let api = Arc::new(Api {
        node: node.to_owned(),
        started_ms: now_ms(),
        ipam: Ipam {
            node: node.to_owned(),
            service: Arc::clone(service),
            view: wiring.view.subscribe(),
            claims: claim_commands,
            mtu: wiring.mtu.subscribe(),
        },
        claims: claim_store.clone(),
        speaker: current.subscribe(),
        resources: wiring.resources.clone(),
        installed: installed.subscribe(),
        problems: vec![claim_problems.subscribe(), bgp_problems.subscribe()],
        conflicts: conflicts.subscribe(),
        metrics: Metrics::new(),
        released: Arc::clone(&released),
    });
    let claims = Claims {
        node: node.to_owned(),
        shared: config.datastore.shared,
        store: claim_store,
        service: Arc::clone(service),
        resources: wiring.resources.clone(),
        commands: claim_queue,
        view: wiring.view,
        owned: wiring.owned.clone(),
        problems: claim_problems,
        draining: false,
    };
    let routes = Routes {
        fib,
        metric: config.fib.metric,
        events,
        reports: report_queue,
        owned: wiring.owned.subscribe(),
        sources: wiring.sources.subscribe(),
        speaker: current.subscribe(),
        installed,
        conflicts,
        state: State::adopt(adopted),
    };
    let bgp = Bgp {
        node: node.to_owned(),
        listen_port: config.bgp.listen_port.map(Into::into),
        restarting,
        resources: wiring.resources.clone(),
        owned: wiring.owned.subscribe(),
        reports,
        current,
        problems: bgp_problems,
    };
    tasks.spawn(async move { claims.run().await.context("claims failed") });
    tasks.spawn(async move { routes.run().await.context("routes failed") });
    tasks.spawn(async move { bgp.run().await.context("BGP failed") });
    let status = report_status(
        config.datastore.directory.clone(),
        node.to_owned(),
        wiring.resources.clone(),
    );
    tasks.spawn(async move {
        status.await;
        Ok(())
    });
    let beats = heartbeat::run(config.run_dir.clone(), api.ipam.view.clone());
    tasks.spawn(async move {
        beats.await;
        Ok(())
    });
    let identity = follow_addresses(node.to_owned(), wiring.resources, wiring.sources, wiring.mtu);
    tasks.spawn(async move {
        identity.await;
        Ok(())
    });
    let (store, notify) = (Arc::clone(service), Arc::clone(&released));
    tasks.spawn(async move {
        reaper::run(store, notify).await;
        Ok(())
    });
    let (store, directory) = (Arc::clone(service), config.run_dir.clone());
    tasks.spawn(async move {
        spool::watch(directory, store, released).await;
        Ok(())
    });
    Ok(api)
}

/// Keeps what this node says about each object up to date.
async fn report_status(
    directory: PathBuf,
    node: String,
    mut resources: watch::Receiver<Arc<Snapshot>>,
) {
    loop {
        let snapshot = Arc::clone(&resources.borrow_and_update());
        let written =
            tokio::task::block_in_place(|| datastore::report(&directory, &node, &snapshot));
        if let Err(error) = written {
            // Nothing else depends on it; the next change tries again.
            warn!(error = %server::chain(&error), "cannot write the status of the resources");
        }
        if resources.changed().await.is_err() {
            return;
        }
    }
}

/// Keeps the node's own addresses, and the MTU that pods get from the link that has them.
async fn follow_addresses(
    node: String,
    mut resources: watch::Receiver<Arc<Snapshot>>,
    sources: watch::Sender<Sources>,
    mtu: watch::Sender<u32>,
) {
    loop {
        let snapshot = Arc::clone(&resources.borrow_and_update());
        let own = snapshot.nodes.get(&node);
        let addresses: Sources = [Family::V4, Family::V6]
            .into_iter()
            .filter_map(|family| Some((family, own?.address(family)?)))
            .collect();
        let first = addresses.values().next().copied();
        match tokio::task::block_in_place(|| uplink_mtu(first)) {
            Ok(found) => {
                mtu.send_replace(found);
            }
            Err(error) => warn!(error = %server::chain(&error), "cannot tell the uplink's MTU"),
        }
        sources.send_if_modified(|known| {
            let changed = *known != addresses;
            *known = addresses;
            changed
        });
        if resources.changed().await.is_err() {
            return;
        }
    }
}

/// A signal ends the process well, a task that ends ends it badly.
async fn wait_for_the_end(tasks: &mut JoinSet<anyhow::Result<()>>) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: leaving as for a restart"),
        _ = interrupt.recv() => info!("SIGINT: leaving as for a restart"),
        ended = tasks.join_next() => match ended {
            Some(Ok(Ok(()))) | None => bail!("a task ended without being told to"),
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(error)) => bail!("a task died: {error}"),
        },
    }
    Ok(())
}
