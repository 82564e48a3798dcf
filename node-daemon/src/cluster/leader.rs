//! Who leads looks at everything, and writes what is to be said and done: what differs, and no more than a
//! little at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    api::{ListParams, Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use serde_json::json;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{info, warn};
use twill_k8s_api::Condition;
use twill_types::{Block, Prefix, error_chain};

use super::{
    backlog::Backlog,
    conditions::{Change, Counts, Stated, compare, new_faults, shorten, state},
    departed::Departed,
    kinds::{CONFIGURATION, List, OF_NODES},
    metrics::{FaultLabels, Gauges, Metrics},
    of_nodes,
    passing::Passing,
    pools::{self, FINALIZER, PoolView},
    requests::{RequestError, Requests},
    rollup::{Said, bad_news, roll_up},
    sense,
    watching::{self, News},
    world::World,
};
use crate::{backoff::Backoff, datastore::kubernetes::ApiError};

/// Who writes.
const MANAGER: &str = "twill-controller";

/// How long changes are gathered: many come at once.
const GATHER: Duration = Duration::from_secs(1);

/// The least time between two writes to one object where only numbers and texts have changed.
const DETAILS: Duration = Duration::from_secs(10);

/// How many objects are written to at once before what was told meanwhile is looked at.
const WRITES: usize = 50;

/// The longest pause after the API server did not answer.
const LONGEST: Duration = Duration::from_secs(30);

/// How much may wait to be looked at.
const QUEUE: usize = 256;

/// The longest text of an Event, octets.
const NOTE: usize = 1000;

/// Reasons that make no Event.
const UNTOLD: [&str; 6] =
    ["Disabled", "Deleting", "NotForWorkloads", "NotImplemented", "Refused", "Returned"];

/// The controller's work.
pub(super) struct Leader {
    requests: Arc<Requests>,
    metrics: Metrics,
    recorder: Recorder,
    world: World,
    departed: Departed,
    /// When each object was written to last, and whether that went well.
    written: BTreeMap<(List, String), (Instant, bool)>,
    /// What Events have told of objects, condition and reason: also where no status can be written.
    told: BTreeMap<(List, String), BTreeSet<(String, String)>>,
    /// What is to be said of requests, if it stands.
    passing: Passing,
    /// Whether there is something to look at.
    is_dirty: bool,
    /// When the API server does not answer.
    backoff: Backoff,
    /// Why it cannot do all its work.
    problems: watch::Sender<Vec<String>>,
}

/// What is to stand in an object's status.
struct Wanted {
    list: List,
    name: String,
    before: Vec<Stated>,
    after: Vec<Stated>,
    counts: Counts,
    change: Change,
}

impl Leader {
    pub(super) fn new(
        requests: Arc<Requests>,
        metrics: Metrics,
        identity: &str,
        grace: Duration,
        problems: watch::Sender<Vec<String>>,
    ) -> Self {
        let reporter =
            Reporter { controller: MANAGER.to_owned(), instance: Some(identity.to_owned()) };
        let recorder = Recorder::new(requests.client(), reporter);
        let departed = Departed::new(Arc::clone(&requests), metrics.clone(), grace);
        Self {
            requests,
            metrics,
            recorder,
            world: World::default(),
            departed,
            written: BTreeMap::new(),
            told: BTreeMap::new(),
            passing: Passing::default(),
            is_dirty: false,
            backoff: Backoff::new(GATHER, LONGEST),
            problems,
        }
    }

    /// Runs as long as this process leads; returns only if a part of it has died.
    pub(super) async fn run(mut self) {
        let (sender, mut news) = mpsc::channel(QUEUE);
        // They end with this task.
        let mut watches = JoinSet::new();
        for list in CONFIGURATION.into_iter().chain(OF_NODES) {
            watches.spawn(watching::follow(self.requests.client(), list, sender.clone()));
        }
        let mut next_look = Instant::now() + GATHER;
        let mut backlog = Backlog::default();
        loop {
            let look = tokio::time::sleep_until(next_look.into());
            tokio::select! {
                // There is a sender here, so it goes on for ever.
                Some((list, news)) = news.recv() => self.take(list, news),
                () = look => {
                    let pause = backlog.gather_during(self.look(), &mut news).await;
                    next_look = Instant::now() + pause;
                    backlog.take().for_each(|(list, news)| self.take(list, news));
                }
                // What a watch does not tell any more would be old for ever.
                Some(_) = watches.join_next() => return,
            }
        }
    }

