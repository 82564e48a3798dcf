//! From the command line to the running tasks, and to their end.

use std::{
    fs::DirBuilder,
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::SigSet;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
};
use tracing::{debug, info, warn};
use tracing_subscriber::filter::LevelFilter;
use twill_dataplane::{
    Link,
    pod::{host_links, living_pods},
};
use twill_ipam_store::{Options, OwnerLock, STANDALONE_MARK, Service, boot_id};

use crate::{
    cluster,
    config::{Config, LogFormat, LogLevel},
    datastore::{self, Snapshot},
    http, install,
    look::{PATIENCE, patiently},
    node::Node,
    reaper, result_cache, server,
    spool::Spool,
    tasks::Tasks,
    uninstall,
};

/// How long a daemon waits for the one before it to let go of the store.
const TAKE_OVER: Duration = Duration::from_secs(15);

/// How long it waits for DELs that are writing their tombstones.
const SPOOL: Duration = Duration::from_secs(3);

/// How long after the start until every task has had its first turn.
const FIRST_TURNS: Duration = Duration::from_millis(100);

/// How long to wait after a change of the resources until the work it causes is over.
const CALM: Duration = Duration::from_secs(10);

#[derive(Debug, Parser)]
#[command(name = "twilld", version, about = "The Twill node daemon")]
struct Args {
    /// The configuration file.
    #[arg(long, default_value = "/etc/twill/twilld.yaml")]
    config: PathBuf,
    /// What this process is: the daemon of a node, what does the work for the whole cluster (with the
    /// datastore kubernetes), or what installs the plugin or takes everything off the node.
    #[arg(long, value_enum, default_value_t = Role::Node)]
    role: Role,
    #[command(flatten)]
    places: install::Places,
    /// With --role uninstall: also while pods have their network from Twill. They lose it.
    #[arg(long)]
    force: bool,
    /// With --role uninstall: wait for SIGTERM in the end, as what a DaemonSet runs has to.
    #[arg(long)]
    stay: bool,
}

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Role {
    /// The daemon of a node.
    Node,
    /// The controller of a cluster.
    Controller,
    /// Puts the plugin and the network configuration onto the node, and ends.
    Install,
    /// Takes everything of Twill off the node, and ends.
    Uninstall,
}

