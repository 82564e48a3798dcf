//! Nodes without a daemon whose pods have gone without a DEL: an ADD that finds no address takes one of
//! theirs, and never that of a pod that may live.

use std::{fs, net::IpAddr, process::Command};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use twill_ipam_store::{Options, Record, ReleaseRequest, Service, boot_id};
use twill_tests::{
    cni::{self, Attachment, Runtime},
    netns::Namespace,
    ping, programs,
    wait::wait_for,
};
use twill_types::AttachmentId;

use crate::{
    SECONDS,
    plugin::{lone_node, refusal, standalone},
    reconcile::fill,
};

/// A node without a daemon.
struct Alone {
    node: Namespace,
    run_dir: tempfile::TempDir,
    runtime: Runtime,
}

impl Alone {
    fn new(pool: &str, length: u8) -> Result<Self> {
        let (node, run_dir) = (lone_node()?, tempfile::tempdir_in("/run")?);
        let pools = json!([{"cidr": pool, "blockSize": length}]);
        let mut conflist = standalone("1.1.0", run_dir.path(), &pools);
        conflist["plugins"][0]["statusOnExhaustion"] = json!(true);
        let runtime = Runtime::new(conflist, vec![programs::directory()?]);
        Ok(Self { node, run_dir, runtime })
    }

    fn add(&self, pod: &Namespace) -> Result<IpAddr> {
        let result = self.runtime.add(&self.node, &attachment(pod))?;
        cni::addresses(&result)?.first().copied().context("no address")
    }

    /// The pod is as its ADD left it, and answers.
    fn lives(&self, pod: &Namespace, address: IpAddr) -> Result<()> {
        self.runtime.check(&self.node, &attachment(pod))?;
        ping::reaches(&self.node, address)
    }

    /// An ADD for which there is no address.
    fn full(&self, pod: &Namespace) -> Result<()> {
        let error = refusal(self.add(pod))?;
        ensure!(error.code == 101, "{error}");
        Ok(())
    }

    /// Waits until the node has so many links of pods.
    fn wait_for_links(&self, count: usize) -> Result<()> {
        wait_for("links to go with their namespaces", SECONDS, || {
            let links = self.node.ip("-oneline link show type veth")?;
            let left = links.lines().filter(|line| line.contains(": twl")).count();
            ensure!(left == count, "{left} links, not {count}: {links}");
            Ok(())
        })
    }

    /// The store, between two calls.
    fn service(&self) -> Result<Service> {
        let options = Options { boot_id: boot_id()?, hold_freed: false };
        Ok(Service::open(&self.run_dir.path().join("ipam/store"), options)?.0)
    }

    /// As if the only container were started again under its old id, by an ADD that has its address and no link
    /// yet; what the store has then.
    fn start_again(&self, change: impl Fn(&mut Record)) -> Result<Record> {
        let service = self.service()?;
        let mut records = service.records()?;
        let (Some(mut record), true) = (records.pop(), records.is_empty()) else {
            bail!("more than {records:?}, or none");
        };
        let attachment = record.attachment.clone();
        service.release(ReleaseRequest { attachment, sequence: None, netns_cookie: None })?;
        record.sequence += 1;
        change(&mut record);
        ensure!(service.adopt(record.clone())?, "it cannot be written again");
        Ok(record)
    }

    /// Lets two minutes pass for all that the store has, longer than an ADD takes.
    fn age(&self) -> Result<()> {
        let service = self.service()?;
        for record in service.records()? {
            let attachment = record.attachment.clone();
            service.release(ReleaseRequest { attachment, sequence: None, netns_cookie: None })?;
            let created_ms = record.created_ms - 121_000;
            ensure!(service.adopt(Record { created_ms, ..record })?, "it cannot be written again");
        }
        Ok(())
    }
}

/// `eth0` of a container that is called like its namespace.
fn attachment(pod: &Namespace) -> Attachment {
    Attachment::pod("prod", "web", pod.name(), &pod.path().display().to_string())
}

