//! `twill-ipam` killed under another main plugin, and `twill` killed over another IPAM plugin.

use std::{fs, net::IpAddr, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use twill_tests::{
    cni::{self, Attachment, Invocation, Runtime},
    lab::Lab,
    netns::Namespace,
    programs,
};

use super::{
    Place, SOME, alone::ALONE, as_before, at_node, files, node, nothing_allocated, quiet, sweep,
    sweep_of,
};
use crate::plugin::lone_node;

/// Our other name.
const IPAM: &str = "twill-ipam";

/// What a call for addresses alone makes at the least: it has no links to make.
const LEAST: usize = 40;

impl Place<'_> {
    /// A call by our other name, as the main plugin of the list makes it.
    fn ipam_call(&self, verb: &str, attachment: &Attachment) -> Result<Invocation> {
        if verb != "GC" {
            return self.runtime.first_call(verb, attachment);
        }
        let mut call = self.runtime.first_gc(&[])?;
        // Debian's main plugins speak nothing newer than 1.0.0, and pass no GC on.
        call.netconf["cniVersion"] = json!("1.1.0");
        Ok(call)
    }

    fn ipam(&self, verb: &str, attachment: &Attachment) -> Result<Value> {
        let call = self.ipam_call(verb, attachment)?;
        let stdin = call.stdin();
        let output = self.runtime.execute(self.host, IPAM, &call.environment, stdin.as_bytes())?;
        cni::parse(verb, IPAM, &output)
    }

    /// One that is killed at its `at`-th system call; false if it ended well before.
    fn killed_ipam(&self, verb: &str, attachment: &Attachment, at: usize) -> Result<bool> {
        self.killed_call(IPAM, verb, &self.ipam_call(verb, attachment)?, at)
    }
}

/// Like `with_daemon`, with `ptp` as the main plugin.
fn under_ptp(work: impl FnOnce(&Lab, &Place<'_>, &Attachment) -> Result<()>) -> Result<()> {
    let mut lab = node()?;
    let run_dir = lab.node("node1")?.dir().join("run");
    let ptp = json!({"type": "ptp", "ipam": {"type": IPAM, "mode": "daemon", "runDir": run_dir,
        "gcGraceSeconds": 0}});
    let conflist = json!({"cniVersion": "1.0.0", "name": "lan", "plugins": [ptp]});
    lab.node_mut("node1")?.runtime_mut().set_conflist(conflist);
    at_node(lab, work)
}

/// `ptp` fails with it, and the runtime calls DEL, or ADD once more.
pub(crate) fn ipam_an_add_killed_anywhere_is_undone_or_repeated() -> Result<()> {
    under_ptp(|lab, place, attachment| {
        sweep_of(LEAST, SOME, |at| {
            place.killed_ipam("ADD", attachment, at)?;
            place.del(attachment)?;
            nothing_allocated(lab)?;
            let killed = place.killed_ipam("ADD", attachment, at)?;
            place.round(attachment)?;
            nothing_allocated(lab)?;
            Ok(killed)
        })
    })
}

pub(crate) fn ipam_a_del_or_gc_killed_anywhere_may_be_repeated() -> Result<()> {
    under_ptp(|lab, place, attachment| {
        ["DEL", "GC"].into_iter().try_for_each(|verb| {
            sweep_of(LEAST, SOME, |at| {
                place.ipam("ADD", attachment)?;
                let killed = place.killed_ipam(verb, attachment, at)?;
                place.ipam(verb, attachment)?;
                nothing_allocated(lab)?;
                Ok(killed)
            })
            .context(verb)
        })
    })
}

/// Without a daemon, and with one address for all: whoever leaks it is found out by the next.
pub(crate) fn alone_ipam_killed_anywhere_leaks_nothing() -> Result<()> {
    let (host, pod) = (lone_node()?, Namespace::create("pod")?);
    let run_dir = tempfile::tempdir_in("/run")?;
    let ipam = json!({"type": IPAM, "mode": "standalone", "runDir": run_dir.path(),
        "gcGraceSeconds": 0, "gateway": false, "pools": [{"cidr": "10.20.0.7/32", "blockSize": 32}]});
    let plugins = json!([{"type": "macvlan", "master": "eth0", "ipam": ipam}]);
    let conflist = json!({"cniVersion": "1.0.0", "name": "lan", "plugins": plugins});
    let runtime = Runtime::new(conflist, vec![programs::directory()?]);
    let place =
        Place { host: &host, runtime: &runtime, run_dir: run_dir.path().to_owned(), pod: &pod };
    for (verb, after) in [("ADD", "DEL"), ("ADD", "GC"), ("DEL", "DEL"), ("GC", "GC")] {
        let sweep = sweep_of(LEAST, 2 * ALONE, |at| {
            let attachment = place.attachment(&format!("{verb}-{after}-{at}"));
            if verb != "ADD" {
                place.ipam("ADD", &attachment)?;
            }
            let killed = place.killed_ipam(verb, &attachment, at)?;
            place.ipam(after, &attachment)?;
            let next = place.attachment(&format!("{verb}-{after}-{at}-next"));
            place.ipam("ADD", &next)?;
            place.ipam("DEL", &next)?;
            place.no_pod()?;
            Ok(killed)
        });
        sweep.with_context(|| format!("{verb}, then {after}"))?;
    }
    Ok(())
}

/// Another plugin has one address for all. It dies with the call that has executed it, wherever that
/// happens to be.
pub(crate) fn over_host_local_del_undoes_what_was_killed_anywhere() -> Result<()> {
    let (host, pod) = (lone_node()?, Namespace::create("pod")?);
    let run_dir = tempfile::tempdir_in("/run")?;
    let data = run_dir.path().join("data");
    let range =
        json!({"subnet": "10.77.0.0/29", "rangeStart": "10.77.0.2", "rangeEnd": "10.77.0.2"});
    let ipam = json!({"type": "host-local", "dataDir": data, "ranges": [[range]]});
    let plugins = json!([{"type": "twill", "runDir": run_dir.path(), "ipam": ipam}]);
    let conflist = json!({"cniVersion": "1.0.0", "name": "lan", "plugins": plugins});
    let path = vec![programs::directory()?, programs::REFERENCE_PLUGINS.into()];
    let runtime = Runtime::new(conflist, path);
    let place =
        Place { host: &host, runtime: &runtime, run_dir: run_dir.path().to_owned(), pod: &pod };
    place.round(&place.attachment("first"))?;
    let before = quiet(&place)?;
    for verb in ["ADD", "DEL"] {
        let sweep = sweep(2 * SOME, |at| {
            let attachment = place.attachment(&format!("{verb}-{at}"));
            if verb == "DEL" {
                place.add(&attachment)?;
            }
            let killed = place.killed(verb, &attachment, at)?;
            place.del(&attachment)?;
            nothing_reserved(&data.join("lan"))?;
            place.round(&place.attachment(&format!("{verb}-{at}-next")))?;
            Ok(killed)
        });
        sweep.context(verb)?;
    }
    as_before(&place, &before)
}

/// No address has an owner after a DEL. `host-local` makes a file for an address and writes the owner into
/// it then: if it dies between the two, nobody can know whose that was, and it never frees it
/// (containernetworking/plugins issue 498). That is the only thing that may be left.
fn nothing_reserved(directory: &Path) -> Result<()> {
    for name in files(directory)? {
        if name.parse::<IpAddr>().is_err() {
            continue;
        }
        let owner = fs::read_to_string(directory.join(&name))?;
        ensure!(owner.is_empty(), "{name} is reserved still, for {owner:?}");
        fs::remove_file(directory.join(&name))?;
    }
    Ok(())
}