/// Runs `twilld`.
pub fn main() -> ExitCode {
    twill_sys::share_heap();
    let args = Args::parse();
    let result = match args.role {
        Role::Install => install::run(&args.config, &args.places),
        Role::Uninstall => uninstall(&args),
        Role::Node | Role::Controller => start(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Before logging is set up, and for those who start it by hand: one line for each
            // cause. Nobody may be reading.
            let _ = writeln!(io::stderr(), "twilld: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn uninstall(args: &Args) -> anyhow::Result<()> {
    uninstall::run(&args.config, &args.places, args.force)?;
    if args.stay {
        let mut signals = SigSet::empty();
        signals.add(nix::sys::signal::Signal::SIGTERM);
        signals.add(nix::sys::signal::Signal::SIGINT);
        signals.thread_block().context("cannot wait for SIGTERM")?;
        signals.wait().context("cannot wait for SIGTERM")?;
    }
    Ok(())
}

fn start(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    set_up_logging(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = match args.role {
        Role::Controller => runtime.block_on(run_controller(config)),
        _ => runtime.block_on(run(config)),
    };
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
    let builder = tracing_subscriber::fmt().with_max_level(level).with_writer(io::stderr);
    match config.log.format {
        LogFormat::Json => builder.json().init(),
        LogFormat::Text => builder.with_ansi(false).init(),
    }
}

async fn run_controller(config: Config) -> anyhow::Result<()> {
    info!(version = env!("CARGO_PKG_VERSION"), "starting as the controller");
    let mut stop = Stop::new()?;
    cluster::run(&config, stop.told()).await
}

async fn run(config: Config) -> anyhow::Result<()> {
    let node = config.node_name()?;
    info!(node, version = env!("CARGO_PKG_VERSION"), "starting");
    let mut stop = Stop::new()?;
    let mut tasks = Tasks::default();
    let (served, problems) = (watch::Sender::new(None), watch::Sender::default());
    let told = http::Told { api: served.subscribe(), problems: problems.subscribe() };
    let is_asked = serve_early(&config, &told, &mut tasks).await?;
    // Before anything is locked: it may have to wait for the API server, and until then the daemon
    // before this one serves, and a DEL without one leaves its tombstone.
    let datastore = tokio::select! {
        opened = datastore::open(&config, &node, problems, &mut tasks) => {
            opened.context("cannot use the datastore")?
        }
        () = stop.told() => return Ok(()),
    };
    let run_dir = &config.run_dir;
    make_run_dir(run_dir)?;
    let ipam_dir = run_dir.join("ipam");
    let lock = OwnerLock::acquire_as_daemon(
        &ipam_dir.join("owner.lock"),
        &node,
        Instant::now() + TAKE_OVER,
    )?;
    // The daemon before this one is gone by now: a port that is taken is somebody else's.
    if let (false, Some(address)) = (is_asked, config.metrics.listen) {
        let bound = TcpListener::bind(address).await;
        serve_http(bound.with_context(|| cannot_listen(address))?, told, &mut tasks);
    }
    let tenure = Arc::clone(&datastore.tenure);
    tenure.begin();
    let spool = Spool::lock(run_dir, Instant::now() + SPOOL)
        .with_context(|| format!("cannot use the spool in {}", run_dir.display()))?;
    // From here on a DEL without a daemon is one that waits for this one.
    match std::fs::remove_file(ipam_dir.join(STANDALONE_MARK)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).context("cannot take over the address store");
        }
        _ => {}
    }
    let (service, set_aside) = open_store(&ipam_dir.join("store"))?;
    // For all looks until then: who waits for the start does not know how many there are.
    let until = Instant::now() + PATIENCE;
    recover(&service, &config, until).context("cannot rebuild the address store")?;
    reaper::begin(until).context("cannot delete the links of pods that are gone")?;
    let drained = spool.drain(&service).context("cannot read the spool")?;
    if drained > 0 {
        info!(drained, "released what was deleted while no daemon ran");
    }

    // To delete thousands of links takes a while of its own.
    let until = Instant::now() + PATIENCE;
    let api = Node { config: &config, name: node, service, set_aside, datastore, until }
        .start(&mut tasks)?;

    let socket = config.run_dir.join("twilld.sock");
    let listener =
        server::bind(&socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    tasks.endless("socket", server::serve(listener, Arc::clone(&api)));
    // From here on a DEL finds us.
    drop(spool);
    served.send_replace(Some(Arc::clone(&api)));
    info!(socket = %socket.display(), "ready");
    tasks.endless("memory", let_go_of_code(api.resources.clone()));
    let result = wait_for_the_end(&mut tasks, &mut stop).await;
    tenure.end();
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

/// Most of what runs in a start never runs again, and what reads the resources runs seldom: it need not be
/// in memory (`docs/adr/0028-memory-of-the-daemon.md`).
async fn let_go_of_code(mut resources: watch::Receiver<Arc<Snapshot>>) {
    tokio::time::sleep(FIRST_TURNS).await;
    loop {
        if let Err(error) = twill_sys::let_go_of_code() {
            debug!(%error, "code that is done stays in memory");
        }
        if resources.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(CALM).await;
    }
}

fn make_run_dir(run_dir: &Path) -> anyhow::Result<()> {
    // Of a directory that is there, others may use a part.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(run_dir);
    made.with_context(|| format!("cannot make runDir {}", run_dir.display()))
}

/// Serves HTTP before there is anything to serve, so that it can be asked what the daemon waits for.
/// `false` if that is for later: nobody wants it, or the daemon before this one still answers there.
async fn serve_early(
    config: &Config,
    told: &http::Told,
    tasks: &mut Tasks,
) -> anyhow::Result<bool> {
    let Some(address) = config.metrics.listen else { return Ok(false) };
    match TcpListener::bind(address).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Ok(false),
        bound => serve_http(bound.with_context(|| cannot_listen(address))?, told.clone(), tasks),
    }
    Ok(true)
}

fn cannot_listen(address: SocketAddr) -> String {
    format!("cannot listen on {address} (metrics.listen)")
}

fn serve_http(listener: TcpListener, told: http::Told, tasks: &mut Tasks) {
    tasks.spawn("HTTP", http::serve(listener, told));
}

/// Opens the store; answers as well where a damaged one was moved to.
fn open_store(directory: &Path) -> anyhow::Result<(Arc<Service>, Option<PathBuf>)> {
    let options = Options { boot_id: boot_id()?, hold_freed: true };
    let (service, report) = Service::open(directory, options)?;
    Ok((Arc::new(service), report.set_aside))
}

/// Writes down what a store that is lost, or that lacks some, knew.
fn recover(service: &Service, config: &Config, until: Instant) -> anyhow::Result<()> {
    // Read before the links give records back, while it can be told that the store is lost; but links are believed
    // before the cache.
    let cached = result_cache::read(service, &config.ipam.result_cache, &config.run_dir)?;
    let rebuilt = rebuild(service, until)?;
    let adopted = result_cache::adopt(service, cached)?;
    if rebuilt + adopted > 0 {
        warn!(
            from_links = rebuilt,
            from_cache = adopted,
            "the store lacked records of pods that are or may be there; it has them now"
        );
    }
    Ok(())
}

/// Writes the records of pods that run and that the store does not know of; says how many.
fn rebuild(service: &Service, until: Instant) -> anyhow::Result<usize> {
    let links = patiently(until, host_links).context("cannot list the pods' links")?;
    if !service.misses(links.iter().filter_map(Link::twill_alias).collect())? {
        return Ok(0);
    }
    let pods = patiently(until, living_pods).context("cannot list the pods' links")?;
    Ok(service.rebuild(pods)?)
}

/// The signals to stop. One that comes while nobody waits is not lost.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => info!("SIGTERM: leaving as for a restart"),
            _ = self.interrupt.recv() => info!("SIGINT: leaving as for a restart"),
        }
    }
}

/// A signal ends the process well, a task that ends ends it badly.
async fn wait_for_the_end(tasks: &mut Tasks, stop: &mut Stop) -> anyhow::Result<()> {
    tokio::select! {
        () = stop.told() => Ok(()),
        error = tasks.first_to_end() => Err(error),
    }
}
