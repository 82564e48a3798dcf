//! Services and EndpointSlices, watched only while addresses of services are to be announced. They change
//! with every pod of the cluster, so they are no part of the snapshot, and only what counts of them
//! is kept ([`crate::services`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use kube::{core::DynamicObject, runtime::watcher::Event};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
    time::{Instant, sleep_until},
};
use tracing::warn;
use twill_ipam_store::boot_id;
use twill_types::{Family, Prefix, error_chain};

use super::{
    access::Access,
    deaths::Following,
    subject::Subject,
    watching::{self, News},
};
use crate::{
    datastore::Snapshot,
    last_known::LastKnown,
    problems,
    services::{self, Announced, Ranges, Service, Services, Slice},
    tasks::Tasks,
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

/// The version of the copy's format.
const FORMAT: u32 = 1;

/// The task.
pub(super) struct ServiceWatch {
    node: String,
    access: Arc<Access>,
    /// What is ready here is another matter on another node.
    copy: LastKnown,
    resources: watch::Receiver<Arc<Snapshot>>,
    announced: Announced,
    problems: watch::Sender<Vec<String>>,
}

/// While it is watched.
struct Watching {
    _following: [Following; 2],
    news: mpsc::Receiver<(Subject, News)>,
    known: Services,
    services: Listing,
    slices: Listing,
    /// Something is known that is not in the copy.
    is_copy_old: bool,
    /// By the kind's plural.
    faults: BTreeMap<&'static str, String>,
    /// When what there is is told, whether or not everything was heard.
    patience: Option<Instant>,
    /// When changes that have come are told.
    tell_due: Option<Instant>,
    copy_due: Option<Instant>,
}

/// How far one list has been read.
#[derive(Debug, Default)]
struct Listing {
    listed: Option<BTreeSet<String>>,
    in_sync: bool,
}

/// What is in the copy.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Copy<S> {
    /// What was announced before the machine started last says nothing about what forwards now.
    boot_id: Option<String>,
    announced: BTreeSet<Prefix>,
    known: S,
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
            copy: LastKnown::new((state_dir, FILE), "services", FORMAT, node),
            resources,
            announced: Announced::default(),
            problems: watch::Sender::default(),
        }
    }

    /// The families in which the process before announced anything, if the machine has not started since.
    pub(super) fn served_before(&self) -> BTreeSet<Family> {
        let same = |copy: &Copy<Services>| copy.boot_id.is_some() && copy.boot_id == boot_id().ok();
        let copy = self.copy.find().filter(same);
        let announced = copy.map(|copy| copy.announced).unwrap_or_default();
        announced.into_iter().map(Prefix::family).collect()
    }

    /// Starts; what is announced, and what is wrong.
    pub(super) fn start(
        self,
        tasks: &mut Tasks,
    ) -> (watch::Receiver<Option<BTreeSet<Prefix>>>, watch::Receiver<Vec<String>>) {
        let (announced, problems) = (self.announced.subscribe(), self.problems.subscribe());
        tasks.endless("services", self.run());
        (announced, problems)
    }

    async fn run(self) {
        let mut resources = self.resources.clone();
        let mut watching: Option<Watching> = None;
        loop {
            let is_wanted = announces(&resources.borrow_and_update());
            match (is_wanted, &mut watching) {
                (true, None) => watching = Some(self.begin()),
                // Ranges, or this node's labels.
                (true, Some(watching)) => watching.tell(&self),
                (false, _) => {
                    watching = None;
                    problems::tell(&self.problems, Vec::new());
                    self.remove_copy();
                    services::tell(&self.announced, BTreeSet::new());
                }
            }
            tokio::select! {
                changed = resources.changed() => if changed.is_err() { return },
                () = async {
                    match &mut watching {
                        Some(watching) => watching.go_on(&self).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }

    fn begin(&self) -> Watching {
        let (sender, news) = mpsc::channel(QUEUE);
        let copy = self.copy.find::<Copy<Services>>();
        let patience = PATIENCE[usize::from(copy.is_none())];
        let subjects = [Subject::services(), Subject::endpoint_slices()];
        Watching {
            _following: subjects.map(|subject| watching::start(&self.access, &subject, &sender)),
            news,
            known: copy.map(|copy| copy.known).unwrap_or_default(),
            services: Listing::default(),
            slices: Listing::default(),
            is_copy_old: true,
            faults: BTreeMap::new(),
            patience: Some(Instant::now() + patience),
            tell_due: None,
            copy_due: None,
        }
    }

    fn write_copy(&self, known: &Services) {
        let copy = Copy {
            boot_id: boot_id().ok(),
            announced: self.announced.borrow().clone().unwrap_or_default(),
            known,
        };
        if let Err(error) = self.copy.write(&copy) {
            let error = error_chain(&error);
            warn!(error, "the copy of services is out of date");
        }
    }

    /// Nothing is announced, and so nothing was when the next process starts.
    fn remove_copy(&self) {
        match std::fs::remove_file(self.copy.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!(path = %self.copy.path().display(), %error, "the copy of services stays");
            }
            _ => {}
        }
    }
}

/// Whether addresses of services are to be announced.
fn announces(snapshot: &Snapshot) -> bool {
    let default = snapshot.bgp_default();
    !Ranges::of(default).is_empty()
}

impl Watching {
    /// Runs for ever. It may be given up at any time.
    async fn go_on(&mut self, of: &ServiceWatch) {
        loop {
            self.turn(of).await;
        }
    }

    /// Does the next thing that is due. It may be given up while it waits.
    async fn turn(&mut self, of: &ServiceWatch) {
        let at = |due: Option<Instant>| sleep_until(due.unwrap_or_else(Instant::now));
        tokio::select! {
            news = self.news.recv() => {
                let Some((subject, news)) = news else { return std::future::pending().await };
                if self.take(of, &subject, news) {
                    self.tell_due = self.tell_due.or_else(|| Some(Instant::now() + GATHER));
                }
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
                self.is_copy_old = false;
                block_in_place(|| of.write_copy(&self.known));
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
        let announced = self.known.announced_by(&of.node, &of.resources.borrow());
        self.is_copy_old |= services::tell(&of.announced, announced);
        if is_complete && self.is_copy_old {
            self.copy_due = self.copy_due.or_else(|| Some(Instant::now() + COPY));
        }
    }

    /// Whether there is anything to tell.
    fn take(&mut self, of: &ServiceWatch, subject: &Subject, news: News) -> bool {
        let plural = subject.kind.plural;
        match news {
            News::Resumed => self.faults.remove(plural).is_some(),
            News::Failed { text, .. } => {
                let effect = "addresses of services are announced as they were last known";
                let text = format!("{text}; {effect}");
                self.faults.insert(plural, text.clone()) != Some(text)
            }
            News::Event(event) => {
                let is_answer = !matches!(*event, Event::Init);
                let is_better = is_answer && self.faults.remove(plural).is_some();
                let was_in_sync = self.services.in_sync && self.slices.in_sync;
                let Services { services, slices } = &mut self.known;
                let is_other = if *subject == Subject::services() {
                    self.services.take(services, *event, |object| Some(service(object)))
                } else {
                    self.slices.take(slices, *event, |object| slice(object, &of.node))
                };
                self.is_copy_old |= is_other;
                let is_in_sync = self.services.in_sync && self.slices.in_sync;
                is_other || is_better || was_in_sync != is_in_sync
            }
        }
    }
}

impl Listing {
    /// Whether anything that counts is another.
    fn take<T: PartialEq>(
        &mut self,
        items: &mut BTreeMap<String, T>,
        event: Event<DynamicObject>,
        read: impl Fn(&DynamicObject) -> Option<T>,
    ) -> bool {
        match event {
            Event::Init => {
                self.listed = Some(BTreeSet::new());
                false
            }
            Event::InitApply(object) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(key(&object));
                }
                set(items, key(&object), read(&object))
            }
            Event::InitDone => {
                self.in_sync = true;
                let Some(listed) = self.listed.take() else { return false };
                let before = items.len();
                items.retain(|key, _| listed.contains(key));
                items.len() != before
            }
            Event::Apply(object) => set(items, key(&object), read(&object)),
            Event::Delete(object) => items.remove(&key(&object)).is_some(),
        }
    }
}

fn set<T: PartialEq>(items: &mut BTreeMap<String, T>, key: String, item: Option<T>) -> bool {
    if items.get(&key) == item.as_ref() {
        return false;
    }
    match item {
        Some(item) => drop(items.insert(key, item)),
        None => drop(items.remove(&key)),
    }
    true
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
        let mut list = Listing::default();
        let mut items: BTreeMap<_, _> = [("shop/old".to_owned(), Service::default())].into();
        let web = || {
            object(json!({"apiVersion": "v1", "kind": "Service",
                          "metadata": {"name": "web", "namespace": "shop"}, "spec": {}}))
        };
        let read = |object: &DynamicObject| Some(service(object));
        assert!(!list.take(&mut items, Event::Init, read));
        assert!(list.take(&mut items, Event::InitApply(web()), read));
        assert_eq!((items.len(), list.in_sync), (2, false), "not before it is complete");
        assert!(list.take(&mut items, Event::InitDone, read));
        assert_eq!(items.keys().collect::<Vec<_>>(), ["shop/web"]);
        assert!(!list.take(&mut items, Event::Apply(web()), read), "nothing of it is another");
        assert!(list.take(&mut items, Event::Delete(web()), read));
        assert!(items.is_empty() && list.in_sync);
        assert!(!list.take(&mut items, Event::Delete(web()), read));
    }

    fn resources(ranges: &[&str]) -> Arc<Snapshot> {
        let ranges: Vec<String> = ranges.iter().map(|cidr| format!("{{cidr: {cidr}}}")).collect();
        let text = format!(
            "apiVersion: projectcalico.org/v3\nkind: BGPConfiguration\nmetadata: {{name: default}}\n\
             spec: {{serviceExternalIPs: [{}]}}\n",
            ranges.join(", ")
        );
        let loaded = twill_k8s_api::load_manifests(&text, "test");
        Arc::new(Snapshot::new(twill_k8s_api::files::catalog([&loaded])))
    }

    /// What is told about services changes only with what is announced; what was announced is known to
    /// the next process of the same boot.
    #[tokio::test(flavor = "multi_thread")]
    async fn only_what_is_announced_is_told_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let access = crate::datastore::kubernetes::fake::Fake::default().access();
        let configured = watch::Sender::new(resources(&["192.0.2.0/24"]));
        let new = || ServiceWatch::new("node1", &access, directory.path(), configured.subscribe());
        let of = new();
        let mut announced = of.announced.subscribe();
        let mut watching = of.begin();
        let mut take = |subject: Subject, event| {
            let is_news = watching.take(&of, &subject, News::Event(Box::new(event)));
            if is_news {
                watching.tell(&of);
            }
            (is_news, announced.has_changed().unwrap(), announced.borrow_and_update().clone())
        };
        let web = |external: &str| {
            object(json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"externalTrafficPolicy": "Local", "externalIPs": [external]},
            }))
        };
        let here =
            |ready: bool| endpoints(json!([{"nodeName": "node1", "conditions": {"ready": ready}}]));
        take(Subject::services(), Event::Init);
        take(Subject::services(), Event::InitApply(web("192.0.2.9")));
        assert_eq!(take(Subject::services(), Event::InitDone).2, None, "not everything was told");
        take(Subject::endpoint_slices(), Event::Init);
        take(Subject::endpoint_slices(), Event::InitApply(here(true)));
        let set = |texts: &[&str]| {
            Some(texts.iter().map(|text| text.parse().unwrap()).collect::<BTreeSet<Prefix>>())
        };
        let both = set(&["192.0.2.0/24", "192.0.2.9/32"]);
        assert_eq!(take(Subject::endpoint_slices(), Event::InitDone), (true, true, both.clone()));
        // Another port, another pod's address.
        let slice = Subject::endpoint_slices();
        assert_eq!(take(slice.clone(), Event::Apply(here(true))), (false, false, both.clone()));
        // One in no range.
        let mut other = web("203.0.113.1");
        other.metadata.name = Some("other".to_owned());
        assert_eq!(take(Subject::services(), Event::Apply(other)), (true, false, both));
        let range = set(&["192.0.2.0/24"]);
        assert_eq!(take(slice, Event::Apply(here(false))), (true, true, range));

        assert_eq!(new().served_before(), BTreeSet::new(), "it was not written yet");
        of.write_copy(&watching.known);
        assert_eq!(new().served_before(), BTreeSet::from([Family::V4]));
        let text = std::fs::read_to_string(of.copy.path()).unwrap();
        std::fs::write(of.copy.path(), text.replace(&boot_id().unwrap(), "another boot")).unwrap();
        assert_eq!(new().served_before(), BTreeSet::new(), "nothing forwards because of that");
        assert!(
            new().copy.find::<Copy<Services>>().is_some(),
            "what is known is of use all the same"
        );

        // Without ranges the next process has nothing that it announced.
        of.write_copy(&watching.known);
        configured.send_replace(resources(&[]));
        let mut tasks = Tasks::default();
        let (mut announced, _problems) = of.start(&mut tasks);
        announced.wait_for(|told| told.as_ref().is_some_and(BTreeSet::is_empty)).await.unwrap();
        assert!(!directory.path().join(FILE).exists());
        tasks.shutdown().await;
    }
}
