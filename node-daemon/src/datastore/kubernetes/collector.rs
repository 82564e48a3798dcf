//! The task that makes snapshots of what the watches tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use kube::{core::DynamicObject, runtime::watcher::Event};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
    time::{Instant, timeout_at},
};
use tracing::{info, warn};
use twill_k8s_api::{BgpPassword, Loaded, files::catalog};
use twill_types::error_chain;

use super::{
    access::Access,
    cache::Cache,
    owned::OwnClaims,
    read,
    subject::Subject,
    watching::{self, Following, News},
};
use crate::{
    datastore::{Snapshot, file::keep_last_good},
    problems,
};

/// How long changes are gathered before they are looked at: several come at once.
const GATHER: Duration = Duration::from_millis(20);

/// How much may wait to be looked at.
const QUEUE: usize = 256;

/// An object as it was read.
struct Entry {
    /// As it was when it was right last; as it is, if it never was.
    manifest: Value,
    /// With what was last right in it.
    loaded: Loaded,
}

/// A watched list.
#[derive(Default)]
struct List {
    objects: BTreeMap<String, Entry>,
    /// The names seen in a list that is being read.
    listing: Option<BTreeSet<String>>,
    in_sync: bool,
    /// Why it cannot be had, and whether it was refused.
    fault: Option<(String, bool)>,
}

/// The task.
pub(super) struct Collector {
    node: String,
    access: Arc<Access>,
    cache: Cache,
    owned: watch::Sender<Arc<OwnClaims>>,
    problems: watch::Sender<Vec<String>>,
    lists: BTreeMap<Subject, List>,
    following: BTreeMap<Subject, Following>,
    /// What has to be in sync for the next snapshot.
    wanted: BTreeSet<Subject>,
    news: mpsc::Receiver<(Subject, News)>,
    sender: mpsc::Sender<(Subject, News)>,
    resources: watch::Sender<Arc<Snapshot>>,
    in_sync: watch::Sender<bool>,
    /// A claim is not what it was when it was written here.
    claims_changed: bool,
}

impl Collector {
    pub(super) fn new(
        node: &str,
        access: &Arc<Access>,
        cache: Cache,
        owned: watch::Sender<Arc<OwnClaims>>,
        problems: watch::Sender<Vec<String>>,
    ) -> Self {
        let (sender, news) = mpsc::channel(QUEUE);
        let mut wanted: BTreeSet<Subject> = Subject::of_every_node(node).into_iter().collect();
        wanted.insert(Subject::nodes(Some(node)));
        Self {
            node: node.to_owned(),
            access: Arc::clone(access),
            cache,
            owned,
            problems,
            lists: BTreeMap::new(),
            following: BTreeMap::new(),
            wanted,
            news,
            sender,
            resources: watch::Sender::default(),
            in_sync: watch::Sender::new(false),
            claims_changed: false,
        }
    }

    /// Starts; the snapshots, and whether everything was told once.
    pub(super) fn start(self) -> (watch::Sender<Arc<Snapshot>>, watch::Receiver<bool>) {
        let (resources, in_sync) = (self.resources.clone(), self.in_sync.subscribe());
        tokio::spawn(self.run());
        (resources, in_sync)
    }

    async fn run(mut self) {
        self.follow_wanted();
        // It has a sender itself, so it goes on for ever.
        while let Some((subject, news)) = self.news.recv().await {
            self.take(&subject, news);
            let deadline = Instant::now() + GATHER;
            while let Ok(Some((subject, news))) = timeout_at(deadline, self.news.recv()).await {
                self.take(&subject, news);
            }
            self.settle();
        }
    }

    fn follow_wanted(&mut self) {
        for subject in &self.wanted {
            if !self.following.contains_key(subject) {
                let following = watching::start(&self.access, subject, &self.sender);
                self.following.insert(subject.clone(), following);
                self.lists.insert(subject.clone(), List::default());
            }
        }
    }

    fn take(&mut self, subject: &Subject, news: News) {
        // News of one that is not followed any more may still come.
        let Some(list) = self.lists.get_mut(subject) else { return };
        let event = match news {
            News::Resumed => return list.fault = None,
            News::Failed { text, refused } => return list.fault = Some((text, refused)),
            News::Event(event) => *event,
        };
        if !matches!(event, Event::Init | Event::InitApply(_)) {
            list.fault = None;
        }
        list.in_sync |= matches!(event, Event::InitDone);
        if subject.is_claims() {
            self.claims_changed |= self.owned.send_if_modified(|claims| {
                let before = Arc::clone(claims);
                take_claim(Arc::make_mut(claims), &event);
                before.blocks() != claims.blocks()
            });
        } else {
            list.take(subject, event);
        }
    }

