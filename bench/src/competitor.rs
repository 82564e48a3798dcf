//! Who is measured: each with a node of its own, pods' namespaces, and a way to be called.

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_sys::child::wait_with_usage;
use twill_tests::{
    lab::{Lab, Topology},
    netns::Namespace,
    ping, process, programs,
    wait::wait_for,
};

use crate::measure::Sample;

/// The files of a run, on the sandbox's tmpfs.
pub(crate) const FILES: &str = "/run/bench";

/// What the call for a pod said; its number follows.
pub(crate) const SAID: &str = "/run/bench/said-";

/// The group into which links are put that wait to be deleted.
const DELETE_GROUP: &str = "0x7477696c";

/// The node that it runs on.
enum Host {
    /// With a daemon.
    Lab(Box<Lab>),
    Plain(Namespace),
}

/// One way to connect a pod.
pub(crate) struct Competitor {
    pub(crate) name: String,
    host: Host,
    pods: Vec<Namespace>,
    program: PathBuf,
    /// `CNI_PATH`.
    path: String,
    netconf: PathBuf,
    /// Where its addresses are stored.
    pub(crate) store: Option<PathBuf>,
    /// Variables beside those of CNI, for the pod of a number.
    environment: fn(usize) -> Vec<(&'static str, String)>,
    /// Whether links of a DEL are left for somebody else: the daemon, or us.
    leaves_links: bool,
}

impl Competitor {
    /// Twill with its daemon.
    pub(crate) fn daemon(plugin: &Path, pods: u32) -> Result<Self> {
        let lab = lab("10.97.0.0/18", 24)?;
        let run_dir = lab.node("node1")?.dir().join("run");
        let netconf = json!({"type": "twill", "runDir": run_dir,
            "ipam": {"type": "twill-ipam", "mode": "daemon"}});
        Ok(Self {
            store: Some(run_dir.join("ipam")),
            leaves_links: true,
            ..Self::new("twill", Host::Lab(Box::new(lab)), plugin, &netconf, pods)?
        })
    }

    /// Twill without a daemon.
    pub(crate) fn standalone(plugin: &Path, pods: u32) -> Result<Self> {
        let run_dir = Path::new(FILES).join("standalone");
        let netconf = json!({"type": "twill", "runDir": run_dir, "ipam": {
            "type": "twill-ipam", "mode": "standalone",
            "pools": [{"cidr": "10.96.0.0/18", "blockSize": 24}]}});
        let host = Host::Plain(node("standalone")?);
        Ok(Self {
            store: Some(run_dir),
            ..Self::new("twill, standalone", host, plugin, &netconf, pods)?
        })
    }

    /// The plugins that everybody compares with.
    pub(crate) fn reference(name: &str, directory: &str, pods: u32) -> Result<Self> {
        let label: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let data = Path::new(FILES).join(format!("{label}-data"));
        let netconf = json!({"type": "ptp", "ipam": {
            "type": "host-local", "dataDir": data,
            "ranges": [[{"subnet": "10.95.0.0/18"}]], "routes": [{"dst": "0.0.0.0/0"}]}});
        let host = Host::Plain(node(&label)?);
        let program = Path::new(directory).join("ptp");
        ensure!(program.is_file(), "{} does not exist", program.display());
        Ok(Self { store: Some(data), ..Self::new(name, host, &program, &netconf, pods)? })
    }

    /// The least that the same work costs: `floor/floor.c`, compiled here, with the system's C library
    /// and with musl, as the plugin has it.
    pub(crate) fn floors(pods: u32) -> Result<[Self; 2]> {
        fs::create_dir_all(FILES)?;
        echo(&Path::new(FILES).join("echo.sock"))?;
        let source = programs::source("bench/floor/floor.c");
        let (plain, musl) = (Path::new(FILES).join("floor"), Path::new(FILES).join("floor-musl"));
        process::run(Command::new("cc").args(["-O2", "-static", "-o"]).arg(&plain).arg(&source))?;
        compile_with_musl(&source, &musl)?;
        Ok([
            Self::floor("floor (same kernel work)", "floor", &plain, pods)?,
            Self::floor("floor, musl", "floorm", &musl, pods)?,
        ])
    }

