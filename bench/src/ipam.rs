//! Addresses alone, without links: the service beside its storage library, an allocation through the
//! socket beside an echo, what the datastore sees of both, and a daemon with many allocations.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::{Deserialize, Serialize};
use twill_rpc::{
    Client, encode,
    message::{AssignRequest, Assigned, CheckRequest, Release, ReleaseRequest, Request, Response},
};
use twill_tests::{
    lab::{Lab, Topology},
    process, programs,
};
use twill_types::{AttachmentId, Family};

use crate::{
    competitor::FILES,
    echo::{Durable, Echo},
    measure::median,
};

/// All allocations that the daemon with many of them has, in this many blocks.
const MANY: (usize, usize) = (5000, 100);

/// Blocks of the pool that is nearly full, and how many of them are another node's.
const POOL: (u32, u32) = (4096, 4056);

/// Calls whose median counts.
const CALLS: u64 = 2000;

/// How long a connection may last.
const LONG: Duration = Duration::from_secs(120);

/// What was measured.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Addresses {
    committer: Rates,
    /// p50 of an allocation through the daemon's socket, and of the echo, in microseconds.
    assign_us: f64,
    echo_us: f64,
    /// The same of an echo that makes as many octets durable: the least that gives an address.
    durable_echo_us: f64,
    /// The same of a CHECK, which writes nothing.
    check_us: f64,
    /// Of 100 ADDs while the block has space: changes of files of the datastore.
    datastore_writes: usize,
    /// For the first ADD on a node in a pool that is nearly full.
    claim_listed: usize,
    claim_made: usize,
    claim_ms: f64,
    /// The daemon with many allocations.
    daemon_kib: u64,
    restarted_kib: u64,
    start_ms: f64,
    /// Processes that wanted to run, at the end.
    load: String,
}

/// Operations a second of `ipam-store/examples/committer.rs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rates {
    service: Vec<f64>,
    bare: Vec<f64>,
    /// p50 of one allocation of a lone caller, and of the same writes with the library alone.
    assign_us: f64,
    bare_write_us: f64,
    record_bytes: usize,
    block_bytes: usize,
    meta_bytes: usize,
}

pub(crate) fn measure() -> Result<Addresses> {
    fs::create_dir_all(FILES)?;
    let committer = committer().context("the service beside its library")?;
    // Blocks as they are by default, and as those of the committer.
    let usual = lab("10.97.0.0/18", 26, |_| Ok(()))?;
    let [assign_us, check_us, echo_us, durable_echo_us] =
        socket(&usual, &committer).context("the socket beside an echo")?;
    drop(usual);
    let calm = lab("10.97.0.0/18", 24, |_| Ok(()))?;
    let datastore_writes = writes(&calm).context("writes to the datastore")?;
    let sample = sample(&calm)?;
    drop(calm);
    let (claim_listed, claim_made, claim_ms) =
        nearly_full(&sample).context("a pool that is nearly full")?;
    let (daemon_kib, restarted_kib, start_ms) = many().context("a daemon with many allocations")?;
    let load = fs::read_to_string("/proc/loadavg")?.trim().to_owned();
    Ok(Addresses {
        committer,
        assign_us,
        echo_us,
        durable_echo_us,
        check_us,
        datastore_writes,
        claim_listed,
        claim_made,
        claim_ms,
        daemon_kib,
        restarted_kib,
        start_ms,
        load,
    })
}

fn committer() -> Result<Rates> {
    let directory = Path::new(FILES).join("committer");
    fs::create_dir_all(&directory)?;
    let program = programs::find("examples/committer")?;
    let said = process::run(Command::new(program).arg(&directory).args(["11", "300"]))?;
    Ok(serde_json::from_str(&said)?)
}

