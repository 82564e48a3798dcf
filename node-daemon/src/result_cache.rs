//! Pods of other main plugins whose records are lost with the store: no link of ours tells of them, but the
//! runtime's library (libcni) keeps the result of each ADD in a file until the DEL.
//!
//! What it keeps outlives a boot, so only a pod counts whose namespace may still be there. Nothing of this
//! hinders a start.

use std::{
    collections::BTreeSet,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use k8s_openapi::ByteString;
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
}

#[derive(Deserialize)]
struct Address {
    /// With the length of its prefix.
    address: String,
}

/// Writes down what living pods of other main plugins have by these caches, unless they have a record; says
/// how many had none. `run_dir` tells this node from others on the same host.
pub(crate) fn adopt(
    service: &Service,
    directories: &[PathBuf],
    run_dir: &Path,
) -> Result<usize, StoreError> {
    let records = service.records()?;
    let known: BTreeSet<_> = records.iter().map(|record| &record.attachment).collect();
    let mut count = 0;
    for directory in directories {
        let found = read(directory, run_dir).unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                warn!(directory = %directory.display(), %error, "cannot read the runtime's cache of results");
            }
            Vec::new()
        });
        for record in found.into_iter().filter(|record| !known.contains(&record.attachment)) {
            let (attachment, addresses) = (record.attachment.clone(), record.addresses.clone());
            // It has the number that the next ADD would have: a DEL of this pod names none.
            let sequence = service.sequence()? + 1;
            if service.adopt(Record { sequence, ..record })? {
                info!(%attachment, ?addresses, "record read from the runtime's cache of results");
                count += 1;
            } else {
                warn!(%attachment, ?addresses, "another pod has the address");
            }
        }
    }
    Ok(count)
}

fn read(directory: &Path, run_dir: &Path) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) => {
                warn!(file = %path.display(), %error, "a result of the runtime's cache is left out");
                continue;
            }
        };
        match serde_json::from_slice::<Cached>(&text) {
            Ok(cached) => records.extend(record(cached, run_dir)),
            Err(error) => {
                debug!(file = %path.display(), %error, "not a result as libcni writes it")
            }
        }
    }
    Ok(records)
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
        && Path::new(ipam["runDir"].as_str().unwrap_or(RUN_DIR)) == run_dir;
    // A process's number is another's after a boot.
    if !is_ours || cached.netns.starts_with("/proc") {
        return None;
    }
    let netns_cookie = match twill_sys::look(&cached.netns) {
        Ok(AtPath::Nothing) => return None,
        Ok(AtPath::Namespace(cookie)) => cookie,
        // It may be one that this process cannot see.
        Ok(AtPath::Plain) | Err(_) => None,
    };
    let argument = |key: &str| {
        let found = cached.cni_args.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.clone())
    };
    let address = |ip: &Address| -> Option<IpAddr> { ip.address.split('/').next()?.parse().ok() };
    Some(Record {
        addresses: cached.result.ips.iter().filter_map(address).collect(),
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

    #[test]
    fn what_lives_and_has_no_record_is_written_down() {
        let directory = tempfile::tempdir().unwrap();
        let (there, gone) = (directory.path().join("there"), directory.path().join("gone"));
        // As a namespace looks whose mount does not reach this process.
        fs::write(&there, "").unwrap();
        let results = directory.path().join("results");
        fs::create_dir(&results).unwrap();
        let ours = || json!({"type": "twill-ipam"});
        let bridge = list("bridge", ours());
        let one = json!({"type": "macvlan", "name": "lan", "ipam": ours()});
        let files = [
            ("a", cached("a", &bridge, &there, &["10.0.0.1/24", "fd00::1/64"])),
            ("b", cached("b", &one, &there, &["10.0.0.2/24"])),
            ("gone", cached("gone", &bridge, &gone, &["10.0.0.3/24"])),
            ("process", cached("p", &bridge, Path::new("/proc/self/ns/net"), &["10.0.0.4/24"])),
            ("own", cached("own", &list("twill", ours()), &there, &["10.0.0.5/24"])),
            (
                "other",
                cached(
                    "other",
                    &list("bridge", json!({"type": "host-local"})),
                    &there,
                    &["10.0.0.6/24"],
                ),
            ),
            (
                "another node's",
                cached(
                    "n",
                    &list("bridge", json!({"type": "twill-ipam", "runDir": "/run/2"})),
                    &there,
                    &["10.0.0.7/24"],
                ),
            ),
            ("a second time", cached("c", &bridge, &there, &["10.0.0.1/24"])),
            ("none", cached("d", &bridge, &there, &[])),
            (
                "bare",
                json!({"cniVersion": "0.4.0", "ips": [{"address": "10.0.0.8/24"}]}).to_string(),
            ),
            ("garbage", "{".to_owned()),
        ];
        for (name, text) in files {
            fs::write(results.join(name), text).unwrap();
        }
        fs::create_dir(results.join("directory")).unwrap();
        let service = service();
        let caches = [directory.path().join("missing"), there, results];
        let adopted = || adopt(&service, &caches, Path::new(RUN_DIR)).unwrap();
        assert_eq!(adopted(), 2);
        let records = service.records().unwrap();
        let addresses: Vec<_> = records.iter().flat_map(|record| &record.addresses).collect();
        assert!(addresses.len() == 2 || addresses.len() == 3, "{addresses:?}");
        assert!(addresses.iter().any(|address| address.to_string() == "10.0.0.1"));
        assert!(addresses.iter().any(|address| address.to_string() == "10.0.0.2"));
        for record in &records {
            assert!(record.foreign && record.sequence > 0, "{record:?}");
            assert_eq!(record.pod.as_deref(), Some("prod/db"));
        }
        // The next start finds them written down.
        assert_eq!(adopted(), 0);
        assert_eq!(service.records().unwrap().len(), 2);
    }
}