    fn floor(name: &str, host: &str, program: &Path, pods: u32) -> Result<Self> {
        Ok(Self {
            environment: |number| {
                let socket = format!("{FILES}/echo.sock");
                vec![("FLOOR_NUMBER", (number + 1).to_string()), ("FLOOR_SOCKET", socket)]
            },
            leaves_links: true,
            ..Self::new(name, Host::Plain(node(host)?), program, &json!({}), pods)?
        })
    }

    fn new(name: &str, host: Host, program: &Path, netconf: &Value, pods: u32) -> Result<Self> {
        let label: String = name.chars().filter(char::is_ascii_alphanumeric).collect();
        let mut netconf = netconf.clone();
        netconf["cniVersion"] = json!("1.0.0");
        netconf["name"] = json!("bench");
        fs::create_dir_all(FILES)?;
        let file = Path::new(FILES).join(format!("{label}.json"));
        fs::write(&file, netconf.to_string())?;
        let pods = (0..pods).map(|n| Namespace::untouched(format!("{label}-{n}")));
        let directory = program.parent().context("a program has no directory")?;
        Ok(Self {
            name: name.to_owned(),
            host,
            pods: pods.collect::<Result<_>>()?,
            path: directory.display().to_string(),
            program: program.to_owned(),
            netconf: file,
            store: None,
            environment: |_| Vec::new(),
            leaves_links: false,
        })
    }

    pub(crate) fn pods(&self) -> usize {
        self.pods.len()
    }

    /// The node.
    pub(crate) fn node(&self) -> Result<&Namespace> {
        match &self.host {
            Host::Lab(lab) => Ok(lab.node("node1")?.namespace()),
            Host::Plain(namespace) => Ok(namespace),
        }
    }

    /// One call, from exec to exit. The calling thread is on the node.
    pub(crate) fn call(&self, verb: &str, pod: usize) -> Result<Sample> {
        self.execute(verb, pod, &self.netconf, Stdio::null())
    }

    /// The same, with the plugin's traces in `SAID<pod>.traces`.
    pub(crate) fn call_traced(&self, verb: &str, pod: usize) -> Result<Sample> {
        let mut netconf: Value = serde_json::from_str(&fs::read_to_string(&self.netconf)?)?;
        netconf["logLevel"] = json!("trace");
        let file = self.netconf.with_extension("traced");
        fs::write(&file, netconf.to_string())?;
        let traces = fs::File::create(format!("{SAID}{pod}.traces"))?;
        self.execute(verb, pod, &file, traces.into())
    }

    fn execute(&self, verb: &str, pod: usize, netconf: &Path, stderr: Stdio) -> Result<Sample> {
        let stdin = fs::File::open(netconf)?;
        let said = format!("{SAID}{pod}");
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .envs((self.environment)(pod))
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("{pod:064x}"))
            .env("CNI_NETNS", self.pods[pod].path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.path)
            .stdin(stdin)
            .stdout(fs::File::create(&said)?)
            .stderr(stderr);
        let start = Instant::now();
        let child = command.spawn().with_context(|| format!("{}", self.program.display()))?;
        let ended = wait_with_usage(child)?;
        let time = start.elapsed();
        ensure!(
            ended.status.success(),
            "{verb} of pod {pod}: {}: {}",
            ended.status,
            fs::read_to_string(&said).unwrap_or_default()
        );
        Ok(Sample { time, peak_kib: ended.peak_kib })
    }