/// A node with a pool, and what is put into its claims before it starts.
fn lab(cidr: &str, size: u8, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Lab> {
    let mut topology = Topology::new();
    topology
        .node("node1")
        .on("rack", "192.168.2.11/24")
        .log_level("warn")
        // There are no pods behind these allocations.
        .settings("reconcile: {intervalSeconds: 3600, graceSeconds: 86400}\n");
    topology.resource(
        "pool.yaml",
        &format!(
            "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: bench}}\nspec: \
             {{cidr: {cidr}, blockSize: {size}}}\n"
        ),
    );
    let mut lab = topology.build()?;
    fs::create_dir_all(lab.resource("claims"))?;
    prepare(&lab.resource("claims"))?;
    lab.start_all()?;
    Ok(lab)
}

fn connect(lab: &Lab) -> Result<Client> {
    Ok(Client::connect(&lab.node("node1")?.socket(), "twill-bench", LONG)?)
}

fn request(number: u64) -> AssignRequest {
    AssignRequest {
        attachment: attachment(number),
        families: vec![Family::V4],
        wanted: Vec::new(),
        ipv4_pools: Vec::new(),
        ipv6_pools: Vec::new(),
        allow_reserved: false,
        netns: format!("/var/run/netns/cni-{number:032x}"),
        netns_cookie: Some(number + 1),
        pod: None,
        foreign: None,
        timeout_ms: 60_000,
    }
}

fn attachment(number: u64) -> AttachmentId {
    AttachmentId {
        network: "bench".into(),
        container_id: format!("{number:064x}"),
        ifname: "eth0".into(),
    }
}

fn release(client: &mut Client, number: u64) -> Result<()> {
    let (attachment, sequence, netns_cookie) = (attachment(number), None, None);
    let request = ReleaseRequest { attachment, sequence, netns_cookie };
    client.release(Release { request, parked: None })?;
    Ok(())
}

fn assign(client: &mut Client, number: u64) -> Result<Assigned> {
    Ok(client.assign(request(number))?)
}

/// p50 of an allocation, of a CHECK, of an echo and of one that writes, one after the other, in
/// microseconds.
fn socket(lab: &Lab, sizes: &Rates) -> Result<[f64; 4]> {
    let mut client = connect(lab)?;
    let assigned = assign(&mut client, 0)?;
    let question = encode(&Request::Assign(Box::new(request(0))))?.len();
    let answer = encode(&Response::Assigned(assigned))?.len();
    release(&mut client, 0)?;
    let files = Path::new(FILES);
    let mut echo = Echo::start(&files.join("frames.sock"), question, answer, None)?;
    let durable = Durable {
        directory: files.join("echo-store"),
        record: sizes.record_bytes,
        block: sizes.block_bytes,
        meta: sizes.meta_bytes,
    };
    let mut floor = Echo::start(&files.join("echo-store.sock"), question, answer, Some(durable))?;
    let timed = |act: &mut dyn FnMut() -> Result<()>| -> Result<f64> {
        let began = Instant::now();
        act()?;
        Ok(began.elapsed().as_secs_f64() * 1e6)
    };
    let [mut assigns, mut checks, mut echoes, mut floors] = [const { Vec::new() }; 4];
    for number in 0..CALLS {
        let mut addresses = Vec::new();
        assigns.push(timed(&mut || {
            let assigned = assign(&mut client, number)?;
            addresses = assigned.addresses;
            Ok(())
        })?);
        let check = CheckRequest { attachment: attachment(number), addresses };
        checks.push(timed(&mut || Ok(client.check(check.clone())?))?);
        release(&mut client, number)?;
        echoes.push(timed(&mut || echo.call())?);
        echo.call()?;
        floors.push(timed(&mut || floor.call())?);
        floor.call()?;
    }
    Ok([median(&assigns), median(&checks), median(&echoes), median(&floors)])
}

/// What happened to files below a directory.
struct Watch(Inotify);

impl Watch {
    fn new(directory: &Path, flags: AddWatchFlags) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let mut all = vec![directory.to_owned()];
        while let Some(directory) = all.pop() {
            inotify.add_watch(&directory, flags)?;
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                all.extend(entry.file_type()?.is_dir().then(|| entry.path()));
            }
        }
        let watch = Self(inotify);
        // This looking around is none of it.
        watch.events();
        Ok(watch)
    }

    /// Events so far: what they are, and whether of a file that is not hidden.
    fn events(&self) -> Vec<(AddWatchFlags, bool)> {
        let mut all = Vec::new();
        while let Ok(events) = self.0.read_events() {
            all.extend(events.into_iter().map(|event| {
                let name = event.name.unwrap_or_default();
                (event.mask, !name.is_empty() && !name.to_string_lossy().starts_with('.'))
            }));
        }
        all
    }
}

