//! Pods of other main plugins whose records are lost with the store: no link of ours tells of them, but the
//! runtime's library (libcni) keeps the result of each ADD in a file until the DEL.
//!
//! What it keeps outlives a boot, so only a pod counts of which the file is of this one and the namespace may
//! still be there. Nothing of this hinders a start.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use k8s_openapi::ByteString;
use nix::{
    fcntl::OFlag,
    time::{ClockId, clock_gettime},
};
use serde::Deserialize;
use serde_json::Value;
use tracing::{debug, info, warn};
use twill_ipam::Record;
use twill_ipam_store::{Service, StoreError, now_ms};
use twill_sys::AtPath;
use twill_types::AttachmentId;

/// What libcni 0.7 and later writes. Files of older ones are bare results, which do not say whose they are.
const KIND: &str = "cniCacheV1";

/// `ipam.runDir` of a network configuration that names none.
const RUN_DIR: &str = "/run/twill";

/// The most octets of one file.
const MOST: u64 = 1 << 20;

/// A file of the cache.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached {
    kind: String,
    container_id: String,
    /// The configuration, or the list of them.
    config: ByteString,
    if_name: String,
    network_name: String,
    #[serde(default)]
    netns: PathBuf,
    #[serde(default)]
    cni_args: Vec<(String, String)>,
    #[serde(default)]
    result: Outcome,
}

#[derive(Default, Deserialize)]
struct Outcome {
    #[serde(default)]
    ips: Vec<Address>,
    /// Of versions before 0.3.0.
    ip4: Option<Address>,
    ip6: Option<Address>,
}

#[derive(Deserialize)]
struct Address {
    /// With the length of its prefix.
    #[serde(alias = "ip")]
    address: String,
}

/// What living pods of other main plugins have by these caches, the latest first, for a store that is lost: of
/// one that holds any record, who has none was freed. `run_dir` tells this node from others on the same host.
pub(crate) fn read(
    service: &Service,
    directories: &[PathBuf],
    run_dir: &Path,
) -> Result<Vec<Record>, StoreError> {
    if !service.records()?.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for directory in directories {
        match read_directory(directory, run_dir) {
            Ok(records) => found.extend(records),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                warn!(directory = %directory.display(), %error, "cannot read the runtime's cache of results");
            }
        }
    }
    // Of two with one address, the later one has it.
    found.sort_by_key(|(written, _)| Reverse(*written));
    Ok(found.into_iter().map(|(_, record)| record).collect())
}

/// Writes them down, unless a pod has a record; says how many had none.
pub(crate) fn adopt(service: &Service, found: Vec<Record>) -> Result<usize, StoreError> {
    let records = service.records()?;
    let mut known: BTreeSet<_> = records.into_iter().map(|record| record.attachment).collect();
    let mut count = 0;
    for record in found {
        let (attachment, addresses) = (record.attachment.clone(), record.addresses.clone());
        if !known.insert(attachment.clone()) {
            continue;
        }
        // It has the number that the next ADD would have: a DEL of this pod names none.
        let sequence = service.sequence()? + 1;
        if service.adopt(Record { sequence, ..record })? {
            info!(%attachment, ?addresses, "record read from the runtime's cache of results");
            count += 1;
        } else {
            warn!(%attachment, ?addresses, "another pod has the address");
        }
    }
    Ok(count)
}

fn read_directory(directory: &Path, run_dir: &Path) -> io::Result<Vec<(SystemTime, Record)>> {
    let running = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
    let boot = SystemTime::now().checked_sub(running).unwrap_or(SystemTime::UNIX_EPOCH);
    let (mut records, mut older) = (Vec::new(), 0);
    let left_out = |what: &Path, error: io::Error| {
        warn!(file = %what.display(), %error, "a result of the runtime's cache is left out");
    };
    for entry in fs::read_dir(directory)? {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                left_out(directory, error);
                continue;
            }
        };
        match read_file(&path) {
            // What is of an earlier boot tells of no namespace of this one.
            Ok((written, _)) if written < boot => older += 1,
            Ok((written, text)) => match serde_json::from_slice(&text) {
                Ok(cached) => records.extend(record(cached, run_dir).map(|found| (written, found))),
                Err(error) => {
                    debug!(file = %path.display(), %error, "not a result as libcni writes it");
                }
            },
            Err(error) => left_out(&path, error),
        }
    }
    if older > 0 {
        info!(files = older, "results of before the boot are left out of the runtime's cache");
    }
    Ok(records)
}

/// What a file has, and when that was written.
fn read_file(path: &Path) -> io::Result<(SystemTime, Vec<u8>)> {
    // What is no file must not keep the start waiting.
    let flags = (OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MOST {
        return Err(io::Error::other(format!("no file of at most {MOST} octets")));
    }
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text)?;
    Ok((metadata.modified()?, text))
}

