//! The task that makes snapshots of what the watches tell.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use kube::{core::DynamicObject, runtime::watcher::Event};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{info, warn};
use twill_k8s_api::{BgpPassword, BgpPeerSpec, Loaded, files::catalog};
use twill_types::error_chain;

use super::{
    access::Access,
    cache::Cache,
    deaths::Following,
    owned::OwnClaims,
    read,
    requests::{NodeRequests, Side},
    subject::Subject,
    watching::{self, News},
};
use crate::{
    datastore::{Snapshot, file::keep_last_good},
    problems,
    tasks::Tasks,
};

/// How long changes are gathered before they are looked at: several come at once.
const GATHER: Duration = Duration::from_millis(20);

/// The least time between two writes of the copy, and how many times as long as the last one took: with
/// ten thousand Nodes it has megabytes, and one of them changes all the time.
const COPY: Duration = Duration::from_secs(1);
const COPY_FACTOR: u32 = 20;

/// After how many failures in a row the node does without a Secret.
const ENOUGH: u32 = 3;

/// How much may wait to be looked at.
const QUEUE: usize = 256;

/// What this node has on the API server: its claims, and the requests that matter to it.
pub(super) type Own = (watch::Sender<Arc<OwnClaims>>, watch::Sender<Arc<NodeRequests>>);

/// How far the API server has come with telling everything once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// It has not said anything.
    Silent,
    /// A list is complete.
    Begun,
    /// One is refused that is needed: there will be no more until people help.
    Stuck,
    Complete,
}

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
    fault: Option<Fault>,
}

/// Why a list cannot be had.
struct Fault {
    text: String,
    /// Only people can help.
    refused: bool,
    /// Failures in a row.
    times: u32,
}

/// The task.
pub(super) struct Collector {
    node: String,
    access: Arc<Access>,
    cache: Arc<Mutex<Cache>>,
    /// When the copy is to be written next, if anything is to be.
    copy_due: Option<Instant>,
    /// Before that it is not written again.
    copy_rests: Instant,
    /// What was in it at the start, each with the name of its list: not seen here yet.
    known: Vec<(String, Value)>,
    owned: watch::Sender<Arc<OwnClaims>>,
    requests: watch::Sender<Arc<NodeRequests>>,
    problems: watch::Sender<Vec<String>>,
    lists: BTreeMap<Subject, List>,
    following: BTreeMap<Subject, Following>,
    /// What has to be in sync for the next snapshot.
    wanted: BTreeSet<Subject>,
    news: mpsc::Receiver<(Subject, News)>,
    sender: mpsc::Sender<(Subject, News)>,
    resources: watch::Sender<Arc<Snapshot>>,
    progress: watch::Sender<Progress>,
    /// A claim is not what it was when it was written here.
    claims_changed: bool,
    /// Something is that the next snapshot is made of, or decides whether there is one.
    is_dirty: bool,
    /// Something is that the copy has otherwise.
    is_copy_old: bool,
}

impl Collector {
    pub(super) fn new(
        node: &str,
        access: &Arc<Access>,
        cache: Arc<Mutex<Cache>>,
        known: Vec<(String, Value)>,
        (owned, requests): Own,
        problems: watch::Sender<Vec<String>>,
    ) -> Self {
        let (sender, news) = mpsc::channel(QUEUE);
        let mut wanted: BTreeSet<Subject> = Subject::of_every_node(node).into_iter().collect();
        wanted.insert(Subject::nodes(Some(node)));
        Self {
            node: node.to_owned(),
            access: Arc::clone(access),
            cache,
            copy_due: None,
            copy_rests: Instant::now(),
            known,
            owned,
            requests,
            problems,
            lists: BTreeMap::new(),
            following: BTreeMap::new(),
            wanted,
            news,
            sender,
            resources: watch::Sender::default(),
            progress: watch::Sender::new(Progress::Silent),
            claims_changed: false,
            is_dirty: false,
            is_copy_old: true,
        }
    }