    /// Whether what ADD made works: some of the first `pods` are asked.
    pub(crate) fn check_added(&self, pods: usize) -> Result<()> {
        for pod in [0, pods / 2, pods - 1] {
            let address = &self.pods[pod].ip_json("-4 address show dev eth0")?[0];
            let address = address["addr_info"][0]["local"].as_str().context("no address")?;
            ping::reaches(self.node()?, address.parse()?)?;
        }
        Ok(())
    }

    /// Waits until nothing of a round with the first `pods` is left.
    pub(crate) fn settle(&self, pods: usize, patience: Duration) -> Result<()> {
        let node = self.node()?;
        if self.leaves_links && matches!(self.host, Host::Plain(_)) {
            node.ip(&format!("link delete group {DELETE_GROUP}"))?;
        }
        wait_for("the links to go", patience, || {
            let links = node.ip("-o link show type veth")?;
            let ours =
                links.lines().filter(|line| !line.contains("uplink") && !line.contains("eth0"));
            let count = ours.count();
            ensure!(count == 0, "{count} links are left");
            Ok(())
        })?;
        for pod in [0, pods - 1] {
            ensure!(
                self.pods[pod].ip("link show eth0").is_err(),
                "pod {pod} has an interface still"
            );
        }
        Ok(())
    }

    /// The most memory that the daemon had resident, in KiB; `None` where there is none.
    pub(crate) fn daemon_peak_kib(&self) -> Result<Option<u64>> {
        let Host::Lab(lab) = &self.host else { return Ok(None) };
        let pid = lab.node("node1")?.status()?["pid"].as_u64().context("no pid")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
        Ok(Some(kib.context("no VmHWM")?))
    }
}

/// A node with a running daemon and one pool.
pub(crate) fn lab(pool: &str, block: u8) -> Result<Lab> {
    let mut topology = Topology::new();
    topology.node("node1").on("rack", "192.168.2.11/24").log_level("info");
    topology.resource(
        "pool.yaml",
        &format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: bench}}\nspec: \
             {{cidr: {pool}, blockSize: {block}}}\n"
        ),
    );
    let mut lab = topology.build()?;
    lab.start_all()?;
    Ok(lab)
}

/// A node without a daemon, with an uplink as any has.
fn node(name: &str) -> Result<Namespace> {
    let node = Namespace::create(format!("{name}-node"))?;
    node.ip_batch(
        "link add uplink up type veth peer name uplink-peer\nlink set uplink-peer up\naddr add \
         192.168.2.11/24 dev uplink\n",
    )?;
    Ok(node)
}

/// Answers each question of 64 bytes with itself, for the floor.
fn echo(path: &Path) -> Result<()> {
    // For as long as the program runs; the floor is made more than once.
    if path.exists() {
        return Ok(());
    }
    let listener = UnixListener::bind(path)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let mut question = [0; 64];
            if stream.read_exact(&mut question).is_ok() {
                // One that does not wait for the answer has failed by itself.
                let _ = stream.write_all(&question);
            }
        }
    });
    Ok(())
}

/// Links against the libc that comes with Rust's musl target. It comes without headers; those of the
/// system say the same of what the floor uses.
fn compile_with_musl(source: &Path, program: &Path) -> Result<()> {
    let object = program.with_extension("o");
    let flags = ["-O2", "-fno-pie", "-fno-stack-protector", "-U_FORTIFY_SOURCE", "-c", "-o"];
    process::run(Command::new("cc").args(flags).arg(&object).arg(source))?;
    let sysroot = process::run(Command::new("rustc").args(["--print", "sysroot"]))?;
    let target =
        format!("lib/rustlib/{}-unknown-linux-musl/lib/self-contained", std::env::consts::ARCH);
    let libc = Path::new(sysroot.trim()).join(target);
    let piece = |name: &str| libc.join(name);
    let mut link = Command::new("cc");
    link.args(["-nostdlib", "-static", "-no-pie", "-o"]).arg(program);
    link.args([piece("crt1.o"), piece("crti.o"), object, piece("libc.a"), piece("crtn.o")]);
    process::run(&mut link).map(drop)
}