fn is_same(one: &Path, other: &Path) -> bool {
    let whole = || Some(fs::canonicalize(one).ok()? == fs::canonicalize(other).ok()?);
    one == other || whole().unwrap_or(false)
}

/// The record of a pod that may live, and whose addresses are of this node's store.
fn record(cached: Cached, run_dir: &Path) -> Option<Record> {
    let config: Value = serde_json::from_slice(&cached.config.0).ok()?;
    // The first plugin of a list makes the interface.
    let main = config.get("plugins").map_or(Some(&config), |plugins| plugins.get(0))?;
    let ipam = &main["ipam"];
    let is_ours = cached.kind == KIND
        // Its link tells of a pod of ours, and without one it does not reach its addresses.
        && main["type"] != "twill"
        && ipam["type"] == "twill-ipam"
        && is_same(Path::new(ipam["runDir"].as_str().unwrap_or(RUN_DIR)), run_dir);
    // A process's number is another's after a boot.
    if !is_ours || cached.netns.starts_with("/proc") {
        return None;
    }
    let netns_cookie = match twill_sys::look(&cached.netns) {
        Ok(AtPath::Nothing) | Err(_) => return None,
        Ok(AtPath::Namespace(cookie)) => cookie,
        // It may be one that this process cannot see.
        Ok(AtPath::Plain) => None,
    };
    let Outcome { ips, ip4, ip6 } = cached.result;
    let address = |ip: Address| -> Option<IpAddr> { ip.address.split('/').next()?.parse().ok() };
    let addresses: Vec<IpAddr> =
        ips.into_iter().chain(ip4).chain(ip6).filter_map(address).collect();
    if addresses.is_empty() {
        return None;
    }
    let argument = |key: &str| {
        let found = cached.cni_args.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.clone())
    };
    Some(Record {
        addresses,
        sequence: 0,
        netns: cached.netns.to_str()?.to_owned(),
        netns_cookie,
        pod: argument("K8S_POD_NAMESPACE")
            .zip(argument("K8S_POD_NAME"))
            .map(|(namespace, name)| format!("{namespace}/{name}")),
        pod_uid: argument("K8S_POD_UID"),
        foreign: true,
        created_ms: now_ms(),
        attachment: AttachmentId {
            network: cached.network_name,
            container_id: cached.container_id,
            ifname: cached.if_name,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::symlink};

    use nix::{sys::stat::Mode, unistd::mkfifo};
    use serde_json::json;
    use twill_ipam_store::{MemoryStore, Options};

    use super::*;

    fn service() -> Service {
        let options = Options { boot_id: "boot".to_owned(), hold_freed: true };
        Service::with_store(Box::new(MemoryStore::default()), options).unwrap()
    }

    fn list(main: &str, ipam: Value) -> Value {
        json!({"cniVersion": "1.0.0", "name": "lan", "plugins": [{"type": main, "ipam": ipam}]})
    }

    /// A file as libcni writes it.
    fn cached(container: &str, config: &Value, netns: &Path, addresses: &[&str]) -> String {
        let ips: Vec<_> = addresses.iter().map(|address| json!({"address": address})).collect();
        json!({
            "kind": "cniCacheV1",
            "containerId": container,
            "config": ByteString(config.to_string().into_bytes()),
            "ifName": "eth0",
            "networkName": "lan",
            "netns": netns,
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "prod"], ["K8S_POD_NAME", "db"]],
            "result": {"cniVersion": "1.0.0", "ips": ips, "dns": {}},
        })
        .to_string()
    }

    /// What a start takes from these caches.
    fn start(service: &Service, caches: &[PathBuf], run_dir: &Path) -> usize {
        adopt(service, read(service, caches, run_dir).unwrap()).unwrap()
    }

    fn ours() -> Value {
        json!({"type": "twill-ipam"})
    }

    /// A cache in which each file is older than the one before.
    fn cache(directory: &Path, files: &[(&str, String)]) -> PathBuf {
        let results = directory.join("results");
        fs::create_dir(&results).unwrap();
        let mut modified = SystemTime::now();
        for (name, text) in files {
            let mut file = fs::File::create(results.join(name)).unwrap();
            file.write_all(text.as_bytes()).unwrap();
            file.set_modified(modified).unwrap();
            modified -= Duration::from_millis(10);
        }
        results
    }

    fn addresses(service: &Service) -> Vec<String> {
        let records = service.records().unwrap();
        records.iter().flat_map(|record| &record.addresses).map(ToString::to_string).collect()
    }

    #[test]
    fn what_lives_and_has_no_record_is_written_down() {
        let directory = tempfile::tempdir().unwrap();
        let (there, gone) = (directory.path().join("there"), directory.path().join("gone"));
        // As a namespace looks whose mount does not reach this process.
        fs::write(&there, "").unwrap();
        let bridge = list("bridge", ours());
        let one = json!({"type": "macvlan", "name": "lan", "ipam": ours()});
        let of = |ipam| list("bridge", ipam);
        let at = |container, config, address| cached(container, config, &there, &[address]);
        let process = Path::new("/proc/self/ns/net");
        let unclear = there.join("below a file");
        let older = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.9/24"}, "ip6": {"ip": "fd00::9/64"}});
        let mut old: Value = serde_json::from_str(&cached("old", &bridge, &there, &[])).unwrap();
        old["result"] = older;
        let files = [
            ("the later one", cached("a", &bridge, &there, &["10.0.0.1/24", "fd00::1/64"])),
            ("b", at("b", &one, "10.0.0.2/24")),
            ("before", cached("before", &bridge, &there, &["10.0.0.1/24"])),
            ("gone", cached("gone", &bridge, &gone, &["10.0.0.3/24"])),
            ("process", cached("p", &bridge, process, &["10.0.0.4/24"])),
            ("unclear", cached("u", &bridge, &unclear, &["10.0.0.10/24"])),
            ("own", at("own", &list("twill", ours()), "10.0.0.5/24")),
            ("other", at("other", &of(json!({"type": "host-local"})), "10.0.0.6/24")),
            (
                "another node's",
                at("n", &of(json!({"type": "twill-ipam", "runDir": "/run/2"})), "10.0.0.7/24"),
            ),
            ("none", cached("d", &bridge, &there, &[])),
            ("0.2.0", old.to_string()),
            ("bare", json!({"ips": [{"address": "10.0.0.8/24"}]}).to_string()),
            ("garbage", "{".to_owned()),
        ];
        let results = cache(directory.path(), &files);
        fs::create_dir(results.join("directory")).unwrap();
        let service = service();
        let caches = [directory.path().join("missing"), there, results];
        assert_eq!(start(&service, &caches, Path::new(RUN_DIR)), 3);
        let mut found = addresses(&service);
        found.sort_unstable();
        assert_eq!(found, ["10.0.0.1", "10.0.0.2", "10.0.0.9", "fd00::1", "fd00::9"]);
        for record in service.records().unwrap() {
            assert!(record.foreign && record.sequence > 0, "{record:?}");
            assert_eq!(record.pod.as_deref(), Some("prod/db"));
        }
    }

    /// What was freed since must not come back with each start.
    #[test]
    fn a_store_that_is_not_lost_takes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("there");
        fs::write(&there, "").unwrap();
        let bridge = list("bridge", ours());
        let files = [
            ("a", cached("a", &bridge, &there, &["10.0.0.1/24"])),
            ("b", cached("b", &bridge, &there, &["10.0.0.2/24"])),
        ];
        let caches = [cache(directory.path(), &files)];
        let service = service();
        assert_eq!(start(&service, &caches, Path::new(RUN_DIR)), 2);
        let freed = service.records().unwrap().remove(0).attachment;
        let request =
            twill_ipam::ReleaseRequest { attachment: freed, sequence: None, netns_cookie: None };
        service.release(request).unwrap();
        assert_eq!(start(&service, &caches, Path::new(RUN_DIR)), 0);
        assert_eq!(addresses(&service).len(), 1);
    }

    #[test]
    fn what_is_no_file_of_this_boot_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("there");
        fs::write(&there, "").unwrap();
        let bridge = list("bridge", ours());
        let big = cached("big", &bridge, &there, &["10.0.0.3/24"]) + &" ".repeat(1 << 20);
        let results = cache(
            directory.path(),
            &[
                ("before the boot", cached("a", &bridge, &there, &["10.0.0.1/24"])),
                ("good", cached("b", &bridge, &there, &["10.0.0.2/24"])),
                ("big", big),
            ],
        );
        let old = fs::File::options().write(true).open(results.join("before the boot")).unwrap();
        old.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1)).unwrap();
        let elsewhere = directory.path().join("elsewhere");
        fs::write(&elsewhere, cached("c", &bridge, &there, &["10.0.0.4/24"])).unwrap();
        symlink(&elsewhere, results.join("link")).unwrap();
        // Nobody writes there, so who opens it as a file waits for ever.
        mkfifo(&results.join("fifo"), Mode::S_IRWXU).unwrap();
        let (service, caches) = (service(), vec![results]);
        assert_eq!(start(&service, &caches, Path::new(RUN_DIR)), 1);
        assert_eq!(addresses(&service), ["10.0.0.2"]);
    }

    #[test]
    fn one_run_directory_has_several_names() {
        let directory = tempfile::tempdir().unwrap();
        let (there, run) = (directory.path().join("there"), directory.path().join("run"));
        fs::write(&there, "").unwrap();
        fs::create_dir(&run).unwrap();
        let name = directory.path().join("name");
        symlink(&run, &name).unwrap();
        let config = list("bridge", json!({"type": "twill-ipam", "runDir": name}));
        let files = [("a", cached("a", &config, &there, &["10.0.0.1/24"]))];
        let caches = [cache(directory.path(), &files)];
        assert_eq!(start(&service(), &caches, &run), 1);
    }
}
