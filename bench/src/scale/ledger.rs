//! What was asked, sent and used, phase by phase.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    audit::{Audited, ObjectRef, is_counted},
    site::Site,
};

/// What the kernel counts processor time in.
const TICKS: f64 = 100.0;

/// What happened in a phase.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Figures {
    /// Requests of node daemons: `verb resource`.
    pub(super) requests: BTreeMap<String, u64>,
    /// Octets from the API server to the nodes, headers and encryption included.
    pub(super) octets: u64,
    /// By resource: events sent to all who watch, and their octets before encryption.
    pub(super) events: BTreeMap<String, (u64, u64)>,
    /// Processor seconds by program.
    pub(super) cpu: BTreeMap<String, f64>,
}

/// What the counters were when they were read last.
pub(super) struct Ledger {
    last: Figures,
}

impl Ledger {
    pub(super) fn open(site: &Site) -> Result<Self> {
        Ok(Self { last: read(site)? })
    }

    /// What happened since this was asked last.
    pub(super) fn turn(&mut self, site: &Site) -> Result<Figures> {
        let now = read(site)?;
        let last = std::mem::replace(&mut self.last, now.clone());
        let requests = now.requests.into_iter().map(|(request, count)| {
            let before = last.requests.get(&request).copied().unwrap_or_default();
            (request, count - before)
        });
        let events = now.events.into_iter().map(|(resource, (count, octets))| {
            let (before, sent) = last.events.get(&resource).copied().unwrap_or_default();
            (resource, (count - before, octets - sent))
        });
        let cpu = now.cpu.into_iter().map(|(program, seconds)| {
            // Another process of that name starts at nothing.
            let before = last.cpu.get(&program).copied().filter(|before| *before <= seconds);
            (program, seconds - before.unwrap_or_default())
        });
        Ok(Figures {
            requests: requests.filter(|(_, count)| *count > 0).collect(),
            octets: now.octets - last.octets,
            events: events.filter(|(_, (count, _))| *count > 0).collect(),
            cpu: cpu.collect(),
        })
    }
}

fn read(site: &Site) -> Result<Figures> {
    let mut cpu = BTreeMap::new();
    for (program, pid) in processes(site)? {
        cpu.insert(program, cpu_seconds(pid)?);
    }
    Ok(Figures { requests: requests(site)?, octets: site.octets()?, events: events(site)?, cpu })
}

/// Out of the audit log and those before it: the server begins another one when it is large.
fn requests(site: &Site) -> Result<BTreeMap<String, u64>> {
    let mut requests = BTreeMap::new();
    for entry in fs::read_dir(site.api.directory())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !(name.starts_with("audit") && name.ends_with(".log")) {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        // The last line may be half written.
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            let line: Audited = serde_json::from_str(line)?;
            if is_counted(&line) {
                let (verb, ObjectRef { resource, subresource }) = (line.verb, line.object_ref);
                let slash = if subresource.is_empty() { "" } else { "/" };
                *requests.entry(format!("{verb} {resource}{slash}{subresource}")).or_default() += 1;
            }
        }
    }
    Ok(requests)
}

/// As the API server counts what it sends to those who watch.
fn events(site: &Site) -> Result<BTreeMap<String, (u64, u64)>> {
    let text = site.api.kubectl().run(&["get", "--raw", "/metrics"])?;
    let mut events: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("apiserver_watch_events_sizes_") else { continue };
        let Some((kind, rest)) = rest.split_once('{') else { continue };
        let Some((labels, value)) = rest.rsplit_once("} ") else { continue };
        let label = |name: &str| {
            let value = labels.split(',').find_map(|label| label.strip_prefix(name));
            value.map(|value| value.trim_matches(['=', '"']).to_owned())
        };
        let resource = label("resource=").or_else(|| label("kind="));
        let entry = events.entry(resource.unwrap_or_default()).or_default();
        // Large numbers are written as 1.2e+07; none is below nothing.
        let value: f64 = value.parse().with_context(|| format!("no number: {line}"))?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        match kind {
            "count" => entry.0 += value as u64,
            "sum" => entry.1 += value as u64,
            _ => {}
        }
    }
    Ok(events)
}

/// Resident memory by program, in octets.
pub(super) fn memory(site: &Site) -> Result<BTreeMap<String, u64>> {
    let mut memory = BTreeMap::new();
    for (program, pid) in processes(site)? {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = kib.and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        let kib = kib.with_context(|| format!("the memory of {program} is not told"))?;
        memory.insert(program, kib * 1024);
    }
    Ok(memory)
}

/// How many connections to the API server the nodes have.
pub(super) fn connections(site: &Site) -> Result<usize> {
    const ESTABLISHED: &str = "01";
    let fleet = site.fleet.as_ref().context("no nodes run")?;
    let table = fs::read_to_string(format!("/proc/{}/net/tcp", fleet.pid()))?;
    // Number, local, remote, state.
    let is_open = |line: &&str| line.split_whitespace().nth(3) == Some(ESTABLISHED);
    Ok(table.lines().filter(is_open).count())
}

/// The programs that count, by name. Nothing else runs in this sandbox.
fn processes(site: &Site) -> Result<BTreeMap<String, u32>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if ["etcd", "kube-apiserver"].contains(&name.trim()) {
            found.insert(name.trim().to_owned(), pid);
        }
    }
    found.insert("controller".to_owned(), site.controller.pid());
    if let Some(fleet) = &site.fleet {
        found.insert("nodes".to_owned(), fleet.pid());
    }
    Ok(found)
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Behind the name, which may hold anything, in parentheses; there, utime and stime are the 12th and 13th.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    Ok(ticks / TICKS)
}
