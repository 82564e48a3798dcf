//! A GC and an ADD at the same time, which the runtime should not let happen.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;
use tempfile::TempDir;
use twill_tests::{
    cni::{Attachment, Runtime},
    lab::Node,
    programs,
};

use crate::plugin::{one_node, refusal};

/// The runtime sees to it that no ADD runs during a GC. Where it does not, the pod lives.
pub(crate) fn g_09_an_add_meanwhile_is_left_alone() -> Result<()> {
    let mut lab = one_node()?;
    let (stale, again) = (lab.add_pod("node1", "stale")?, lab.add_pod("node1", "again")?);
    let (early, late) = (lab.bare_pod("node1", "early")?, lab.bare_pod("node1", "late")?);
    let node = lab.node("node1")?;
    let relay = Relay::to(node)?;
    let add = |pod: &Attachment| node.runtime().add(node.namespace(), pod).map(drop);
    // All of it happens when the GC asks who has addresses: these are then in the answer.
    let asked = || {
        node.runtime().del(node.namespace(), again.attachment())?;
        add(again.attachment())?;
        add(early.attachment())
    };
    // And this when it has been answered.
    let answered = || add(late.attachment());
    let gc = |runtime: &Runtime| runtime.gc(node.namespace(), &[]);
    relay.around("attachments", &asked, &answered, gc)??;
    for pod in [&again, &early, &late] {
        node.runtime().check(node.namespace(), pod.attachment())?;
    }
    ensure!(node.addresses_in_use()? == 3, "{} addresses are in use", node.addresses_in_use()?);
    ensure!(
        node.runtime().check(node.namespace(), stale.attachment()).is_err(),
        "it is still there"
    );
    Ok(())
}

/// What a GC has taken does not come back, however often the ADD asks for it: a new one may have
/// another.
pub(crate) fn g_09_an_add_that_lost_its_address_fails_at_once() -> Result<()> {
    let mut lab = one_node()?;
    let web = lab.bare_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let relay = Relay::to(node)?;
    let times = AtomicUsize::new(0);
    let gc = || match times.fetch_add(1, Ordering::Relaxed) {
        0 => node.runtime().gc(node.namespace(), &[]),
        _ => Ok(()),
    };
    let add = |runtime: &Runtime| runtime.add(node.namespace(), web.attachment());
    let error = refusal(relay.around("endpointUp", &gc, &|| Ok(()), add)?)?;
    ensure!(error.code == 11 && error.message.contains("released"), "{error}");
    let times = times.into_inner();
    ensure!(times == 1, "it has asked {times} times");
    let links = web.namespace().ip("-oneline link show")?;
    ensure!(!links.contains("eth0"), "half a pod is left: {links}");
    ensure!(node.addresses_in_use()? == 0, "{} addresses are in use", node.addresses_in_use()?);
    node.runtime().add(node.namespace(), web.attachment())?;
    node.runtime().check(node.namespace(), web.attachment())
}

/// The pod's side of a link fails, and the daemon goes away meanwhile: the ADD says why it fails, and does not wait.
pub(crate) fn an_add_that_fails_by_itself_waits_for_no_daemon() -> Result<()> {
    let mut lab = one_node()?;
    let web = lab.bare_pod("node1", "web")?;
    let node = lab.node("node1")?;
    let mut relay = Relay::to(node)?;
    relay.runtime.set_timeout(4);
    let mut conflist = relay.runtime.conflist().clone();
    // The kernel refuses the second.
    conflist["plugins"][0]["ipam"]["routes"] =
        json!([{"dst": "192.0.2.0/24"}, {"dst": "192.0.2.0/24"}]);
    relay.runtime.set_conflist(conflist);
    let gone = || {
        std::fs::remove_file(relay.dir.path().join("twilld.sock"))?;
        bail!("it has gone")
    };
    let mut added = None;
    let relayed = relay.around("endpointUp", &gone, &|| Ok(()), |runtime| {
        added = Some(runtime.add(node.namespace(), web.attachment()));
        Ok(())
    });
    ensure!(relayed.is_err(), "the daemon was not told of the link");
    let error = refusal(added.context("no ADD")?)?;
    ensure!(error.code == 104 && error.message.contains("192.0.2.0/24"), "{error}");
    Ok(())
}

/// Stands between the plugin and the daemon of a node.
struct Relay {
    daemon: PathBuf,
    dir: TempDir,
    listener: UnixListener,
    runtime: Runtime,
}

impl Relay {
    fn to(node: &Node) -> Result<Self> {
        let dir = tempfile::tempdir_in("/run")?;
        let listener = UnixListener::bind(dir.path().join("twilld.sock"))?;
        let mut conflist = node.runtime().conflist().clone();
        conflist["plugins"][0]["runDir"] = json!(dir.path());
        let runtime = Runtime::new(conflist, vec![programs::directory()?]);
        Ok(Self { daemon: node.socket(), dir, listener, runtime })
    }

    /// Makes a call, and does something when the daemon is asked that question, and when an answer
    /// with that word comes back.
    fn around<T>(
        &self,
        word: &str,
        asked: &(dyn Fn() -> Result<()> + Sync),
        answered: &(dyn Fn() -> Result<()> + Sync),
        call: impl FnOnce(&Runtime) -> Result<T>,
    ) -> Result<Result<T>> {
        let word = format!("\"{word}\"");
        thread::scope(|scope| {
            let relay = scope.spawn(|| self.serve(word.as_bytes(), asked, answered));
            let done = call(&self.runtime);
            // Its end.
            drop(UnixStream::connect(self.dir.path().join("twilld.sock"))?);
            relay.join().map_err(|_| anyhow!("the relay panicked"))??;
            Ok(done)
        })
    }

    /// Until a caller says nothing.
    fn serve(
        &self,
        word: &[u8],
        asked: &(dyn Fn() -> Result<()> + Sync),
        answered: &(dyn Fn() -> Result<()> + Sync),
    ) -> Result<()> {
        loop {
            let (caller, _) = self.listener.accept()?;
            let Some(hello) = frame(&caller)? else {
                return Ok(());
            };
            let daemon = UnixStream::connect(&self.daemon)?;
            (&daemon).write_all(&hello)?;
            thread::scope(|scope| {
                let back = scope.spawn(|| pass_on(&daemon, &caller, word, answered));
                let there = pass_on(&caller, &daemon, word, asked);
                daemon.shutdown(std::net::Shutdown::Both)?;
                let back = back.join().map_err(|_| anyhow!("the relay panicked"))?;
                there.and(back)
            })?;
        }
    }
}

/// Passes on frames to the end of the stream.
fn pass_on(
    from: &UnixStream,
    mut to: &UnixStream,
    word: &[u8],
    first: &(dyn Fn() -> Result<()> + Sync),
) -> Result<()> {
    while let Some(frame) = frame(from)? {
        if frame.windows(word.len()).any(|found| found == word) {
            first()?;
        }
        to.write_all(&frame)?;
    }
    Ok(())
}

/// One frame with its length of four octets, or the end of the stream.
fn frame(mut from: &UnixStream) -> Result<Option<Vec<u8>>> {
    let mut frame = vec![0; 4];
    if from.read(&mut frame[..1])? == 0 {
        return Ok(None);
    }
    from.read_exact(&mut frame[1..])?;
    let length = u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]);
    from.take(length.into()).read_to_end(&mut frame)?;
    Ok(Some(frame))
}