pub(crate) fn an_add_takes_the_address_of_a_pod_that_is_gone() -> Result<()> {
    let alone = Alone::new("10.20.0.0/31", 31)?;
    let pods: Vec<Namespace> =
        ["a", "b", "c", "d"].into_iter().map(Namespace::create).collect::<Result<_>>()?;
    let [gone, kept, next, last] = <[Namespace; 4]>::try_from(pods).ok().context("four")?;
    let (free, own) = (alone.add(&gone)?, alone.add(&kept)?);
    alone.full(&next)?;
    drop(gone);
    alone.wait_for_links(1)?;
    // For all that can be seen an ADD may be at it.
    alone.full(&next)?;
    let error = refusal(alone.runtime.status(&alone.node))?;
    ensure!(error.code == 50, "{error}");

    alone.age()?;
    let given = alone.add(&next)?;
    ensure!(given == free, "{given}, not {free}");
    alone.age()?;
    alone.full(&last)?;
    alone.lives(&kept, own)?;
    alone.lives(&next, given)?;

    drop(next);
    alone.wait_for_links(1)?;
    alone.age()?;
    // What counts is whether an ADD would succeed.
    alone.runtime.status(&alone.node)?;
    alone.lives(&kept, own)?;
    ensure!(alone.add(&last)? == free);
    Ok(())
}

/// Whatever the mode, however many have gone: the wait for a daemon that may be starting is no limit to that.
pub(crate) fn an_add_in_automatic_mode_looks_at_all_that_are_gone() -> Result<()> {
    let mut alone = Alone::new("10.20.0.0/22", 22)?;
    let mut conflist = alone.runtime.conflist().clone();
    conflist["plugins"][0]["ipam"]["mode"] = json!("auto");
    alone.runtime.set_conflist(conflist);
    let (gone, next) = (Namespace::create("gone")?, Namespace::create("next")?);
    alone.add(&gone)?;
    drop(gone);
    alone.wait_for_links(0)?;
    alone.age()?;
    let service = alone.service()?;
    let first = service.records()?.pop().context("no record")?;
    for number in 1..1024 {
        let mut record = first.clone();
        record.attachment.container_id = format!("gone{number}");
        record.netns = format!("/run/netns/gone{number}");
        record.addresses = vec![IpAddr::from((0x0a14_0000_u32 + number).to_be_bytes())];
        ensure!(service.adopt(record)?, "{number} cannot be written");
    }
    drop(service);
    let address = alone.add(&next)?;
    alone.lives(&next, address)
}

/// The address is that of somebody who is gone, and the next one asks for just that.
pub(crate) fn an_address_that_is_asked_for_is_taken_from_a_pod_that_is_gone() -> Result<()> {
    let alone = Alone::new("10.20.0.0/29", 29)?;
    let (gone, next) = (Namespace::create("gone")?, Namespace::create("next")?);
    let free = alone.add(&gone)?;
    let mut asking = attachment(&next);
    asking.args.push(("IP".to_owned(), free.to_string()));
    drop(gone);
    alone.wait_for_links(0)?;
    let error = refusal(alone.runtime.add(&alone.node, &asking))?;
    ensure!(error.code == 103 && error.message.contains("gone"), "{error}");
    alone.age()?;
    let result = alone.runtime.add(&alone.node, &asking)?;
    ensure!(cni::addresses(&result)? == [free], "{result}");
    alone.runtime.check(&alone.node, &asking)
}

/// Its namespace can be seen, or its link.
pub(crate) fn what_may_live_keeps_its_address() -> Result<()> {
    let alone = Alone::new("10.20.0.0/31", 31)?;
    let (unlinked, hidden) = (Namespace::create("unlinked")?, Namespace::create("hidden")?);
    let (next, last) = (Namespace::create("next")?, Namespace::create("last")?);
    let (one, two) = (alone.add(&unlinked)?, alone.add(&hidden)?);
    unlinked.ip("link del eth0")?;
    let mut process = hidden.spawn(Command::new("sleep").arg("1000"))?;
    drop(hidden);
    alone.age()?;
    alone.full(&next)?;
    ping::reaches(&alone.node, two)?;
    // Whoever writes over a link's alias has not taken the pod away.
    let links = alone.node.ip("-o link show type veth")?;
    let host_end = links.split([':', '@']).nth(1).context("no link of a pod")?.trim();
    alone.node.ip(&format!("link set dev {host_end} alias somebody"))?;
    alone.full(&next)?;
    ping::reaches(&alone.node, two)?;

    process.kill()?;
    process.wait()?;
    alone.wait_for_links(0)?;
    ensure!(alone.add(&next)? == two);
    alone.age()?;
    alone.full(&last)?;
    drop(unlinked);
    ensure!(alone.add(&last)? == one);
    Ok(())
}

