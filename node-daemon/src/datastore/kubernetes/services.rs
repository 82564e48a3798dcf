//! Services and EndpointSlices, watched only while addresses of services are to be announced. They change
//! with every pod of the cluster, so they are no part of the snapshot, and only what counts of them
//! is kept ([`crate::services`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use kube::{core::DynamicObject, runtime::watcher::Event};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
    time::{Instant, sleep_until},
};
use tracing::warn;
use twill_k8s_api::files::{FileError, replace_private_file};
use twill_types::error_chain;

use super::{
    access::Access,
    deaths::Following,
    subject::Subject,
    watching::{self, News},
};
use crate::{
    datastore::Snapshot,
    node::{Tasks, endless},
    problems,
    services::{Ranges, Service, Services, Slice},
};

/// Where what was last known is kept, in `stateDir`.
const FILE: &str = "last-known-services.json";

/// How often that is written at the most.
const COPY: Duration = Duration::from_secs(5);

/// How long changes are gathered: a rollout makes many.
const GATHER: Duration = Duration::from_millis(100);

/// How long a start waits for the API server, with and without a copy. The sessions wait with it, so that
/// no peer is told that a service is gone which is not.
const PATIENCE: [Duration; 2] = [Duration::from_millis(800), Duration::from_secs(10)];

/// How much may wait to be looked at.
const QUEUE: usize = 256;

/// The label of an EndpointSlice that says whose endpoints they are.
const OWNER: &str = "kubernetes.io/service-name";

/// What is known; `None` until it may be acted upon.
pub(super) type Known = watch::Sender<Option<Arc<Services>>>;

/// The task.
pub(super) struct ServiceWatch {
    node: String,
    access: Arc<Access>,
    path: PathBuf,
    resources: watch::Receiver<Arc<Snapshot>>,
    known: Known,
    problems: watch::Sender<Vec<String>>,
}

/// While it is watched.
struct Watching {
    _following: [Following; 2],
    news: mpsc::Receiver<(Subject, News)>,
    services: List<Service>,
    slices: List<Slice>,
    /// By the kind's plural.
    faults: BTreeMap<&'static str, String>,
    /// When what there is is told, whether or not everything was heard.
    patience: Option<Instant>,
    /// When changes that have come are told.
    tell_due: Option<Instant>,
    copy_due: Option<Instant>,
}

/// One watched list, cut down to what counts.
#[derive(Debug)]
struct List<T> {
    items: BTreeMap<String, T>,
    listing: Option<BTreeSet<String>>,
    in_sync: bool,
}

impl ServiceWatch {
    pub(super) fn new(
        node: &str,
        access: &Arc<Access>,
        state_dir: &Path,
        resources: watch::Receiver<Arc<Snapshot>>,
    ) -> Self {
        Self {
            node: node.to_owned(),
            access: Arc::clone(access),
            path: state_dir.join(FILE),
            resources,
            known: watch::Sender::default(),
            problems: watch::Sender::default(),
        }
    }

    /// Starts; what is known, and what is wrong.
    pub(super) fn start(
        self,
        tasks: &mut Tasks,
    ) -> (watch::Receiver<Option<Arc<Services>>>, watch::Receiver<Vec<String>>) {
        let (known, problems) = (self.known.subscribe(), self.problems.subscribe());
        endless(tasks, self.run());
        (known, problems)
    }