/// Changes in the datastore's directory during 100 ADDs with space in the block: what else goes on
/// there is not in the median of several times.
fn writes(lab: &Lab) -> Result<usize> {
    let mut client = connect(lab)?;
    let mut counts = Vec::new();
    for _ in 0..5 {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_DELETE;
        let watch = Watch::new(&lab.resource(""), flags)?;
        for number in 0..100 {
            assign(&mut client, number)?;
        }
        counts.push(watch.events().len());
        for number in 0..100 {
            release(&mut client, number)?;
        }
    }
    counts.sort_unstable();
    Ok(counts[counts.len() / 2])
}

/// The text of a claim, with `CIDR`, `NAME` and `NODE` where these stand.
fn sample(lab: &Lab) -> Result<String> {
    let claims = fs::read_dir(lab.resource("claims"))?;
    let path = claims
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .context("there is no claim")?;
    let name = path.file_stem().context("no name")?.to_string_lossy().into_owned();
    let text = fs::read_to_string(&path)?;
    let address = u32::from_str_radix(&name[..8], 16)?;
    let cidr = format!("{}/24", std::net::Ipv4Addr::from_bits(address));
    ensure!(text.contains(&cidr) && text.contains("node1"), "another claim: {text}");
    Ok(text.replace(&cidr, "CIDR").replace(&name, "NAME").replace("node1", "NODE"))
}

/// What the first ADD does to the claims of a pool that is nearly full: listings, claims made, and
/// milliseconds.
fn nearly_full(sample: &str) -> Result<(usize, usize, f64)> {
    let first = u32::from(std::net::Ipv4Addr::new(10, 96, 0, 0));
    let lab = lab("10.96.0.0/14", 26, |claims: &Path| {
        for index in 0..POOL.1 {
            // Runs of all lengths are left free.
            let address = first + (index * 1021 % POOL.0) * 64;
            let name = format!("{address:08x}-26");
            let cidr = format!("{}/26", std::net::Ipv4Addr::from_bits(address));
            let text = sample.replace("CIDR", &cidr).replace("NAME", &name);
            fs::write(claims.join(format!("{name}.yaml")), text.replace("NODE", "node2"))?;
        }
        Ok(())
    })?;
    let mut client = connect(&lab)?;
    client.welcome()?;
    let flags = AddWatchFlags::IN_OPEN | AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CREATE;
    let watch = Watch::new(&lab.resource("claims"), flags | AddWatchFlags::IN_ONLYDIR)?;
    let began = Instant::now();
    assign(&mut client, 0)?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    let (mut listed, mut made, mut opened) = (0, 0, false);
    for (mask, visible) in watch.events() {
        let of_directory = mask.contains(AddWatchFlags::IN_ISDIR);
        if of_directory && mask.contains(AddWatchFlags::IN_OPEN) {
            opened = true;
        } else if of_directory && mask.contains(AddWatchFlags::IN_ACCESS) {
            // Read for the first time since it was opened.
            listed += usize::from(std::mem::take(&mut opened));
        } else if visible && mask.contains(AddWatchFlags::IN_CREATE) {
            made += 1;
        }
    }
    Ok((listed, made, took))
}

/// The daemon's resident memory with many allocations, the same after a restart, in KiB, and the
/// milliseconds from its start to its first answer.
fn many() -> Result<(u64, u64, f64)> {
    let mut lab = lab("10.97.0.0/18", 26, |_| Ok(()))?;
    let (allocations, blocks) = (MANY.0 as u64, MANY.1 as u64);
    fill(&lab, allocations, blocks * 64)?;
    let there = lab.node("node1")?.blocks()?.len() as u64;
    ensure!((blocks..=blocks + 1).contains(&there), "{there} blocks");
    let before = resident_kib(&lab)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        lab.node_mut("node1")?.stop()?;
        let began = Instant::now();
        lab.node_mut("node1")?.launch()?;
        let answered = loop {
            match connect(&lab).and_then(|mut client| assign(&mut client, 0)) {
                Ok(answered) => break answered,
                // Nobody listens yet.
                Err(error) if began.elapsed() > LONG => return Err(error),
                Err(_) => thread::sleep(Duration::from_micros(500)),
            }
        };
        times.push(began.elapsed().as_secs_f64() * 1e3);
        ensure!(!answered.addresses.is_empty(), "no address");
        lab.node_mut("node1")?.wait_ready()?;
    }
    Ok((before, resident_kib(&lab)?, median(&times)))
}