/// No link says that such a pod lives: its namespace does, and only another one in its place says that
/// it does not, where the plugin may not see all namespaces.
pub(crate) fn another_plugins_pod_lives_in_its_namespace() -> Result<()> {
    let alone = Alone::new("10.20.0.7/32", 32)?;
    let mut ipam = alone.runtime.conflist()["plugins"][0]["ipam"].clone();
    ipam["runDir"] = json!(alone.run_dir.path());
    ipam["gateway"] = json!(false);
    let netconf = json!({"cniVersion": "1.0.0", "name": "lan", "type": "macvlan", "ipam": ipam});
    let add = |pod: &Namespace| -> Result<Value> {
        let environment = attachment(pod).environment("ADD", &[]);
        let stdin = netconf.to_string();
        let output =
            alone.runtime.execute(&alone.node, "twill-ipam", &environment, stdin.as_bytes())?;
        cni::parse("ADD", "twill-ipam", &output)
    };
    let (pod, next) = (Namespace::create("pod")?, Namespace::create("next")?);
    let given = add(&pod)?;
    alone.age()?;
    let error = refusal(add(&next))?;
    ensure!(error.code == 101, "{error}");
    drop(pod);
    let _pod = Namespace::create("pod")?;
    ensure!(add(&next)?["ips"] == given["ips"], "another address than {given}");
    Ok(())
}

/// There is no room for a release, nor for a tombstone, and the one that waits cannot be worked off: the pod
/// goes all the same, and an ADD finds its address later.
pub(crate) fn a_del_succeeds_in_a_run_dir_that_is_full() -> Result<()> {
    let alone = Alone::new("10.20.0.0/31", 31)?;
    let run_dir = alone.run_dir.path();
    mount(Some("tmpfs"), run_dir, Some("tmpfs"), MsFlags::empty(), Some("size=8m"))?;
    let (gone, kept) = (Namespace::create("gone")?, Namespace::create("kept")?);
    let (next, last) = (Namespace::create("next")?, Namespace::create("last")?);
    let (free, own) = (alone.add(&gone)?, alone.add(&kept)?);
    fs::create_dir_all(run_dir.join("spool"))?;
    let other =
        AttachmentId { network: "n".into(), container_id: "other".into(), ifname: "eth0".into() };
    let waits = ReleaseRequest { attachment: other, sequence: Some(1), netns_cookie: None };
    fs::write(run_dir.join("spool/twl0123456789ab-1.json"), serde_json::to_vec(&waits)?)?;
    let filler = run_dir.join("filler");
    fill(&filler)?;
    // As runtimes do, which repeat it until it succeeds.
    for _ in 0..2 {
        alone.runtime.del(&alone.node, &attachment(&gone))?;
        alone.wait_for_links(1)?;
    }
    ping::reaches(&alone.node, own)?;
    drop(gone);
    fs::remove_file(&filler)?;
    alone.full(&next)?;
    alone.age()?;
    ensure!(alone.add(&next)? == free);
    alone.lives(&kept, own)?;
    alone.full(&last)
}

/// A container that is started again under its old id, and the DEL of the old one comes between the address of its
/// ADD and its link: without a namespace it cannot know that the address is not its own.
pub(crate) fn a_late_del_without_a_namespace_leaves_a_running_add_its_address() -> Result<()> {
    let alone = Alone::new("10.20.0.0/31", 31)?;
    let pod = Namespace::create("pod")?;
    let given = alone.add(&pod)?;
    let record = alone.start_again(|_| {})?;
    let late = Attachment { netns: String::new(), ..attachment(&pod) };
    alone.runtime.del(&alone.node, &late)?;
    alone.wait_for_links(0)?;
    let held = alone.service()?.lookup(&record.attachment)?.context("it is released")?;
    let expected = (record.sequence, &[given][..]);
    ensure!((held.sequence, held.addresses.as_slice()) == expected, "{held:?}");
    // Without a link of an earlier ADD there is nothing else that the DEL can mean.
    alone.runtime.del(&alone.node, &late)?;
    ensure!(alone.service()?.records()?.is_empty());
    Ok(())
}

/// The same where that ADD was killed before it made a link, and its namespace is gone, or another one is at its
/// path: no DEL comes that means it more.
pub(crate) fn a_del_without_a_namespace_frees_what_a_killed_add_had() -> Result<()> {
    let alone = Alone::new("10.20.0.0/31", 31)?;
    let pod = Namespace::create("pod")?;
    let gone = |record: &mut Record| record.netns.push_str("-gone");
    let replaced = |record: &mut Record| record.netns_cookie = Some(1);
    for change in [&gone as &dyn Fn(&mut Record), &replaced] {
        alone.add(&pod)?;
        alone.start_again(change)?;
        let late = Attachment { netns: String::new(), ..attachment(&pod) };
        alone.runtime.del(&alone.node, &late)?;
        alone.wait_for_links(0)?;
        let records = alone.service()?.records()?;
        ensure!(records.is_empty(), "{records:?}");
    }
    Ok(())
}