    /// What `known` makes necessary is followed from the start, and not only when all that says so was told
    /// again.
    pub(super) fn expect(&mut self, known: &Snapshot) {
        self.wanted = self.wanted_by(known);
    }

    /// Starts; the snapshots, and how far it is. Both end with the task.
    pub(super) fn start(
        mut self,
        tasks: &mut Tasks,
    ) -> (watch::Sender<Arc<Snapshot>>, watch::Receiver<Progress>) {
        let (resources, progress) = (self.resources.clone(), self.progress.subscribe());
        // Now, so that what is followed from here on stands behind it.
        self.follow_wanted();
        tasks.endless("collector", self.run());
        (resources, progress)
    }

    async fn run(mut self) {
        let begun = self.cache.lock().unwrap_or_else(PoisonError::into_inner).begun();
        loop {
            let copy_due = self.copy_due;
            tokio::select! {
                news = self.news.recv() => {
                    // It has a sender itself, so it goes on for ever.
                    let Some((subject, news)) = news else { return };
                    self.take(&subject, news);
                    let deadline = Instant::now() + GATHER;
                    while let Ok(Some((subject, news))) = timeout_at(deadline, self.news.recv()).await {
                        self.take(&subject, news);
                    }
                    self.settle();
                }
                () = begun.notified(), if copy_due.is_some() => self.keep_copy(),
                () = sleep_until(copy_due.unwrap_or_else(Instant::now)), if copy_due.is_some() => {
                    self.keep_copy();
                }
            }
        }
    }

    /// Own claims and requests first: a slow server is asked for one list after another, and of these the copy may be
    /// wrong.
    fn follow_wanted(&mut self) {
        let (own, others): (Vec<_>, _) = self.wanted.iter().partition(|subject| subject.is_own());
        for subject in own.into_iter().chain::<Vec<_>>(others) {
            if !self.following.contains_key(subject) {
                let following = watching::start(&self.access, subject, &self.sender);
                self.following.insert(subject.clone(), following);
                let list = List::with_known(subject, &mut self.known);
                self.lists.insert(subject.clone(), list);
            }
        }
    }

    fn take(&mut self, subject: &Subject, news: News) {
        // News of one that is not followed any more may still come.
        let Some(list) = self.lists.get_mut(subject) else { return };
        let event = match news {
            News::Resumed => return self.is_dirty |= list.fault.take().is_some(),
            News::Failed { text, refused } => {
                if refused && !subject.is_optional() {
                    self.come_to(Progress::Stuck);
                }
                let Some(list) = self.lists.get_mut(subject) else { return };
                self.is_dirty |= subject.is_optional();
                let times = list.fault.as_ref().map_or(1, |fault| fault.times.saturating_add(1));
                return list.fault = Some(Fault { text, refused, times });
            }
            News::Event(event) => *event,
        };
        if !matches!(event, Event::Init | Event::InitApply(_)) {
            self.is_dirty |= list.fault.take().is_some();
        }
        let was_in_sync = list.in_sync;
        list.in_sync |= matches!(event, Event::InitDone);
        let is_in_sync = list.in_sync;
        self.is_dirty |= was_in_sync != is_in_sync;
        if subject.is_claims() {
            self.is_copy_old = true;
            self.claims_changed |= self.owned.send_if_modified(|claims| {
                let before = Arc::clone(claims);
                take_claim(Arc::make_mut(claims), &event);
                before.blocks() != claims.blocks()
            });
        } else if let Some(side) = subject.requests() {
            self.is_copy_old = true;
            // One that somebody removes is made again by who looks after claims.
            self.claims_changed |= matches!(event, Event::Delete(_));
            self.requests.send_modify(|known| take_request(Arc::make_mut(known), side, &event));
        } else {
            let is_other = list.take(subject, event);
            self.is_dirty |= is_other;
            self.is_copy_old |= is_other;
        }
        if is_in_sync {
            self.come_to(Progress::Begun);
        }
    }