    async fn run(self) {
        let mut resources = self.resources.clone();
        let mut watching: Option<Watching> = None;
        loop {
            let is_wanted = announces(&resources.borrow_and_update());
            match (is_wanted, &watching) {
                (true, None) => watching = Some(self.begin()),
                (false, _) => {
                    watching = None;
                    problems::tell(&self.problems, Vec::new());
                    // Ranges without addresses announce nothing.
                    self.tell(Services::default());
                }
                (true, Some(_)) => {}
            }
            tokio::select! {
                changed = resources.changed() => if changed.is_err() { return },
                () = async {
                    match &mut watching {
                        Some(watching) => watching.turn(&self).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    fn begin(&self) -> Watching {
        let (sender, news) = mpsc::channel(QUEUE);
        let copy = self.read_copy();
        let patience = PATIENCE[usize::from(copy.is_none())];
        let Services { services, slices } = copy.unwrap_or_default();
        let subjects = [Subject::services(), Subject::endpoint_slices()];
        Watching {
            _following: subjects.map(|subject| watching::start(&self.access, &subject, &sender)),
            news,
            services: List::known(services),
            slices: List::known(slices),
            faults: BTreeMap::new(),
            patience: Some(Instant::now() + patience),
            tell_due: None,
            copy_due: None,
        }
    }

    fn tell(&self, services: Services) {
        self.known.send_if_modified(|known| {
            let is_new = known.as_deref() != Some(&services);
            if is_new {
                *known = Some(Arc::new(services));
            }
            is_new
        });
    }

    fn read_copy(&self) -> Option<Services> {
        let text = std::fs::read(&self.path).ok()?;
        let read: Result<(String, Services), _> = serde_json::from_slice(&text);
        match read {
            // What is ready here is another matter on another node.
            Ok((node, services)) => (node == self.node).then_some(services),
            Err(error) => {
                warn!(path = %self.path.display(), %error, "the copy of services is of no use");
                None
            }
        }
    }

    fn write_copy(&self) {
        let Some(services) = self.known.borrow().clone() else { return };
        let written = serde_json::to_vec(&(&self.node, &*services))
            .map_err(|error| error_chain(&error))
            .and_then(|text| {
                replace_private_file(&self.path, &text)
                    .map_err(|error: FileError| error_chain(&error))
            });
        if let Err(error) = written {
            warn!(error, "the copy of services is out of date");
        }
    }
}

/// Whether addresses of services are to be announced.
fn announces(snapshot: &Snapshot) -> bool {
    let default = snapshot.bgp_configurations.get("default").map(|found| &found.spec);
    !Ranges::of(default).is_empty()
}

impl Watching {
    /// Does the next thing that is due. It may be given up while it waits.
    async fn turn(&mut self, of: &ServiceWatch) {
        let at = |due: Option<Instant>| sleep_until(due.unwrap_or_else(Instant::now));
        tokio::select! {
            news = self.news.recv() => {
                let Some((subject, news)) = news else { return std::future::pending().await };
                self.take(of, &subject, news);
                self.tell_due = self.tell_due.or_else(|| Some(Instant::now() + GATHER));
            }
            () = at(self.patience), if self.patience.is_some() => {
                self.patience = None;
                self.tell(of);
            }
            () = at(self.tell_due), if self.tell_due.is_some() => {
                self.tell_due = None;
                self.tell(of);
            }
            () = at(self.copy_due), if self.copy_due.is_some() => {
                self.copy_due = None;
                block_in_place(|| of.write_copy());
            }
        }
    }

    fn tell(&mut self, of: &ServiceWatch) {
        problems::tell(&of.problems, self.faults.values().cloned().collect());
        let is_complete = self.services.in_sync && self.slices.in_sync;
        if !is_complete && self.patience.is_some() {
            return;
        }
        self.patience = None;
        of.tell(Services {
            services: self.services.items.clone(),
            slices: self.slices.items.clone(),
        });
        if is_complete {
            self.copy_due = self.copy_due.or_else(|| Some(Instant::now() + COPY));
        }
    }

    fn take(&mut self, of: &ServiceWatch, subject: &Subject, news: News) {
        let plural = subject.kind.plural;
        match news {
            News::Resumed => drop(self.faults.remove(plural)),
            News::Failed { text, .. } => {
                let effect = "addresses of services are announced as they were last known";
                self.faults.insert(plural, format!("{text}; {effect}"));
            }
            News::Event(event) => {
                if !matches!(*event, Event::Init) {
                    self.faults.remove(plural);
                }
                if *subject == Subject::services() {
                    self.services.take(*event, |object| Some(service(object)));
                } else {
                    self.slices.take(*event, |object| slice(object, &of.node));
                }
            }
        }
    }
}

impl<T> List<T> {
    const fn known(items: BTreeMap<String, T>) -> Self {
        Self { items, listing: None, in_sync: false }
    }

    fn take(&mut self, event: Event<DynamicObject>, read: impl Fn(&DynamicObject) -> Option<T>) {
        match event {
            Event::Init => self.listing = Some(BTreeSet::new()),
            Event::InitApply(object) => {
                let key = self.set(&object, read);
                if let Some(listing) = &mut self.listing {
                    listing.insert(key);
                }
            }
            Event::InitDone => {
                if let Some(listed) = self.listing.take() {
                    self.items.retain(|key, _| listed.contains(key));
                }
                self.in_sync = true;
            }
            Event::Apply(object) => drop(self.set(&object, read)),
            Event::Delete(object) => drop(self.items.remove(&key(&object))),
        }
    }

    fn set(
        &mut self,
        object: &DynamicObject,
        read: impl Fn(&DynamicObject) -> Option<T>,
    ) -> String {
        let key = key(object);
        match read(object) {
            Some(item) => drop(self.items.insert(key.clone(), item)),
            None => drop(self.items.remove(&key)),
        }
        key
    }
}

/// `namespace/name`.
fn key(object: &DynamicObject) -> String {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", object.metadata.name.as_deref().unwrap_or_default())
}

/// What counts of a Service. A headless one has no address, and one of type ExternalName none either.
fn service(object: &DynamicObject) -> Service {
    let spec = &object.data["spec"];
    let list = |value: &Value| -> BTreeSet<IpAddr> {
        let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.filter_map(|text| text.parse().ok()).collect()
    };
    let mut cluster = list(&spec["clusterIPs"]);
    cluster.extend(spec["clusterIP"].as_str().and_then(|text| text.parse::<IpAddr>().ok()));
    let ingress = object.data["status"]["loadBalancer"]["ingress"].as_array();
    let given = ingress.into_iter().flatten().filter_map(|at| at["ip"].as_str()?.parse().ok());
    let is_external_name = spec["type"] == "ExternalName";
    if is_external_name {
        return Service::default();
    }
    Service {
        cluster,
        external: list(&spec["externalIPs"]),
        load_balancer: given.collect(),
        local: spec["externalTrafficPolicy"] == "Local",
    }
}

/// What counts of an EndpointSlice; `None` for one that belongs to no Service.
fn slice(object: &DynamicObject, node: &str) -> Option<Slice> {
    let labels = object.metadata.labels.as_ref()?;
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    let service = format!("{namespace}/{}", labels.get(OWNER)?);
    let endpoints = object.data["endpoints"].as_array();
    // Where it is not said, an endpoint is ready (discovery/v1, EndpointConditions).
    let ready = |endpoint: &&Value| endpoint["conditions"]["ready"].as_bool() != Some(false);
    let mut ready = endpoints.into_iter().flatten().filter(ready).peekable();
    let is_ready = ready.peek().is_some();
    Some(Slice { service, ready: is_ready, ready_here: ready.any(|at| at["nodeName"] == node) })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> DynamicObject {
        serde_json::from_value(value).unwrap()
    }

    fn endpoints(list: Value) -> DynamicObject {
        object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-abcde", "namespace": "shop", "labels": {OWNER: "web"}},
            "addressType": "IPv4", "endpoints": list,
        }))
    }

    #[test]
    fn of_a_service_its_addresses_and_its_policy_count() {
        let found = service(&object(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": "10.96.0.10",
                "clusterIPs": ["10.96.0.10", "fd00:96::a"], "externalIPs": ["192.0.2.1"],
                "externalTrafficPolicy": "Local",
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.9"}, {"hostname": "a"}]}},
        })));
        let set = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let expected = Service {
            cluster: set(&["10.96.0.10", "fd00:96::a"]),
            external: set(&["192.0.2.1"]),
            load_balancer: set(&["198.51.100.9"]),
            local: true,
        };
        assert_eq!(found, expected);
        let headless = object(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "db"},
            "spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]},
        }));
        assert_eq!(service(&headless), Service::default());
    }

    #[test]
    fn of_a_slice_it_counts_whether_endpoints_are_ready() {
        let cases = [
            (json!([]), (false, false)),
            (json!([{"addresses": ["10.0.0.1"], "nodeName": "node1"}]), (true, true)),
            (json!([{"conditions": {"ready": false}, "nodeName": "node1"}]), (false, false)),
            (json!([{"conditions": {"ready": true}, "nodeName": "node2"}]), (false, true)),
            (
                json!([
                    {"conditions": {"ready": true}, "nodeName": "node2"},
                    {"conditions": {"ready": null}, "nodeName": "node1"},
                ]),
                (true, true),
            ),
            (json!([{"conditions": {"ready": true}}]), (false, true)),
        ];
        for (list, (ready_here, ready)) in cases {
            let expected = Slice { service: "shop/web".to_owned(), ready_here, ready };
            assert_eq!(slice(&endpoints(list.clone()), "node1"), Some(expected), "{list}");
        }
    }

    #[test]
    fn a_new_list_takes_away_what_it_lacks() {
        let mut list = List::known([("shop/old".to_owned(), Service::default())].into());
        let web = || {
            object(json!({"apiVersion": "v1", "kind": "Service",
                          "metadata": {"name": "web", "namespace": "shop"}, "spec": {}}))
        };
        let read = |object: &DynamicObject| Some(service(object));
        list.take(Event::Init, read);
        list.take(Event::InitApply(web()), read);
        assert_eq!((list.items.len(), list.in_sync), (2, false), "not before it is complete");
        list.take(Event::InitDone, read);
        assert_eq!(list.items.keys().collect::<Vec<_>>(), ["shop/web"]);
        list.take(Event::Delete(web()), read);
        assert!(list.items.is_empty() && list.in_sync);
    }
}
