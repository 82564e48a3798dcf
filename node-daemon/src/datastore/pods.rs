//! What is known of this node's pods and of their namespaces, as far as addresses depend on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kube::{core::DynamicObject, runtime::watcher::Event};
use serde::{Deserialize, Serialize};
use twill_ipam::PodFact;
use twill_rpc::message::PodRef;
use twill_types::asks_for_nothing;

/// By their full names.
pub(crate) type Annotations = BTreeMap<String, String>;

/// What a pod may say. Calico writes others below the same prefix, and changes them while the pod runs.
const OF_PODS: [&str; 6] = [
    "cni.projectcalico.org/ipv4pools",
    "cni.projectcalico.org/ipv6pools",
    "cni.projectcalico.org/ipAddrs",
    "cni.projectcalico.org/ipAddrsNoIpam",
    "cni.projectcalico.org/hwAddr",
    "cni.projectcalico.org/floatingIPs",
];

/// What a namespace may say for its pods: the rest is one pod's alone.
const OF_NAMESPACES: [&str; 2] =
    ["cni.projectcalico.org/ipv4pools", "cni.projectcalico.org/ipv6pools"];

/// On the mirror of a static pod: the uid that the kubelet has for it, and gives to the runtime. The
/// mirror's own is the API server's.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// For how long a namespace is remembered that was asked for because no watch had told of it.
const ASKED_FOR: Duration = Duration::from_secs(60);

/// A namespace, as its pods' addresses depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodNamespace {
    pub(crate) labels: BTreeMap<String, String>,
    annotations: Annotations,
}

impl PodNamespace {
    /// Keeps what counts.
    pub(crate) fn new(labels: BTreeMap<String, String>, annotations: &Annotations) -> Self {
        Self { labels, annotations: only(&OF_NAMESPACES, annotations) }
    }

    /// What is asked for a pod: each by itself, the pod's own before the namespace's.
    pub(crate) fn asked(&self, mut pod: Annotations) -> Annotations {
        pod.retain(|_, value| !asks_for_nothing(value));
        let mut asked = self.annotations.clone();
        asked.extend(pod);
        asked
    }
}

fn only(names: &[&str], annotations: &Annotations) -> Annotations {
    let found = names.iter().filter_map(|name| annotations.get_key_value(*name));
    found.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// A pod as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct KnownPod {
    namespace: String,
    name: String,
    uid: String,
    /// The static pod that it is the mirror of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mirror_of: Option<String>,
    /// What is read.
    #[serde(default, skip_serializing_if = "Annotations::is_empty")]
    pub(crate) annotations: Annotations,
}

impl KnownPod {
    /// Reads the metadata of one.
    pub(crate) fn of(object: &DynamicObject) -> Option<Self> {
        let metadata = &object.metadata;
        let annotations = metadata.annotations.as_ref();
        Some(Self {
            namespace: metadata.namespace.clone()?,
            name: metadata.name.clone()?,
            uid: metadata.uid.clone()?,
            mirror_of: annotations.and_then(|all| all.get(MIRROR)).cloned(),
            annotations: annotations.map(|all| only(&OF_PODS, all)).unwrap_or_default(),
        })
    }

    /// Whether the kubelet means it by this uid.
    pub(crate) fn is(&self, uid: &str) -> bool {
        self.uid == uid || self.mirror_of.as_deref() == Some(uid)
    }

    fn key(&self) -> Key {
        (self.namespace.clone(), self.name.clone())
    }
}

/// Namespace and name.
type Key = (String, String);

/// The pods of this node.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownPods {
    pods: BTreeMap<Key, KnownPod>,
    /// Those of a list that is being read, and those that were asked for meanwhile.
    listing: Option<BTreeSet<Key>>,
    /// This process has read a list to its end.
    is_complete: bool,
    /// The watch does not work.
    is_stale: bool,
    /// Namespaces that were asked for, and when.
    namespaces: BTreeMap<String, (Instant, PodNamespace)>,
}

impl KnownPods {
    /// Out of the copy: good for annotations, and no evidence that another pod is gone.
    pub(crate) fn from_copy(pods: Vec<KnownPod>) -> Self {
        let pods = pods.into_iter().map(|pod| (pod.key(), pod)).collect();
        Self { pods, ..Self::default() }
    }

