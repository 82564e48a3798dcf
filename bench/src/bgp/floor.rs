//! The least: `floor/routes.c` for the kernel's part, and the codec by itself.

use std::{
    hint::black_box,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use twill_bgp_proto::wire::{self, HEADER_LENGTH};
use twill_tests::{process, programs};

use super::{
    config::{Plan, peer_address},
    device::{Device, Kind},
    figures::Step,
    stream::{Announcer, Table, prefix, session},
};
use crate::competitor::FILES;

/// Prefixes of the UPDATE by which the codec is measured.
const PREFIXES: u32 = 500;

/// How often it is decoded and encoded.
const TURNS: u32 = 2000;

/// The floor's program, compiled.
pub(crate) fn compile() -> Result<PathBuf> {
    std::fs::create_dir_all(FILES)?;
    let program = Path::new(FILES).join("routes");
    let source = programs::source("bench/floor/routes.c");
    process::run(Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source))?;
    Ok(program)
}

/// Adds and removes so many routes, on links as a device has them.
pub(crate) fn measure(program: &Path, prefixes: u32) -> Result<(Step, Step)> {
    let device = Device::prepare(Kind::Bird, Plan::with_peers(1, false))?;
    let mut command = Command::new(program);
    command.arg(prefixes.to_string()).arg(peer_address(0).to_string()).arg("eth0");
    let output = device.namespace()?.output(&mut command)?;
    let said = process::check("routes", &output)?;
    let times = said
        .split_whitespace()
        .map(|number| Ok(Duration::from_micros(number.parse()?)))
        .collect::<Result<Vec<_>>>()?;
    let [wall, cpu, removed, removed_cpu] = times[..] else {
        anyhow::bail!("routes printed {said:?} in place of four numbers");
    };
    device.finish()?;
    Ok((Step { wall, cpu }, Step { wall: removed, cpu: removed_cpu }))
}

/// Nanoseconds that a prefix costs to decode, and to encode.
pub(crate) fn codec() -> Result<(f64, f64)> {
    let address = peer_address(0);
    let announcer = Announcer { address, asn: 64513, internal: false, prepended: 0 };
    let bytes = announcer.announce(0, Table { prefixes: PREFIXES, shared: PREFIXES })?;
    let session = session(false);
    let body = bytes.get(HEADER_LENGTH..).context("an UPDATE without a header")?;
    let decode = || wire::decode_update(black_box(body), &session);
    let update = decode().map_err(|reset| anyhow::anyhow!("{reset:?}"))?;
    let (attributes, routes) = update.announced.first().context("nothing is announced")?;
    ensure!(routes.len() == PREFIXES as usize, "the UPDATE is split");
    let all = (0..PREFIXES).map(prefix).collect::<Result<Vec<_>>>()?;
    let mut out = Vec::with_capacity(bytes.len());
    let per_prefix = |start: Instant| {
        start.elapsed().as_secs_f64() * 1e9 / f64::from(TURNS) / f64::from(PREFIXES)
    };
    let start = Instant::now();
    for _ in 0..TURNS {
        black_box(decode().is_ok());
    }
    let decoding = per_prefix(start);
    let start = Instant::now();
    for _ in 0..TURNS {
        out.clear();
        let family = twill_types::Family::V4;
        black_box(wire::encode_updates(black_box(attributes), family, &all, &session, &mut out));
    }
    Ok((decoding, per_prefix(start)))
}
