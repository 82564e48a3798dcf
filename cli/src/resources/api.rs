//! Kubernetes' API server as the datastore.
//!
//! One thread, one runtime, which exists only where a command needs the API server. Each request has a
//! deadline.

mod answer;
mod connect;
mod ipam;
mod kinds;
mod release;

use std::{future::Future, time::Duration};

use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PatchParams, PostParams},
    core::{ApiResource, DynamicObject, GroupVersionKind},
    discovery::{Scope, pinned_kind},
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, time::timeout};
use twill_k8s_api::{Kind, Loaded, Loc, ObjectId, Resource, files::Statuses};
use twill_rpc::message::IpamNodeReleased;

use self::answer::{Request, is_own_conflict};
pub(crate) use self::connect::{Cluster, ConnectError, has_kubeconfig};
use super::{
    Done, Item, Listing, Patch, ResourceError, Resources, Target, Write,
    manifest::{anew, document, read_back, shown},
};
use crate::{input::Identity, ipam::Datastore};

/// Whose fields those are that this program writes.
const MANAGER: &str = "twillctl";

/// How long one request may take.
const DEADLINE: Duration = Duration::from_secs(15);

/// How many objects one answer to a list has at most.
const PAGE: u32 = 500;

/// A connection to an API server.
pub(crate) struct ApiServer {
    client: Client,
    server: String,
    namespace: String,
    /// How long one request may take.
    deadline: Duration,
    // Dropped after the client.
    runtime: Runtime,
}

/// A kind, and where its objects are.
struct Place {
    resource: ApiResource,
    namespace: Option<String>,
}