    fn take(&mut self, list: List, news: News) {
        self.is_dirty |= self.world.take(list, news);
    }

    /// Does what there is to do; how long to wait until the next time.
    async fn look(&mut self) -> Duration {
        let outcome = self.work().await;
        let mut said: Vec<String> = self.world.faults().into_iter().collect();
        said.extend(self.requests.refusals());
        said.extend(self.world.unread());
        let pause = match outcome {
            Ok(()) => {
                self.backoff.succeeded();
                GATHER
            }
            Err(error) => {
                said.push(error_chain(&error));
                // What is not done yet is to be done later.
                self.is_dirty = true;
                self.backoff.failed()
            }
        };
        crate::problems::tell(&self.problems, said);
        pause
    }

    async fn work(&mut self) -> Result<(), RequestError> {
        if std::mem::take(&mut self.is_dirty) {
            self.settle().await?;
        }
        let before = self.departed.missing();
        let outcome = self.departed.look(&mut self.world).await;
        // Told as a figure, also where no object changes any more.
        self.is_dirty |= self.departed.missing() != before;
        outcome
    }

    /// Brings what is said about objects, and what holds pools, up to date.
    async fn settle(&mut self) -> Result<(), RequestError> {
        // Without these, reports and claims would seem to be missing.
        if !OF_NODES.iter().all(|list| self.world.is_complete(*list)) {
            return Ok(());
        }
        let pools = pools::look(&self.world);
        self.hold_pools(&pools).await?;
        let now = jiff::Timestamp::now().to_string();
        let mut wanted = wanted(&self.world, &pools, &now);
        self.metrics.found(gauges(&self.world, &wanted, &pools, self.departed.missing()));
        self.written.retain(|(list, name), _| self.world.meta(*list, name).is_some());
        self.told.retain(|(list, name), _| self.world.meta(*list, name).is_some());
        self.passing.keep(|name| self.world.requests.contains_key(name));
        // What turns first.
        wanted.retain(|wanted| wanted.change > Change::Nothing);
        wanted.sort_by_key(|wanted| std::cmp::Reverse(wanted.change));
        let mut writes = 0;
        for wanted in wanted {
            let key = (wanted.list, wanted.name.clone());
            let waits = self.written.get(&key).is_some_and(|(when, went_well)| {
                when.elapsed() < DETAILS && (wanted.change == Change::Details || !went_well)
            });
            if waits || writes == WRITES || self.passes(&wanted) {
                self.is_dirty = true;
                continue;
            }
            writes += 1;
            let went_well = settled(self.write(&wanted).await)?.is_some();
            self.written.insert(key, (Instant::now(), went_well));
            self.is_dirty |= !went_well;
        }
        Ok(())
    }

    /// Whether something is said of a request that may not be so for long.
    fn passes(&mut self, wanted: &Wanted) -> bool {
        let reason = wanted.after.first().map_or("", |stated| stated.condition.reason.as_str());
        wanted.list == List::Requests && !self.passing.stands(&wanted.name, reason, Instant::now())
    }

    /// Tells people of what is new and bad, and writes a status.
    async fn write(&mut self, wanted: &Wanted) -> Result<(), RequestError> {
        let Wanted { list, name, before, after, .. } = wanted;
        let Some(meta) = self.world.meta(*list, name) else { return Ok(()) };
        let uid = meta.uid.clone();
        // Before the status: what stands there has been told.
        let gist = |condition: &Condition| (condition.kind.clone(), condition.reason.clone());
        let bad = after.iter().map(|stated| &stated.condition).filter(|c| c.is_bad());
        let bad: BTreeSet<_> = bad.map(gist).collect();
        let mut told = self.told.remove(&(*list, name.clone())).unwrap_or_default();
        told.retain(|fault| bad.contains(fault));
        for fault in new_faults(before, after) {
            if told.insert(gist(fault)) {
                settled(self.tell(*list, name, &uid, fault).await)?;
            }
        }
        self.told.insert((*list, name.clone()), told);
        let mut status = json!({});
        if !after.is_empty() {
            status["conditions"] = json!(after);
        }
        if CONFIGURATION.contains(list) {
            status["nodes"] = json!(wanted.counts);
        }
        let object = json!({
            "apiVersion": list.api_version(), "kind": list.kind(),
            "metadata": {"name": name, "uid": uid}, "status": status,
        });
        let (api, params) = (self.requests.objects(*list), PatchParams::apply(MANAGER).force());
        let patch = Patch::Apply(&object);
        let request = api.patch_status(name, &params, &patch);
        let written = self.requests.write("patch", list.status(), name, request).await?;
        self.world.apply(*list, &written);
        Ok(())
    }

