//! Blocks come, go, and are lent, while daemons are killed and stopped and files are damaged and
//! removed at random: no two pods that live ever have one address, and in the end all is as it should be.

use std::{env, fs, io, path::PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use twill_tests::{
    lab::{Lab, Pod, Topology},
    ping,
    random::Random,
    record::record,
    wait::wait_for,
};

use crate::{LONG, plugin::refusal};

/// Says how much happens.
const OPERATIONS: &str = "TWILL_STORM_OPERATIONS";

/// What happens, one after the other, if nothing is said.
const STEPS: usize = 60;

const NODES: [(&str, &str); 3] =
    [("node1", "192.168.2.11"), ("node2", "192.168.2.12"), ("node3", "192.168.2.13")];

/// Fewer blocks than nodes want: two of 8 addresses.
const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: a}\n\
                    spec: {cidr: 10.60.0.0/28, blockSize: 29}\n";

struct Storm {
    lab: Lab,
    random: Random,
    pods: Vec<Pod>,
    /// Daemons that are stopped.
    stopped: Vec<&'static str>,
    /// Files that somebody has spoiled, and what they were.
    spoiled: Vec<(PathBuf, Vec<u8>)>,
    told: Vec<String>,
}

pub(crate) fn no_address_is_given_twice_whatever_happens_to_claims() -> Result<()> {
    let mut topology = Topology::new();
    for (node, address) in NODES {
        topology
            .node(node)
            .on("seg-a", &format!("{address}/24"))
            .settings("ipam: {emptyBlockGraceSeconds: 1, goneNodeGraceSeconds: 3600}\n");
    }
    topology.resource("a.yaml", POOL);
    let mut lab = topology.build()?;
    lab.start_all()?;
    for (node, _) in NODES {
        lab.node_mut(node)?.runtime_mut().set_timeout(2);
    }
    // The short form is the same each time, as far as several processes are.
    let is_long = ["TWILL_SEED", OPERATIONS].iter().any(|name| env::var(name).is_ok());
    let random = if is_long { Random::from_environment() } else { Random::new(4) };
    let said = random.to_string();
    let (pods, stopped, spoiled, told) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut storm = Storm { lab, random, pods, stopped, spoiled, told };
    let outcome = storm.rage().and_then(|()| storm.calm());
    outcome.with_context(|| format!("{said}\n{}", storm.told.join("\n")))?;
    record(&format!("storm of claims: {} things done; {said}", storm.told.len()))
}

impl Storm {
    fn rage(&mut self) -> Result<()> {
        let steps = env::var(OPERATIONS).ok().and_then(|n| n.parse().ok());
        for _ in 0..steps.unwrap_or(STEPS) {
            let (node, _) = NODES[self.random.below(NODES.len())];
            match self.random.below(12) {
                0..=4 => self.add(node)?,
                5..=7 => self.delete()?,
                8 => self.kill(node)?,
                9 => self.stop(node)?,
                10 => self.go_on()?,
                _ => self.spoil()?,
            }
            self.all_different()?;
        }
        Ok(())
    }

    /// A pod, or a good reason for none.
    fn add(&mut self, node: &'static str) -> Result<()> {
        let mut pod = self.lab.bare_pod(node, &format!("p{}", self.told.len()))?;
        match self.lab.attach(&mut pod) {
            Ok(_) => {
                self.told.push(format!("{node}: {:?}", pod.addresses()));
                self.pods.push(pod);
            }
            Err(error) => {
                let error = refusal::<()>(Err(error))?;
                self.told.push(format!("{node}: {error}"));
                ensure!(error.code == 11 || error.code == 101, "{error}");
                // A runtime deletes what could not be added.
                self.lab.detach(&pod)?;
            }
        }
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        if self.pods.is_empty() {
            return Ok(());
        }
        let pod = self.pods.swap_remove(self.random.below(self.pods.len()));
        self.told.push(format!("{}: DEL {:?}", pod.node(), pod.addresses()));
        self.lab.delete_pod(pod)
    }