    /// Makes a snapshot, if everything that it needs is there.
    fn settle(&mut self) {
        self.tell_faults();
        // These say what else is wanted. What cannot be had of that may be wanted no more.
        let in_sync = |subject: &Subject| self.lists.get(subject).is_some_and(|list| list.in_sync);
        if !Subject::of_every_node(&self.node).iter().all(in_sync) {
            return;
        }
        let mut snapshot = self.snapshot();
        let wanted = self.wanted_by(&snapshot);
        let is_other = wanted != self.wanted;
        if is_other {
            self.wanted = wanted;
            self.follow_wanted();
        }
        if !self.is_complete() {
            return;
        }
        self.following.retain(|subject, _| self.wanted.contains(subject));
        self.lists.retain(|subject, _| self.wanted.contains(subject));
        if is_other {
            snapshot = self.snapshot();
        }
        self.publish(snapshot);
    }

    /// What is known of what is wanted.
    fn snapshot(&self) -> Snapshot {
        let wanted = self.lists.iter().filter(|(subject, _)| self.wanted.contains(subject));
        let objects = wanted.flat_map(|(_, list)| list.objects.values());
        Snapshot::new(catalog(objects.map(|entry| &entry.loaded)))
    }

    /// Whether everything that is wanted was told once.
    fn is_complete(&self) -> bool {
        self.wanted.iter().all(|subject| {
            self.lists.get(subject).is_some_and(|list| {
                let refused = list.fault.as_ref().is_some_and(|(_, refused)| *refused);
                list.in_sync || (refused && subject.is_optional())
            })
        })
    }

    fn publish(&mut self, snapshot: Snapshot) {
        let before = Arc::clone(&self.resources.borrow());
        for problem in snapshot.problems().iter().filter(|p| !before.problems().contains(p)) {
            warn!("{problem}");
        }
        // Who looks after claims looks at them again when the resources change.
        let claims_changed = std::mem::take(&mut self.claims_changed);
        let in_sync = &self.in_sync;
        self.resources.send_if_modified(|current| {
            // In here, so that nobody replaces what is in sync by what was known before.
            in_sync.send_if_modified(|in_sync| !std::mem::replace(in_sync, true));
            let changed = snapshot.catalog != current.catalog;
            if changed {
                info!(objects = snapshot.catalog.resources.len(), "the resources changed");
                *current = Arc::new(snapshot);
            }
            changed || claims_changed
        });
        let objects = self.lists.iter().flat_map(|(subject, list)| {
            let plural = subject.kind.plural;
            list.objects.values().map(move |entry| (plural.to_owned(), entry.manifest.clone()))
        });
        let (objects, claims) = (objects.collect(), self.owned.borrow().manifests());
        if let Err(error) = block_in_place(|| self.cache.write(objects, claims)) {
            let error = error_chain(&error);
            warn!(error, "the copy for a start without the API server is out of date");
        }
    }

    /// What a snapshot makes necessary: all Nodes for the mesh, the Secrets that sessions name.
    fn wanted_by(&self, snapshot: &Snapshot) -> BTreeSet<Subject> {
        let mut wanted: BTreeSet<Subject> =
            Subject::of_every_node(&self.node).into_iter().collect();
        let default = snapshot.bgp_configurations.get("default").map(|found| &found.spec);
        let has_mesh = default.and_then(|spec| spec.node_to_node_mesh_enabled).unwrap_or(true);
        wanted.insert(Subject::nodes((!has_mesh).then_some(self.node.as_str())));
        let of_mesh = default.and_then(|spec| spec.node_mesh_password.as_ref());
        let of_peers = snapshot.peers.values().filter_map(|peer| peer.spec.password.as_ref());
        let name = |password: &BgpPassword| {
            password.secret_key_ref.as_ref().map(|reference| reference.name.clone())
        };
        let names = of_peers.chain(of_mesh.filter(|_| has_mesh)).filter_map(name);
        wanted.extend(names.map(|name| Subject::secret(self.access.namespace(), &name)));
        wanted
    }