    /// An Event about an object. The recorder makes those of one kind one.
    async fn tell(
        &self,
        list: List,
        name: &str,
        uid: &str,
        fault: &Condition,
    ) -> Result<(), RequestError> {
        // What people have asked for is no news to them, nor what nodes settle between them.
        if UNTOLD.contains(&fault.reason.as_str()) {
            return Ok(());
        }
        let (kind, reason) = (list.kind(), fault.reason.as_str());
        warn!(kind, name, reason, "{}", fault.message);
        let mut note = fault.message.clone();
        shorten(&mut note, NOTE);
        let event = Event {
            type_: EventType::Warning,
            reason: fault.reason.clone(),
            note: Some(note),
            action: fault.kind.clone(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some(list.api_version().to_owned()),
            kind: Some(kind.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        };
        let request = self.recorder.publish(&event, &about);
        self.requests.write("create", "events", name, request).await?;
        self.metrics.event();
        Ok(())
    }

    /// Puts the finalizer on pools that have claims, and takes it off those that have none.
    async fn hold_pools(&mut self, pools: &BTreeMap<String, PoolView>) -> Result<(), RequestError> {
        for (name, view) in pools {
            let Some(meta) = self.world.meta(List::Pools, name).cloned() else { continue };
            let is_held = meta.finalizers.iter().any(|finalizer| finalizer == FINALIZER);
            let is_used = view.claims > 0;
            // Nothing can be added to what is being deleted.
            if is_held == is_used || (is_used && meta.is_deleting) {
                continue;
            }
            let is_sure = is_used || self.world.is_current(List::Claims);
            if !is_sure || !is_used && !settled(self.is_unclaimed(name).await)?.unwrap_or(false) {
                self.is_dirty = true;
                continue;
            }
            let mut finalizers = meta.finalizers.clone();
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            finalizers.extend(is_used.then(|| FINALIZER.to_owned()));
            let patch = json!({"metadata": {
                "uid": meta.uid, "resourceVersion": meta.version, "finalizers": finalizers,
            }});
            let (api, params) = (self.requests.objects(List::Pools), PatchParams::default());
            let patch = Patch::Merge(&patch);
            let request = api.patch(name, &params, &patch);
            let written = self.requests.write("patch", "ippools", name, request).await;
            let Some(written) = settled(written)? else {
                // Tried again, also where nothing else changes: the permission may come.
                self.is_dirty = true;
                continue;
            };
            info!(
                pool = name,
                claims = view.claims,
                held = is_used,
                "the pool's finalizer changed"
            );
            if written.metadata.finalizers.is_none() && meta.is_deleting {
                self.world.remove(List::Pools, name);
            } else {
                self.world.apply(List::Pools, &written);
            }
        }
        Ok(())
    }

    /// Whether really nobody has a block of a pool: a claim may have been made a moment ago.
    async fn is_unclaimed(&self, pool: &str) -> Result<bool, RequestError> {
        let api = self.requests.objects(List::Claims);
        let params = ListParams::default();
        let Some(cidr) = pools::cidr(&self.world, pool) else {
            // Where its blocks are cannot be told, so each claim is asked.
            let request = api.list(&params);
            let found = self.requests.read("list", "blockaffinities", "", request).await?;
            return Ok(!found.items.iter().any(|claim| claim.data["spec"]["pool"] == json!(pool)));
        };
        let request = api.list_metadata(&params);
        let found = self.requests.read("list", "blockaffinities", "", request).await?;
        // Those that the watch has told of are known not to be of it.
        let is_new = |name: &String| !self.world.claims.contains_key(name) && is_inside(name, cidr);
        Ok(!found.items.iter().any(|claim| claim.metadata.name.as_ref().is_some_and(is_new)))
    }
}

fn is_inside(claim: &str, cidr: Prefix) -> bool {
    Block::from_claim_name(claim).is_ok_and(|block| cidr.covers(block.prefix()))
}

/// What was answered; an error only where any other request would come to nothing, too. The others are
/// said where they happen.
pub(super) fn settled<T>(outcome: Result<T, RequestError>) -> Result<Option<T>, RequestError> {
    match outcome {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is_general() => Err(error),
        // Somebody else has written it, or it is gone: the watch will tell.
        Err(error) if error.is(409) || error.is(404) => Ok(None),
        // Said when it was refused.
        Err(RequestError::Api(ApiError::Forbidden { .. })) => Ok(None),
        Err(error) => {
            warn!("{}", error_chain(&error));
            Ok(None)
        }
    }
}

/// What is to stand in the status of each object.
fn wanted(world: &World, pools: &BTreeMap<String, PoolView>, now: &str) -> Vec<Wanted> {
    let mut findings = sense::look(world);
    // What a node without a Node says does not count any more.
    let speaking = world.statuses.iter().filter(|(node, status)| {
        world.nodes.contains_key(*node) && !status.report.objects.is_empty()
    });
    let mut reports: BTreeMap<(&str, &str), Vec<Said<'_>>> = BTreeMap::new();
    let mut nodes = 0;
    for (node, status) in speaking {
        nodes += 1;
        for report in &status.report.objects {
            reports.entry((&report.kind, &report.name)).or_default().push((node, report));
        }
    }
    let mut all = Vec::new();
    for list in CONFIGURATION.into_iter().filter(|list| world.is_complete(*list)) {
        for (name, entry) in world.entries(list) {
            let said = reports.get(&(list.reported_as(), name.as_str()));
            let said = said.map_or(&[][..], Vec::as_slice);
            let own = entry.problems.first().map(ToString::to_string);
            let (mut conditions, counts) =
                roll_up(said, nodes, entry.meta.generation, own.as_deref());
            let found = findings.remove(&(list, name.clone())).unwrap_or_default();
            let of_pool = pools.get(name).filter(|_| list == List::Pools);
            let of_pool = of_pool.map(|view| view.conditions.clone()).unwrap_or_default();
            for condition in found.into_iter().chain(of_pool) {
                add(&mut conditions, condition);
            }
            let after = state(&entry.conditions, conditions, entry.meta.generation, now);
            let mut change = compare(&entry.conditions, &after);
            if change == Change::Nothing && counts != entry.counts {
                change = Change::Details;
            }
            let (name, before) = (name.clone(), entry.conditions.clone());
            all.push(Wanted { list, name, before, after, counts, change });
        }
    }
    // Of claims there are many, and nothing to say about most.
    for (name, entry) in &world.claims {
        // What another node says of it is not for this object.
        let owner = entry.claim.as_ref().map(|claim| claim.node.as_str());
        let said = reports.get(&(List::Claims.kind(), name.as_str())).into_iter().flatten();
        let said: Vec<Said<'_>> = said.filter(|(node, _)| owner == Ok(node)).copied().collect();
        let mut found = bad_news(&said, entry.meta.generation);
        for condition in findings.remove(&(List::Claims, name.clone())).unwrap_or_default() {
            add(&mut found, condition);
        }
        if found.is_empty() && entry.conditions.is_empty() {
            continue;
        }
        let after = state(&entry.conditions, found, entry.meta.generation, now);
        let change = compare(&entry.conditions, &after);
        let (name, before, counts) = (name.clone(), entry.conditions.clone(), Counts::default());
        all.push(Wanted { list: List::Claims, name, before, after, counts, change });
    }
    for (list, name, meta, before) in of_nodes::all(world) {
        let found = findings.remove(&(list, name.clone())).unwrap_or_default();
        // Most nodes' own.
        if found.is_empty() && before.is_empty() {
            continue;
        }
        let after = state(before, found, meta.generation, now);
        let change = compare(before, &after);
        let (name, before, counts) = (name.clone(), before.to_vec(), Counts::default());
        all.push(Wanted { list, name, before, after, counts, change });
    }
    all
}

/// Adds what the controller itself has found. Its bad news go before what nodes say of the same type,
/// and its good ones do not hide bad ones of theirs.
fn add(conditions: &mut Vec<Condition>, own: Condition) {
    match conditions.iter_mut().find(|known| known.kind == own.kind) {
        None => conditions.push(own),
        Some(known) if known.is_bad() && !own.is_bad() => {}
        Some(known) => *known = own,
    }
}

fn gauges(
    world: &World,
    wanted: &[Wanted],
    pools: &BTreeMap<String, PoolView>,
    gone: usize,
) -> Gauges {
    let mut faults: BTreeMap<FaultLabels, u64> = BTreeMap::new();
    for wanted in wanted {
        let bad = wanted.after.iter().map(|stated| &stated.condition).filter(|c| c.is_bad());
        for condition in bad.filter(|bad| !of_nodes::is_ordinary(wanted.list, bad)) {
            let labels = FaultLabels {
                kind: wanted.list.kind(),
                condition: condition.kind.clone(),
                reason: condition.reason.clone(),
            };
            *faults.entry(labels).or_default() += 1;
        }
    }
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let addresses = |(name, view): (&String, &PoolView)| Some((name.clone(), view.addresses?));
    let nodes = world.statuses.keys().filter(|node| world.nodes.contains_key(*node)).count();
    Gauges {
        faults,
        pools: pools.iter().filter_map(addresses).collect(),
        nodes: number(nodes),
        gone_nodes: number(gone),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use twill_k8s_api::Resource;

    use super::{
        super::samples::{self, object},
        *,
    };

    fn status(node: &str, objects: Value) -> (List, kube::core::DynamicObject) {
        let mut status = object(List::NodeStatuses, node, json!({"node": node}));
        status.data["status"] = json!({"objects": objects});
        (List::NodeStatuses, status)
    }

    fn node(name: &str) -> (List, kube::core::DynamicObject) {
        (List::Nodes, object(List::Nodes, name, Value::Null))
    }

    fn accepted(kind: &str, name: &str) -> Value {
        let condition =
            json!({"type": "Accepted", "status": "True", "reason": "Valid", "message": ""});
        json!({"kind": kind, "name": name, "conditions": [condition]})
    }

    fn render(world: &World) -> Vec<String> {
        let one = |wanted: Wanted| {
            let said = wanted.after.iter().map(|s| {
                let Condition { kind, status, reason, .. } = &s.condition;
                format!("{kind}={status:?}/{reason}")
            });
            let said = said.collect::<Vec<_>>().join(" ");
            let Counts { accepted, refused } = wanted.counts;
            format!("{}/{} {said} {accepted}+{refused}", wanted.list.plural(), wanted.name)
        };
        wanted(world, &pools::look(world), "now").into_iter().map(one).collect()
    }

    #[test]
    fn every_object_gets_what_nodes_and_the_controller_say() {
        let reports = json!([
            accepted("IPPool", "a"),
            accepted("IPPool", "b"),
            accepted("IPAMConfiguration", "default"),
        ]);
        let world = samples::world(&[
            (List::Pools, object(List::Pools, "a", json!({"cidr": "10.0.0.0/16"}))),
            (List::Pools, object(List::Pools, "b", json!({"cidr": "10.0.0.0/17"}))),
            (
                List::Peers,
                object(List::Peers, "p", json!({"peerIP": "1.1.1.1", "nodeSelector": "=="})),
            ),
            (
                List::IpamConfigs,
                object(List::IpamConfigs, "default", json!({"strictAffinity": true})),
            ),
            (
                List::Claims,
                object(
                    List::Claims,
                    "0a000000-26",
                    json!({"node": "n1", "cidr": "10.0.0.0/26", "pool": "a"}),
                ),
            ),
            node("n1"),
            node("n2"),
            status("n1", reports.clone()),
            status("n2", reports.clone()),
            // Without a Node, it does not count.
            status("gone", json!([])),
            status("gone2", reports),
        ]);
        assert_eq!(
            render(&world),
            [
                "ippools/a Accepted=True/Accepted Allocatable=True/Usable 2+0",
                "ippools/b Accepted=True/Accepted Allocatable=False/Overlaps 2+0",
                "bgppeers/p Accepted=False/Invalid 0+0",
                "ipamconfigs/default Accepted=True/Accepted 2+0",
            ]
        );
    }

    #[test]
    fn what_owners_say_of_their_claims_and_limits_is_told() {
        let claim = json!({"node": "n1", "cidr": "10.0.0.0/26", "pool": "a"});
        let condition = |kind: &str, status: &str, reason: &str| json!([{"type": kind, "status": status, "reason": reason, "message": ""}]);
        let of_claim = condition("Assigning", "False", "SecondOrigin");
        let of_claim =
            json!({"kind": "BlockAffinity", "name": "0a000000-26", "conditions": of_claim});
        let limit = condition("BlockLimitReached", "True", "MaxBlocksPerHost");
        let limit = json!({"kind": "IPAMConfiguration", "name": "default", "conditions": limit});
        let said_by = |node: &str| {
            let world = samples::world(&[
                (List::Claims, object(List::Claims, "0a000000-26", claim.clone())),
                (List::IpamConfigurations, object(List::IpamConfigurations, "default", json!({}))),
                self::node(node),
                status(node, json!([of_claim, limit])),
            ]);
            render(&world)
        };
        let of_limit = "ipamconfigurations/default Accepted=Unknown/NoReports \
                        BlockLimitReached=True/MaxBlocksPerHost 0+0";
        let of_claim = "blockaffinities/0a000000-26 Assigning=False/SecondOrigin 0+0";
        assert_eq!(said_by("n1"), [of_limit, of_claim]);
        assert_eq!(said_by("n2"), [of_limit], "the claim is another's");
    }

    #[test]
    fn what_was_said_of_a_claim_is_taken_back() {
        let mut claim = object(
            List::Claims,
            "0a000000-26",
            json!({"node": "n1", "cidr": "10.0.0.0/26", "pool": "a"}),
        );
        claim.data["status"] = json!({"conditions": [
            {"type": "Accepted", "status": "False", "reason": "Damaged", "message": "it was"},
        ]});
        let world = samples::world(&[(List::Claims, claim)]);
        let all = wanted(&world, &BTreeMap::new(), "now");
        assert_eq!((all.len(), all[0].after.len(), all[0].change), (1, 0, Change::Turn));
    }

    #[test]
    fn the_controllers_good_news_do_not_hide_a_nodes_bad_ones() {
        let mut conditions = vec![Condition::fails("Allocatable", "NoBlock", "by a node")];
        add(&mut conditions, Condition::holds("Allocatable", "Usable", ""));
        assert_eq!(conditions[0].reason, "NoBlock");
        add(&mut conditions, Condition::fails("Allocatable", "Disabled", ""));
        assert_eq!((conditions.len(), conditions[0].reason.as_str()), (1, "Disabled"));
    }

    #[test]
    fn a_request_that_is_over_is_no_fault() {
        let mut objects =
            vec![(List::Pools, object(List::Pools, "a", json!({"cidr": "nonsense"})))];
        for (name, status) in [("r1", json!({"refused": "no"})), ("r2", json!({"returned": true}))]
        {
            let mut request = object(List::Requests, name, json!({"node": "n1", "owner": "n2"}));
            request.data["status"] = status;
            objects.push((List::Requests, request));
        }
        let world = samples::world(&objects);
        let wanted = wanted(&world, &BTreeMap::new(), "now");
        assert_eq!(wanted.len(), 3, "they are said");
        let faults = gauges(&world, &wanted, &BTreeMap::new(), 0).faults;
        let faults: Vec<_> = faults.iter().map(|(of, count)| (of.kind, *count)).collect();
        assert_eq!(faults, [("IPPool", 1)]);
    }

    #[test]
    fn a_pool_of_a_broken_object_is_no_pool() {
        let world =
            samples::world(&[(List::Pools, object(List::Pools, "a", json!({"cidr": "nonsense"})))]);
        assert!(!matches!(world.configuration[&List::Pools]["a"].value, Some(Resource::IpPool(_))));
        assert_eq!(render(&world), ["ippools/a Accepted=False/Invalid 0+0"]);
    }
}