    fn kill(&mut self, node: &'static str) -> Result<()> {
        self.told.push(format!("{node}: killed"));
        self.stopped.retain(|other| *other != node);
        self.lab.node_mut(node)?.kill9()?;
        self.lab.node_mut(node)?.start()
    }

    fn stop(&mut self, node: &'static str) -> Result<()> {
        if self.stopped.contains(&node) {
            return Ok(());
        }
        self.told.push(format!("{node}: stopped"));
        self.stopped.push(node);
        self.lab.node(node)?.daemon()?.signal(Signal::SIGSTOP)
    }

    /// All daemons go on, and what was spoiled is put back.
    fn go_on(&mut self) -> Result<()> {
        self.told.push("all go on".to_owned());
        for (path, text) in self.spoiled.drain(..) {
            // What was made again meanwhile is newer.
            if fs::read(&path).is_ok_and(|now| now.is_empty()) {
                fs::write(&path, text)?;
            }
        }
        for node in self.stopped.drain(..) {
            self.lab.node(node)?.daemon()?.signal(Signal::SIGCONT)?;
        }
        Ok(())
    }

    /// Damages or removes a claim or a request.
    fn spoil(&mut self) -> Result<()> {
        let mut files = Vec::new();
        for directory in ["claims", "requests"] {
            let entries = fs::read_dir(self.lab.resource(directory))?.flatten();
            let paths = entries.map(|entry| entry.path());
            files.extend(paths.filter(|path| path.extension().is_some_and(|e| e == "yaml")));
        }
        files.sort();
        if files.is_empty() {
            return Ok(());
        }
        let path = files.swap_remove(self.random.below(files.len()));
        if self.random.one_in(2) {
            // Its daemon may have taken it away meanwhile.
            let Ok(text) = fs::read(&path) else { return Ok(()) };
            self.told.push(format!("{} is damaged", path.display()));
            self.spoiled.push((path.clone(), text));
            fs::write(&path, "")?;
        } else {
            self.told.push(format!("{} is removed", path.display()));
            gone(fs::remove_file(&path))?;
        }
        Ok(())
    }

    fn all_different(&self) -> Result<()> {
        let mut addresses: Vec<_> = self
            .pods
            .iter()
            .flat_map(|pod| pod.addresses().iter().map(|ip| (ip, pod.node())))
            .collect();
        addresses.sort();
        let twice = addresses.windows(2).find(|pair| pair[0].0 == pair[1].0);
        ensure!(twice.is_none(), "an address was given twice: {twice:?}");
        Ok(())
    }

    /// When nothing happens any more, all that lives works, and all that is empty goes back.
    fn calm(&mut self) -> Result<()> {
        self.go_on()?;
        // What is damaged and was not put back can only be removed.
        for directory in ["claims", "requests"] {
            for entry in fs::read_dir(self.lab.resource(directory))?.flatten() {
                let path = entry.path();
                let is_empty = fs::metadata(&path).is_ok_and(|file| file.len() == 0);
                if path.extension().is_some_and(|e| e == "yaml") && is_empty {
                    gone(fs::remove_file(&path))?;
                }
            }
        }
        for pod in &self.pods {
            for node in self.lab.nodes() {
                wait_for(&format!("{} to reach {:?}", node.name(), pod.addresses()), LONG, || {
                    ping::reaches(node.namespace(), pod.address()?)
                })?;
            }
        }
        for pod in self.pods.drain(..) {
            self.lab.delete_pod(pod)?;
        }
        wait_for("what is empty to go back", LONG * 2, || {
            let requests = fs::read_dir(self.lab.resource("requests"))?.flatten();
            let open: Vec<_> = requests
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
                .collect();
            ensure!(open.is_empty(), "{open:?}");
            for node in self.lab.nodes() {
                ensure!(node.addresses_in_use()? == 0, "{} has addresses in use", node.name());
                let problems = node.status()?["problems"].clone();
                ensure!(problems.as_array().is_none_or(Vec::is_empty), "{problems}");
            }
            Ok(())
        })
    }
}

/// A daemon may have been faster.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