    /// For the copy.
    pub(crate) fn pods(&self) -> Vec<KnownPod> {
        self.pods.values().cloned().collect()
    }

    /// The pod that a runtime means; not another one that has its name by now, or had it before.
    pub(crate) fn find(&self, pod: &PodRef) -> Option<&KnownPod> {
        let found = self.pods.get(&(pod.namespace.clone(), pod.name.clone()))?;
        pod.uid.as_deref().is_some_and(|uid| found.is(uid)).then_some(found)
    }

    /// Whether a pod is there. Only a list that was read to its end, and is followed since, says of
    /// one that it is not.
    pub(crate) fn fact(&self, pod: Option<&str>, uid: Option<&str>) -> PodFact {
        let Some(((namespace, name), uid)) = pod.and_then(|pod| pod.split_once('/')).zip(uid)
        else {
            return PodFact::Unknown;
        };
        let found = self.pods.get(&(namespace.to_owned(), name.to_owned()));
        match found {
            Some(pod) if pod.is(uid) => PodFact::There,
            _ if self.is_complete && !self.is_stale => PodFact::Gone,
            _ => PodFact::Unknown,
        }
    }

    /// Takes what the watch tells; whether that changed what is kept of pods.
    pub(crate) fn take(&mut self, event: &Event<DynamicObject>) -> bool {
        if !matches!(event, Event::Init) {
            self.is_stale = false;
        }
        match event {
            Event::Init => {
                self.is_complete = false;
                self.listing = Some(BTreeSet::new());
                false
            }
            Event::InitApply(object) | Event::Apply(object) => {
                KnownPod::of(object).is_some_and(|pod| self.set(pod))
            }
            Event::InitDone => {
                self.is_complete = true;
                let before = self.pods.len();
                if let Some(listed) = self.listing.take() {
                    self.pods.retain(|key, _| listed.contains(key));
                }
                self.pods.len() != before
            }
            Event::Delete(object) => {
                let Some(gone) = KnownPod::of(object) else { return false };
                let is_it = self.pods.get(&gone.key()).is_some_and(|pod| pod.uid == gone.uid);
                is_it && self.pods.remove(&gone.key()).is_some()
            }
        }
    }

    /// Keeps a pod, listed, told or asked for; whether it is new or another.
    pub(crate) fn set(&mut self, pod: KnownPod) -> bool {
        let key = pod.key();
        if let Some(listing) = &mut self.listing {
            listing.insert(key.clone());
        }
        if self.pods.get(&key) == Some(&pod) {
            return false;
        }
        self.pods.insert(key, pod);
        true
    }

    /// The watch fails, or works again; whether that is new.
    pub(crate) fn set_stale(&mut self, is_stale: bool) -> bool {
        std::mem::replace(&mut self.is_stale, is_stale) != is_stale
    }

    /// A namespace that was asked for lately.
    pub(crate) fn namespace(&self, name: &str) -> Option<&PodNamespace> {
        let (when, namespace) = self.namespaces.get(name)?;
        (when.elapsed() < ASKED_FOR).then_some(namespace)
    }

