//! The same without a daemon: the plugin has the store open itself.

use anyhow::Result;
use serde_json::json;
use twill_tests::{cni::Runtime, netns::Namespace, programs};

use super::{Place, as_before, quiet, sweep};
use crate::plugin::{lone_node, standalone};

/// A store that is opened in the plugin makes a call twice as long and three times as slow.
pub(super) const ALONE: usize = 9;

/// A node without a daemon, with one address for all of its pods: whoever leaks it is found out by
/// the next. `work` gets container ids, which are used once.
pub(super) fn alone(work: impl FnOnce(&Place<'_>) -> Result<()>) -> Result<()> {
    let host = lone_node()?;
    let pod = Namespace::create("pod")?;
    let run_dir = tempfile::tempdir_in("/run")?;
    let pools = json!([{"cidr": "10.20.0.7/32", "blockSize": 32}]);
    let mut conflist = standalone("1.1.0", run_dir.path(), &pools);
    conflist["plugins"][0]["logFile"] = json!(run_dir.path().join("twill.log"));
    let runtime = Runtime::new(conflist, vec![programs::directory()?]);
    let place =
        Place { host: &host, runtime: &runtime, run_dir: run_dir.path().to_owned(), pod: &pod };
    place.round(&place.attachment("first"))?;
    let before = quiet(&place)?;
    work(&place)?;
    place.round(&place.attachment("last"))?;
    as_before(&place, &before)
}

pub(crate) fn alone_del_undoes_an_add_killed_anywhere() -> Result<()> {
    alone(|place| {
        sweep(ALONE, |at| {
            let attachment = place.attachment(&format!("c{at}"));
            let killed = place.killed("ADD", &attachment, at)?;
            place.del(&attachment)?;
            place.round(&place.attachment(&format!("c{at}-next")))?;
            Ok(killed)
        })
    })
}

/// Nobody calls the DEL: the runtime has forgotten the container, and lists it no more.
pub(crate) fn alone_gc_undoes_an_add_killed_anywhere() -> Result<()> {
    alone(|place| {
        sweep(ALONE, |at| {
            let attachment = place.attachment(&format!("c{at}"));
            let killed = place.killed("ADD", &attachment, at)?;
            place.gc(&[])?;
            place.no_pod()?;
            place.round(&place.attachment(&format!("c{at}-next")))?;
            Ok(killed)
        })
    })
}

pub(crate) fn alone_an_add_killed_anywhere_may_be_repeated() -> Result<()> {
    alone(|place| {
        sweep(ALONE, |at| {
            let attachment = place.attachment(&format!("c{at}"));
            let killed = place.killed("ADD", &attachment, at)?;
            place.round(&attachment)?;
            Ok(killed)
        })
    })
}

pub(crate) fn alone_a_del_killed_anywhere_may_be_repeated() -> Result<()> {
    alone(|place| {
        sweep(ALONE, |at| {
            let attachment = place.attachment(&format!("c{at}"));
            place.add(&attachment)?;
            let killed = place.killed("DEL", &attachment, at)?;
            place.del(&attachment)?;
            Ok(killed)
        })
    })
}
