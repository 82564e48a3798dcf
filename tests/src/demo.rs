//! `make demo`: the main job, from empty namespaces to a rack with traffic and back to nothing.

use std::{
    fmt::Display,
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Instant,
};

use anyhow::Result;

use crate::{rack, sandbox, snapshot::Snapshot};

mod restart;
mod show;
mod teardown;

/// Runs the demo; success only if every step was as it should be.
pub fn run() -> ExitCode {
    let mut screen = Screen::new();
    let Err(error) = steps(&mut screen) else {
        return ExitCode::SUCCESS;
    };
    for (log, end) in sandbox::logs(25) {
        screen.say(format_args!("---- {} (end)\n{end}", log.display()));
    }
    screen.say(format_args!("\nThe demo FAILED in step {}: {error:#}", screen.steps));
    ExitCode::FAILURE
}

fn steps(screen: &mut Screen) -> Result<()> {
    let before = Snapshot::host()?;
    screen.step("A ToR (BIRD, AS 64513) and three nodes (AS 64512), each in a namespace");
    let mut lab = rack::topology()?.build()?;
    screen.say(show::TOPOLOGY);
    screen.say(format_args!("manifests, as they stand: {}", rack::MANIFESTS.join(", ")));
    let clean = teardown::Clean::of(&lab)?;

    screen.step("twilld on every node; sessions with the ToR and with each other");
    lab.start_all()?;
    screen.good("three daemons serve their sockets");
    rack::wait_established(&lab)?;
    screen.good("all sessions are established: 3 with the ToR, 3 between the nodes (mesh)");

    screen.step("Three pods on node1, three on node2, through the CNI binary");
    let pods = show::add_pods(&mut lab, screen)?;
    rack::wait_routes(&lab, &["node1", "node2"])?;
    screen.good("the ToR and all nodes have routes to both blocks");

    screen.step("What the operator sees");
    show::status(&lab, screen)?;

    screen.step("What the ToR sees");
    show::tor(&lab, screen)?;

    screen.step("Everyone pings everyone (10 requests a pair, 10 ms apart)");
    show::matrix(&lab, &pods, screen)?;

    screen.step("node3 has no label env: no pool selects it");
    show::refused(&mut lab, screen)?;

    screen.step("kill -9 for node2's daemon, while every pair pings every 10 ms");
    restart::run(&mut lab, &pods, screen)?;

    screen.step("Everything is deleted");
    teardown::run(lab, pods, &clean, screen)?;
    let left = before.differences(&Snapshot::host()?);
    anyhow::ensure!(left.is_empty(), "the host is not as before: {left:#?}");
    screen.good("links, routes, rules, namespaces, mounts, processes: as before the demo");
    screen.end();
    Ok(())
}

/// Where the demo writes.
struct Screen {
    started: Instant,
    steps: u32,
    color: bool,
}

impl Screen {
    fn new() -> Self {
        Self { started: Instant::now(), steps: 0, color: io::stdout().is_terminal() }
    }

    /// A line, or more. Whoever reads may have gone; the demo's end tells all the same.
    fn say(&self, text: impl Display) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{text}");
        let _ = out.flush();
    }

    fn step(&mut self, title: &str) {
        self.steps += 1;
        let seconds = self.started.elapsed().as_secs_f64();
        let (bold, plain) = self.colors("\x1b[1m");
        self.say(format_args!("\n{bold}{}. {title}{plain}  ({seconds:.1} s)", self.steps));
    }

    fn good(&self, text: impl Display) {
        let (green, plain) = self.colors("\x1b[32m");
        self.say(format_args!("  {green}ok{plain}  {text}"));
    }

    /// What a program printed, with the command that anyone may try.
    fn output(&self, command: &str, text: &str) {
        let (dim, plain) = self.colors("\x1b[36m");
        self.say(format_args!("  {dim}$ {command}{plain}"));
        for line in text.lines() {
            self.say(format_args!("    {line}"));
        }
    }

    fn end(&self) {
        let (green, plain) = self.colors("\x1b[1;32m");
        let seconds = self.started.elapsed().as_secs_f64();
        self.say(format_args!(
            "\n{green}All {} steps as they should be{plain}, {seconds:.1} s.",
            self.steps
        ));
    }

    fn colors(&self, code: &'static str) -> (&'static str, &'static str) {
        if self.color { (code, "\x1b[0m") } else { ("", "") }
    }
}