    /// Keeps a namespace that was asked for.
    pub(crate) fn set_namespace(&mut self, name: &str, namespace: PodNamespace) {
        self.namespaces.retain(|_, (when, _)| when.elapsed() < ASKED_FOR);
        self.namespaces.insert(name.to_owned(), (Instant::now(), namespace));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(name: &str, uid: &str, annotations: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "prod", "uid": uid, "annotations": annotations},
        }))
        .unwrap()
    }

    fn named(name: &str, uid: &str) -> PodRef {
        PodRef { namespace: "prod".into(), name: name.into(), uid: Some(uid.into()) }
    }

    fn fact(pods: &KnownPods, name: &str, uid: &str) -> PodFact {
        pods.fact(Some(&format!("prod/{name}")), Some(uid))
    }

    #[test]
    fn a_pod_is_gone_only_by_a_list_that_is_complete_and_followed() {
        let mut pods = KnownPods::default();
        assert_eq!(fact(&pods, "a", "u1"), PodFact::Unknown, "nothing was told yet");
        pods.take(&Event::Init);
        pods.take(&Event::InitApply(pod("a", "u1", json!({}))));
        assert_eq!(fact(&pods, "a", "u1"), PodFact::There);
        assert_eq!(fact(&pods, "b", "u2"), PodFact::Unknown, "the list has not ended");
        // Asked for while the list is read, which may be older.
        assert!(pods.set(KnownPod::of(&pod("c", "u3", json!({}))).unwrap()));
        pods.take(&Event::InitDone);
        assert_eq!(fact(&pods, "b", "u2"), PodFact::Gone);
        assert_eq!(fact(&pods, "c", "u3"), PodFact::There);
        assert_eq!(fact(&pods, "a", "u0"), PodFact::Gone, "another has its name");
        assert_eq!(pods.fact(Some("prod/b"), None), PodFact::Unknown, "none of a cluster");
        assert_eq!(pods.fact(None, Some("u2")), PodFact::Unknown);

        assert!(pods.set_stale(true) && !pods.set_stale(true));
        assert_eq!(fact(&pods, "b", "u2"), PodFact::Unknown, "the watch fails");
        pods.take(&Event::Apply(pod("a", "u9", json!({}))));
        assert_eq!(fact(&pods, "a", "u1"), PodFact::Gone, "it works, and the pod was replaced");
        pods.take(&Event::Delete(pod("a", "u1", json!({}))));
        assert_eq!(fact(&pods, "a", "u9"), PodFact::There, "that was the one before");
        pods.take(&Event::Delete(pod("a", "u9", json!({}))));
        assert_eq!(fact(&pods, "a", "u9"), PodFact::Gone);
        pods.take(&Event::Init);
        assert_eq!(fact(&pods, "a", "u9"), PodFact::Unknown, "a new list begins");
    }

    #[test]
    fn a_static_pod_is_its_mirror() {
        let mut pods = KnownPods::default();
        pods.take(&Event::Apply(pod("etcd-n1", "u1", json!({MIRROR: "4a8f"}))));
        assert!(pods.find(&named("etcd-n1", "4a8f")).is_some());
        assert!(pods.find(&named("etcd-n1", "u1")).is_some());
        assert!(pods.find(&named("etcd-n1", "other")).is_none());
        assert_eq!(fact(&pods, "etcd-n1", "4a8f"), PodFact::There);
    }

    #[test]
    fn what_nobody_reads_is_no_change() {
        let mut pods = KnownPods::default();
        let key = "cni.projectcalico.org/hwAddr";
        let with = |ip: &str| json!({key: "02::", "cni.projectcalico.org/podIP": ip, "a": "b"});
        assert!(pods.take(&Event::Apply(pod("a", "u1", with("10.0.0.1")))));
        assert!(!pods.take(&Event::Apply(pod("a", "u1", with("10.0.0.2")))));
        let found = pods.find(&named("a", "u1")).unwrap();
        assert_eq!(found.annotations.keys().collect::<Vec<_>>(), [key]);
        let copy = serde_json::to_string(&pods.pods()).unwrap();
        let copied = KnownPods::from_copy(serde_json::from_str(&copy).unwrap());
        assert_eq!(copied.find(&named("a", "u1")), Some(found));
        assert_eq!(fact(&copied, "b", "u2"), PodFact::Unknown, "a copy is no evidence");
    }

    #[test]
    fn the_pods_annotation_goes_before_its_namespaces() {
        let annotations = |list: &[(&str, &str)]| -> Annotations {
            let name = |key: &str| format!("cni.projectcalico.org/{key}");
            list.iter().map(|(key, value)| (name(key), (*value).to_owned())).collect()
        };
        let namespace = PodNamespace::new(
            BTreeMap::new(),
            &annotations(&[("ipv4pools", "a"), ("ipv6pools", "b"), ("ipAddrs", "c")]),
        );
        let asked = namespace.asked(annotations(&[("ipv4pools", "d"), ("ipv6pools", " ")]));
        assert_eq!(asked, annotations(&[("ipv4pools", "d"), ("ipv6pools", "b")]));
        let asked = namespace.asked(annotations(&[("ipv4pools", "d"), ("ipv6pools", "[]")]));
        assert_eq!(asked, annotations(&[("ipv4pools", "d"), ("ipv6pools", "b")]));
        let asked = namespace.asked(annotations(&[("ipAddrs", "e")]));
        assert_eq!(asked, annotations(&[("ipv4pools", "a"), ("ipv6pools", "b"), ("ipAddrs", "e")]));
    }
}