    fn come_to(&self, progress: Progress) {
        self.progress.send_if_modified(|at| {
            let is_further = *at < progress;
            *at = progress.max(*at);
            is_further
        });
    }

    /// Makes a snapshot, if everything that it needs is there and it would be another one: kubelets write
    /// their Nodes all the time, and nothing of that is read.
    fn settle(&mut self) {
        self.tell_faults();
        if std::mem::take(&mut self.is_dirty) {
            self.renew();
        } else if *self.progress.borrow() == Progress::Complete {
            if std::mem::take(&mut self.claims_changed) {
                self.resources.send_modify(|_| {});
            }
            self.want_copy();
        }
    }

    fn renew(&mut self) {
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
            self.is_copy_old = true;
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
                // What the copy has of it is used as long.
                let is_hopeless = |fault: &Fault| fault.refused || fault.times >= ENOUGH;
                let does_without = list.fault.as_ref().is_some_and(is_hopeless);
                list.in_sync || (does_without && subject.is_optional())
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
        let progress = &self.progress;
        self.resources.send_if_modified(|current| {
            // In here, so that nobody replaces what is in sync by what was known before.
            progress.send_if_modified(|at| std::mem::replace(at, Progress::Complete) != *at);
            let changed = snapshot.catalog != current.catalog;
            if changed {
                info!(objects = snapshot.catalog.resources.len(), "the resources changed");
                *current = Arc::new(snapshot);
            }
            changed || claims_changed
        });
        self.want_copy();
    }

    fn want_copy(&mut self) {
        if self.is_copy_old {
            self.copy_due = self.copy_due.or_else(|| Some(self.copy_rests.max(Instant::now())));
        }
    }

    /// Writes the copy, if what is in it has changed.
    fn keep_copy(&mut self) {
        let objects = self.lists.iter().flat_map(|(subject, list)| {
            list.objects.values().map(|entry| (subject.kind.plural, &entry.manifest))
        });
        let objects: Vec<_> = objects.collect();
        let started = Instant::now();
        let written = block_in_place(|| {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            // Under the lock: a claim that is given back meanwhile must not be written again.
            let mut claims = self.owned.borrow().manifests();
            claims.extend(self.requests.borrow().manifests());
            cache.write(&objects, &claims)
        });
        // Until the next change, if it could not be.
        self.is_copy_old = written.is_err();
        let is_done = written.unwrap_or_else(|error| {
            let error = error_chain(&error);
            warn!(error, "the copy for a start without the API server is out of date");
            true
        });
        self.copy_rests = Instant::now() + COPY.max(started.elapsed() * COPY_FACTOR);
        // Until it is this daemon's to write.
        self.copy_due = (!is_done).then_some(self.copy_rests);
    }

    /// What a snapshot makes necessary: all Nodes for the mesh and for peers that only a Node tells more
    /// of, the Secrets that sessions name.
    fn wanted_by(&self, snapshot: &Snapshot) -> BTreeSet<Subject> {
        let mut wanted: BTreeSet<Subject> =
            Subject::of_every_node(&self.node).into_iter().collect();
        let default = snapshot.bgp_default();
        let has_mesh = default.and_then(|spec| spec.node_to_node_mesh_enabled).unwrap_or(true);
        // Whether a peer with that address is a reflector, too, and where it listens.
        let own = snapshot.nodes.get(&self.node);
        let is_reflector = own.is_some_and(|own| own.route_reflector_cluster_id().is_some());
        let mut configurations = snapshot.bgp_configurations.iter();
        let has_ports = configurations
            .any(|(name, found)| name.starts_with("node.") && found.spec.listen_port.is_some());
        let depends = |spec: &BgpPeerSpec| {
            let may_be_node = spec.peer_ip.is_some() && (is_reflector || has_ports);
            spec.depends_on_nodes() || may_be_node
        };
        let needs_nodes = snapshot.peers.values().any(|peer| depends(&peer.spec));
        let only_own = !has_mesh && !needs_nodes;
        wanted.insert(Subject::nodes(only_own.then_some(self.node.as_str())));
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
        let refused = faults.clone().filter(|fault| fault.refused);
        let mut said: Vec<String> = refused.map(|fault| fault.text.clone()).collect();
        if let Some(Fault { text, .. }) = faults.clone().find(|fault| !fault.refused) {
            said.push(format!(
                "the API server {} is away; what was last known holds, and the daemon tries again by \
                 itself: {text}",
                self.access.server()
            ));
        }
        problems::tell(&self.problems, said);
    }
}