impl ApiServer {
    /// Finds the server; nothing is asked yet.
    pub(crate) fn open(cluster: &Cluster) -> Result<Self, ConnectError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ConnectError::Runtime)?;
        let (client, server, namespace) = runtime.block_on(async {
            let (config, proxy) = cluster.config().await?;
            let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
            let namespace = config.default_namespace.clone();
            Ok::<_, ConnectError>((connect::client(config, proxy.as_ref())?, server, namespace))
        })?;
        Ok(Self { client, server, namespace, deadline: DEADLINE, runtime })
    }

    /// Waits for the answer to one request, and leaves what it means to the caller.
    fn answer<T>(
        &self,
        request: &Request<'_>,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<kube::Result<T>, ResourceError> {
        let answer = self.runtime.block_on(async { timeout(self.deadline, call).await });
        answer.map_err(|_| request.clone().late(self.deadline))
    }

    fn ask<T>(
        &self,
        request: Request<'_>,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, ResourceError> {
        self.answer(&request, call)?.map_err(|error| request.failed(error))
    }

    fn request(&self, verb: &'static str, place: &Place, name: &str) -> Request<'_> {
        let plural = &place.resource.plural;
        let what = if name.is_empty() { plural.clone() } else { format!("{plural}/{name}") };
        let what = match &place.namespace {
            Some(namespace) => format!("{what} in namespace {namespace}"),
            None => what,
        };
        Request { server: &self.server, verb, what }
    }

    fn api(&self, place: &Place) -> Api<DynamicObject> {
        match &place.namespace {
            Some(namespace) => {
                Api::namespaced_with(self.client.clone(), namespace, &place.resource)
            }
            None => Api::all_with(self.client.clone(), &place.resource),
        }
    }

    /// The kind of our own, all names of it.
    fn places(&self, kind: Kind) -> Vec<Place> {
        let namespace = kinds::is_namespaced(kind).then(|| self.namespace.clone());
        let place = |resource| Place { resource, namespace: namespace.clone() };
        kinds::resources(kind).into_iter().map(place).collect()
    }

    /// Where the object of a manifest belongs. Of a kind that Twill does not use the server is asked.
    fn place_of(&self, target: &Target) -> Result<Place, ResourceError> {
        let (version, name) = target.written.clone().unwrap_or_default();
        let own = || target.namespace.clone().unwrap_or_else(|| self.namespace.clone());
        if let Some(kind) = target.kind {
            let namespace = kinds::is_namespaced(kind).then(own);
            return Ok(Place { resource: kinds::written(kind, &name), namespace });
        }
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let gvk = GroupVersionKind::gvk(group, version, &name);
        let what = format!("{name}.{group}").to_lowercase();
        let request = Request { server: &self.server, verb: "get", what: what.clone() };
        let found = self.answer(&request, pinned_kind(&self.client, &gvk))?;
        match found {
            Ok((resource, capabilities)) => {
                let namespace = (capabilities.scope == Scope::Namespaced).then(own);
                Ok(Place { resource, namespace })
            }
            Err(kube::Error::Discovery(_)) => {
                Err(ResourceError::NotDefined { server: self.server.clone(), what })
            }
            Err(error) => Err(request.failed(error)),
        }
    }

    /// The object that is meant, and where it is. Of a kind with two names both are looked for.
    fn find(&self, target: &Target) -> Result<(Place, DynamicObject), ResourceError> {
        let not_found =
            || ResourceError::NotFound { object: target.title(), place: self.server.clone() };
        // It becomes a part of a path, and no object has such a name.
        if target.name.is_empty() || target.name.contains(['/', '?', '#', '%']) {
            return Err(not_found());
        }
        let places = match (target.kind, &target.written) {
            (Some(kind), None) => self.places(kind),
            _ => vec![self.place_of(target)?],
        };
        let count = places.len();
        for (number, place) in places.into_iter().enumerate() {
            let request = self.request("get", &place, &target.name);
            let api = self.api(&place);
            match self.ask(request, api.get(&target.name)) {
                Ok(object) => return Ok((place, object)),
                Err(ResourceError::NotFound { .. }) if number + 1 < count => {}
                Err(ResourceError::NotFound { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Err(not_found())
    }

    /// All objects at one place, page by page.
    fn list_place(&self, place: &Place, field: Option<&str>) -> Result<Vec<Value>, ResourceError> {
        let api = self.api(place);
        let mut objects = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        params.field_selector = field.map(str::to_owned);
        loop {
            let page = self.ask(self.request("list", place, ""), api.list(&params))?;
            for object in page.items {
                objects.push(self.value(place, object)?);
            }
            match page.metadata.continue_ {
                Some(token) if !token.is_empty() => params = params.continue_token(&token),
                _ => return Ok(objects),
            }
        }
    }

    /// As it is printed. The items of a list do not say what they are.
    fn value(&self, place: &Place, object: DynamicObject) -> Result<Value, ResourceError> {
        let name = object.metadata.name.clone().unwrap_or_default();
        let mut value =
            serde_json::to_value(object).map_err(|source| ResourceError::Unreadable {
                what: self.request("get", place, &name).what,
                source: source.into(),
            })?;
        value["apiVersion"] = json!(place.resource.api_version);
        value["kind"] = json!(place.resource.kind);
        Ok(shown(value))
    }

    /// The object that is to be sent.
    fn object(&self, place: &Place, value: Value) -> Result<DynamicObject, ResourceError> {
        let _ = self;
        let what = place.resource.plural.clone();
        let unreadable =
            |source: serde_json::Error| ResourceError::Unreadable { what, source: source.into() };
        serde_json::from_value(value).map_err(unreadable)
    }

    /// The version of an object that is there.
    fn version(&self, place: &Place, name: &str) -> Result<Option<DynamicObject>, ResourceError> {
        match self.ask(self.request("get", place, name), self.api(place).get(name)) {
            Ok(object) => Ok(Some(object)),
            Err(ResourceError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a write changed anything.
fn changed(before: &DynamicObject, after: &DynamicObject) -> Done {
    let is_same = before.metadata.resource_version == after.metadata.resource_version;
    // A dry run makes no new version.
    let is_same = is_same
        && before.data == after.data
        && before.metadata.labels == after.metadata.labels
        && before.metadata.annotations == after.metadata.annotations;
    if is_same { Done::Unchanged } else { Done::Changed }
}

impl Resources for ApiServer {
    fn place(&self) -> String {
        self.server.clone()
    }

    fn directory(&self) -> Option<&std::path::Path> {
        None
    }

    fn identity(&self) -> Identity {
        Resource::id_in_cluster
    }

    fn list(&self, kind: Kind, names: &[String]) -> Result<Listing, ResourceError> {
        let mut objects = Vec::new();
        for name in names {
            match self.get(&Target::named(kind, name)) {
                Ok(object) => objects.push(object),
                Err(ResourceError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        for place in self.places(kind).iter().filter(|_| names.is_empty()) {
            match self.list_place(place, None) {
                Ok(found) => objects.extend(found),
                // The older name of a kind need not be defined.
                Err(ResourceError::NotDefined { .. })
                    if place.resource.kind != kind.manifest_name() => {}
                Err(error) => return Err(error),
            }
        }
        let mut listing = Listing::default();
        for manifest in objects {
            let name = manifest["metadata"]["name"].as_str().unwrap_or_default();
            let mut loaded = read_back(&format!("{kind}/{name}"), &manifest);
            let resource = loaded.resources.pop().map(|found| found.value);
            // Everything stands on one line.
            listing.problems.extend(loaded.problems.into_iter().map(|mut problem| {
                problem.line = None;
                problem
            }));
            listing.items.push(Item { resource, manifest });
        }
        listing.items.sort_by(|a, b| a.name().cmp(b.name()));
        Ok(listing)
    }

    fn statuses(&self) -> Result<Statuses, ResourceError> {
        let mut all = Statuses::new();
        for status in self.node_statuses()? {
            for report in status.objects {
                let Some(kind) = Kind::from_manifest(&report.kind) else { continue };
                let kind = kind.singular().to_owned();
                let id = ObjectId { kind, namespace: None, name: report.name };
                all.entry(id).or_default().insert(status.node.clone(), report.conditions);
            }
        }
        Ok(all)
    }

    fn get(&self, target: &Target) -> Result<Value, ResourceError> {
        let (place, object) = self.find(target)?;
        self.value(&place, object)
    }

    fn read(&self, place: &str, object: &Value) -> Loaded {
        read_back(place, object)
    }

    fn create(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError> {
        let target = Target::of(manifest);
        let place = self.place_of(&target)?;
        let object = self.object(&place, anew(document(manifest)?))?;
        let params = PostParams { dry_run: write.dry_run, field_manager: Some(MANAGER.to_owned()) };
        let api = self.api(&place);
        self.ask(self.request("create", &place, &target.name), api.create(&params, &object))?;
        Ok(Done::Created)
    }

    fn apply(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError> {
        let target = Target::of(manifest);
        let place = self.place_of(&target)?;
        let before = self.version(&place, &target.name)?;
        // Whose field is whose is what it goes by. A version is what `replace` minds.
        let patch = kube::api::Patch::Apply(anew(document(manifest)?));
        let api = self.api(&place);
        let request = self.request("apply", &place, &target.name);
        let mut params = PatchParams::apply(MANAGER);
        (params.dry_run, params.force) = (write.dry_run, write.force);
        let mut answer = self.answer(&request, api.patch(&target.name, &params, &patch))?;
        // What `create`, `replace` or `patch` wrote in this program's name is no other's.
        if answer.as_ref().is_err_and(|error| is_own_conflict(error, MANAGER)) {
            params.force = true;
            answer = self.answer(&request, api.patch(&target.name, &params, &patch))?;
        }
        let after = answer.map_err(|error| request.failed(error))?;
        Ok(before.map_or(Done::Created, |before| changed(&before, &after)))
    }

    fn replace(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError> {
        let target = Target::of(manifest);
        let (place, before) = self.find(&target)?;
        let mut object = self.object(&place, document(manifest)?)?;
        let metadata = &mut object.metadata;
        if metadata.uid.is_some() && metadata.uid != before.metadata.uid {
            return Err(ResourceError::Another);
        }
        // Without a version of its own it replaces what is there now.
        if metadata.resource_version.is_none() {
            metadata.resource_version.clone_from(&before.metadata.resource_version);
        }
        // Whoever holds an object is not to lose it because a manifest does not say so.
        if metadata.finalizers.is_none() {
            metadata.finalizers.clone_from(&before.metadata.finalizers);
        }
        let params = PostParams { dry_run: write.dry_run, field_manager: Some(MANAGER.to_owned()) };
        let api = self.api(&place);
        let request = self.request("update", &place, &target.name);
        let after = self.ask(request, api.replace(&target.name, &params, &object))?;
        Ok(changed(&before, &after))
    }

    fn patch(
        &self,
        target: &Target,
        patch: &Patch,
        _: &Resource,
        write: Write,
    ) -> Result<Done, ResourceError> {
        let (place, before) = self.find(target)?;
        let params = PatchParams {
            dry_run: write.dry_run,
            field_manager: Some(MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let patch = match patch {
            Patch::Merge(fields) => kube::api::Patch::Merge(fields.clone()),
            Patch::Json(operations) => kube::api::Patch::Json(operations.clone()),
        };
        let api = self.api(&place);
        let request = self.request("patch", &place, &target.name);
        let after = self.ask(request, api.patch(&target.name, &params, &patch))?;
        Ok(changed(&before, &after))
    }

    fn delete(&self, target: &Target, write: Write) -> Result<Done, ResourceError> {
        let (place, _) = self.find(target)?;
        let params = DeleteParams { dry_run: write.dry_run, ..DeleteParams::default() };
        let api = self.api(&place);
        let request = self.request("delete", &place, &target.name);
        let answer = self.ask(request, api.delete(&target.name, &params))?;
        let held = answer.left().and_then(|object| object.metadata.finalizers);
        Ok(match held.filter(|finalizers| !finalizers.is_empty()) {
            Some(finalizers) => Done::Held(finalizers),
            None => Done::Deleted,
        })
    }

    fn ipam(&self) -> Result<Datastore, ResourceError> {
        self.read_ipam()
    }

    fn release_node(
        &self,
        node: &str,
        force: bool,
    ) -> Option<Result<IpamNodeReleased, ResourceError>> {
        Some(self.give_back(node, force))
    }

    fn forget_fill(&self, node: &str) -> Result<bool, ResourceError> {
        match self.delete(&Target::named(Kind::NodeStatus, node), Write::default()) {
            Ok(_) => Ok(true),
            Err(ResourceError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