    /// Refusals one by one; anything else is one thing, however many watches it hits.
    fn tell_faults(&self) {
        let faults = self.lists.values().filter_map(|list| list.fault.as_ref());
        let mut said: Vec<String> =
            faults.clone().filter(|(_, refused)| *refused).map(|(text, _)| text.clone()).collect();
        if let Some((text, _)) = faults.clone().find(|(_, refused)| !refused) {
            said.push(format!("the API server is away, and what was last known holds: {text}"));
        }
        problems::tell(&self.problems, said);
    }
}

impl List {
    fn take(&mut self, subject: &Subject, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.listing = Some(BTreeSet::new()),
            Event::InitApply(object) => {
                let name = self.set(subject, &object);
                if let Some(listing) = &mut self.listing {
                    listing.insert(name);
                }
            }
            Event::InitDone => {
                if let Some(listed) = self.listing.take() {
                    self.objects.retain(|name, _| listed.contains(name));
                }
            }
            Event::Apply(object) => drop(self.set(subject, &object)),
            Event::Delete(object) => {
                self.objects.remove(&object.metadata.name.unwrap_or_default());
            }
        }
    }

    /// Reads an object. One that is broken now keeps what was last right in it.
    fn set(&mut self, subject: &Subject, object: &DynamicObject) -> String {
        let name = object.metadata.name.clone().unwrap_or_default();
        let manifest = read::trim(subject.kind, object);
        let is_same = |entry: &Entry| entry.manifest == manifest && !entry.loaded.has_errors();
        if self.objects.get(&name).is_some_and(is_same) {
            // A change that nobody here reads.
            return name;
        }
        let mut loaded = read::load(subject.kind.plural, &name, &manifest);
        let mut last_right = manifest;
        if loaded.has_errors()
            && let Some(before) = self.objects.remove(&name)
        {
            keep_last_good(&mut loaded, before.loaded);
            last_right = before.manifest;
        }
        self.objects.insert(name.clone(), Entry { manifest: last_right, loaded });
        name
    }
}

fn take_claim(claims: &mut OwnClaims, event: &Event<DynamicObject>) {
    match event {
        Event::Init => claims.begin_list(),
        Event::InitApply(object) => claims.listed(object),
        Event::InitDone => claims.end_list(),
        Event::Apply(object) => claims.set(object),
        Event::Delete(object) => claims.removed(object),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pool(cidr: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "projectcalico.org/v3", "kind": "IPPool",
            "metadata": {"name": "a", "resourceVersion": "7"}, "spec": {"cidr": cidr},
        }))
        .unwrap()
    }

    fn subject() -> Subject {
        let pools = |subject: &Subject| subject.kind.kind == "IPPool";
        Subject::of_every_node("node1").into_iter().find(pools).unwrap()
    }

    fn cidr(list: &List) -> (String, usize) {
        let catalog = catalog(list.objects.values().map(|entry| &entry.loaded));
        let problems = catalog.problems.len();
        let pools = Snapshot::new(catalog).pools;
        (pools.get("a").map(|pool| pool.spec.cidr.to_string()).unwrap_or_default(), problems)
    }

    #[test]
    fn a_damaged_object_keeps_what_was_last_right() {
        let (mut list, subject) = (List::default(), subject());
        let mut take = |event| {
            list.take(&subject, event);
            (cidr(&list), list.objects.get("a").map(|e| e.manifest["spec"]["cidr"].clone()))
        };
        let right = Some(json!("10.0.0.0/16"));
        let good = ("10.0.0.0/16".to_owned(), 0);
        assert_eq!(take(Event::Apply(pool("10.0.0.0/16"))), (good.clone(), right.clone()));
        let kept = ("10.0.0.0/16".to_owned(), 1);
        assert_eq!(take(Event::Apply(pool("10.0.0.1/16"))), (kept.clone(), right.clone()));
        assert_eq!(take(Event::Apply(pool("nonsense"))), (kept, right.clone()));
        assert_eq!(take(Event::Apply(pool("10.0.0.0/16"))), (good, right));
        assert_eq!(take(Event::Delete(pool("10.0.0.0/16"))), ((String::new(), 0), None));
    }

    #[test]
    fn a_new_list_takes_away_what_it_lacks() {
        let (mut list, subject) = (List::default(), subject());
        list.take(&subject, Event::Apply(pool("10.0.0.0/16")));
        list.take(&subject, Event::Init);
        assert_eq!(list.objects.len(), 1, "not before it is complete");
        list.take(&subject, Event::InitDone);
        assert_eq!(list.objects.len(), 0);
    }
}
