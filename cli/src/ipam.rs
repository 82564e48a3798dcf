//! `twillctl ipam`.

mod address;
mod args;
mod check;
mod configure;
mod map;
mod release;
mod svg;
mod table;
mod view;

use std::io::Write;

use anyhow::{Context, bail};
use jiff::{Timestamp, tz::TimeZone};
use twill_rpc::{Client, ClientError};

pub(crate) use self::{
    args::IpamCommand,
    view::{Datastore, Pool},
};
use self::{
    args::{Color, Show},
    view::{Own, View},
};
use crate::{output::emit, resources::Resources};

/// What every command here needs.
pub(crate) struct To<'a> {
    pub(crate) resources: &'a dyn Resources,
    pub(crate) connect: &'a dyn Fn() -> Result<Client, ClientError>,
    pub(crate) out: &'a mut dyn Write,
    pub(crate) err: &'a mut dyn Write,
}

/// Executes one command.
pub(crate) fn run(mut to: To<'_>, command: &IpamCommand) -> anyhow::Result<()> {
    match command {
        IpamCommand::Show(arguments) => show(&mut to, arguments),
        IpamCommand::Release(arguments) => release::run(&mut to, arguments),
        IpamCommand::Configure(arguments) => configure::run(&mut to, arguments),
        IpamCommand::Check(arguments) => check::run(&mut to, arguments),
    }
}

fn show(to: &mut To<'_>, arguments: &Show) -> anyhow::Result<()> {
    let output = arguments.output;
    let now = Timestamp::now();
    let all = to.resources.ipam()?;
    if arguments.configuration {
        let config = all.config.clone().unwrap_or_default();
        return emit(to.out, output, &config, |_| configure::table(&config));
    }
    if let Some(address) = arguments.ip {
        let report = address::find(to, &all, address)?;
        let zone = TimeZone::system();
        return emit(to.out, output, &report, |_| report.text(now, &zone));
    }
    let own = own(to)?;
    let view = View::new(&all, own.as_ref());
    if arguments.show_borrowed {
        let parts: Vec<_> = view.blocks.iter().filter(|block| block.lent_by.is_some()).collect();
        return emit(to.out, output, &parts, |_| table::borrowed(&view));
    }
    let Some(pool) = &arguments.map else {
        let blocks = arguments.show_blocks;
        return emit(to.out, output, &view, |wide| table::table(&view, now, blocks, wide));
    };
    let named = |grid: &map::Grid| pool.as_ref().is_none_or(|name| *name == grid.pool);
    let grids: Vec<map::Grid> = map::grids(&view, &all).into_iter().filter(named).collect();
    if let (Some(name), true) = (pool, grids.is_empty()) {
        bail!("there is no pool {name}; twillctl get ippool lists them");
    }
    if let Some(file) = &arguments.svg {
        let picture = svg::draw(&grids);
        std::fs::write(file, picture)
            .with_context(|| format!("cannot write {}", file.display()))?;
        return Ok(writeln!(to.out, "{} written", file.display())?);
    }
    let color = match arguments.color {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => {
            std::io::IsTerminal::is_terminal(&std::io::stdout())
                && std::env::var_os("NO_COLOR").is_none()
        }
    };
    emit(to.out, output, &grids, |_| {
        let draw = |grid| map::draw(grid, arguments.width, color);
        grids.iter().map(draw).collect::<Vec<_>>().join("\n")
    })
}

/// What this node's daemon says of its own; nothing, and a word about it, where none runs.
fn own(to: &mut To<'_>) -> anyhow::Result<Option<Own>> {
    let ask = || -> Result<Own, ClientError> {
        let mut client = (to.connect)()?;
        let node = client.welcome()?.node.clone();
        Ok(Own { node, status: client.ipam_show()? })
    };
    match ask() {
        Ok(own) => Ok(Some(own)),
        Err(error @ ClientError::NotRunning { .. }) => {
            without_daemon(to, &error)?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Says that no daemon was asked. Who asks an API server may be on any machine.
fn without_daemon(to: &mut To<'_>, error: &ClientError) -> std::io::Result<()> {
    if to.resources.directory().is_none() {
        return Ok(());
    }
    writeln!(to.err, "twillctl: {error}; what follows is what the datastore says")
}

#[cfg(test)]
mod tests;