/// Fills blocks, and leaves so many allocations, the same in each block.
fn fill(lab: &Lab, allocations: u64, all: u64) -> Result<()> {
    let share = all / 16;
    let each = |caller: u64| -> Result<()> {
        let mut client = connect(lab)?;
        for number in caller * share..(caller + 1) * share {
            assign(&mut client, number)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..16).map(|caller| scope.spawn(move || each(caller))).collect();
        callers
            .into_iter()
            .try_for_each(|caller| caller.join().map_err(|_| anyhow!("a caller panicked"))?)
    })?;
    let mut client = connect(lab)?;
    for number in (0..all).filter(|number| {
        number * (all - allocations) / all != (number + 1) * (all - allocations) / all
    }) {
        release(&mut client, number)?;
    }
    let used = lab.node("node1")?.addresses_in_use()?;
    ensure!(used == allocations, "{used} allocations");
    Ok(())
}

fn resident_kib(lab: &Lab) -> Result<u64> {
    let pid = lab.node("node1")?.daemon()?.pid();
    let status = fs::read_to_string(PathBuf::from(format!("/proc/{pid}/status")))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse().ok());
    kib.context("no VmRSS")
}

impl Addresses {
    /// A figure, what it is set against, what it is, and what it should be.
    fn rows(&self) -> Vec<[String; 4]> {
        let (service, bare) = (median(&self.committer.service), median(&self.committer.bare));
        let Rates { assign_us, bare_write_us, .. } = self.committer;
        let (ours, echo, floor) = (self.assign_us, self.echo_us, self.durable_echo_us);
        let mib = |kib: u64| kib as f64 / 1024.0;
        let row = |what: &str, value: String, beside: String, target: &str| {
            [what.to_owned(), value, beside, target.to_owned()]
        };
        vec![
            row(
                "allocate + release, 16 callers, durable",
                format!("{service:.0} /s"),
                format!("{:.2} of the bare committer's {bare:.0} /s", service / bare),
                ">= 0.75",
            ),
            row(
                "one allocation in process, p50",
                format!("{assign_us:.1} us"),
                format!(
                    "{:.2} times a bare write's {bare_write_us:.1} us",
                    assign_us / bare_write_us
                ),
                "",
            ),
            row(
                "one allocation through the socket, p50",
                format!("{ours:.1} us"),
                format!(
                    "{:.2} times an echo's {echo:.1} us; {:.2} times the {floor:.1} us of an echo that \
                     writes as much",
                    ours / echo,
                    ours / floor,
                ),
                "<= 2.0 of the echo, or 1.3 of the one that writes",
            ),
            row(
                "a CHECK through the socket, p50",
                format!("{:.1} us", self.check_us),
                "it writes nothing".to_owned(),
                "",
            ),
            row(
                "writes to the datastore in 100 ADDs with space in the block",
                self.datastore_writes.to_string(),
                String::new(),
                "0",
            ),
            row(
                "claim in a pool of 4,096 blocks, 99 % taken",
                format!("{} listed, {} made", self.claim_listed, self.claim_made),
                format!("ADD in {:.1} ms; under a lock no race is lost", self.claim_ms),
                "1 and 1",
            ),
            row(
                "daemon's memory, 5,000 allocations in 100 blocks",
                format!("{:.1} MiB", mib(self.daemon_kib)),
                format!("{:.1} MiB after a restart", mib(self.restarted_kib)),
                "<= 40",
            ),
            row(
                "its start to the first answer",
                format!("{:.0} ms", self.start_ms),
                String::new(),
                "<= 150",
            ),
        ]
    }

    /// As a table for people.
    pub(crate) fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(ASCII_MARKDOWN).set_header(["addresses", "", "", "target"]);
        table.add_rows(self.rows());
        if let Some(column) = table.column_mut(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!(
            "\nAddresses alone, without links; load average at the end {}.\n\n{table}\n",
            self.load
        )
    }

    /// Writes `ipam.json` and `ipam.md`.
    pub(crate) fn write(&self, directory: &Path) -> Result<()> {
        fs::create_dir_all(directory)?;
        let json = format!("{}\n", serde_json::to_string_pretty(self)?);
        for (file, text) in [("ipam.json", json), ("ipam.md", self.text())] {
            let path = directory.join(file);
            fs::write(&path, text.trim_start())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }
}