impl List {
    /// With what the copy has of it, taken out there: a broken object has something that was last right
    /// in it, and a Secret that cannot be had what it was. The first list takes the rest away.
    fn with_known(subject: &Subject, known: &mut Vec<(String, Value)>) -> Self {
        let plural = subject.kind.plural;
        let is_of_it = |(list, manifest): &mut (String, Value)| {
            list == plural && subject.only().is_none_or(|only| read::name(manifest) == only)
        };
        let entry = |(_, manifest): (String, Value)| {
            let name = read::name(&manifest).to_owned();
            let loaded = read::load(plural, &name, &manifest);
            (name, Entry { manifest, loaded })
        };
        let objects = known.extract_if(.., is_of_it).map(entry).collect();
        Self { objects, ..Self::default() }
    }

    /// Whether anything that is read is another.
    fn take(&mut self, subject: &Subject, event: Event<DynamicObject>) -> bool {
        match event {
            Event::Init => {
                self.listing = Some(BTreeSet::new());
                false
            }
            Event::InitApply(object) => {
                let is_other = self.set(subject, &object);
                if let Some(listing) = &mut self.listing {
                    listing.insert(object.metadata.name.unwrap_or_default());
                }
                is_other
            }
            Event::InitDone => {
                let Some(listed) = self.listing.take() else { return false };
                let before = self.objects.len();
                self.objects.retain(|name, _| listed.contains(name));
                self.objects.len() != before
            }
            Event::Apply(object) => self.set(subject, &object),
            Event::Delete(object) => {
                self.objects.remove(&object.metadata.name.unwrap_or_default()).is_some()
            }
        }
    }

    /// Reads an object; whether it is another. One that is broken now keeps what was last right in it.
    fn set(&mut self, subject: &Subject, object: &DynamicObject) -> bool {
        let name = object.metadata.name.clone().unwrap_or_default();
        let manifest = read::trim(subject.kind, object);
        let is_same = |entry: &Entry| entry.manifest == manifest && !entry.loaded.has_errors();
        if self.objects.get(&name).is_some_and(is_same) {
            // A change that nobody here reads.
            return false;
        }
        let mut loaded = read::load(subject.kind.plural, &name, &manifest);
        // Another object of the same name says nothing about this one.
        let is_it =
            |before: &Entry| before.manifest["metadata"]["uid"] == manifest["metadata"]["uid"];
        if loaded.has_errors()
            && let Some(before) = self.objects.remove(&name).filter(is_it)
        {
            keep_last_good(&mut loaded, before.loaded);
            let entry = Entry { manifest: before.manifest, loaded };
            self.objects.insert(name, entry);
            return true;
        }
        self.objects.insert(name, Entry { manifest, loaded });
        true
    }
}

fn take_request(requests: &mut NodeRequests, side: Side, event: &Event<DynamicObject>) {
    match event {
        Event::Init => requests.begin_list(side),
        Event::InitApply(object) | Event::Apply(object) => requests.set(object),
        Event::InitDone => requests.end_list(side),
        Event::Delete(object) => {
            let (name, uid) = (&object.metadata.name, &object.metadata.uid);
            requests
                .removed(name.as_deref().unwrap_or_default(), uid.as_deref().unwrap_or_default());
        }
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
mod tests;
