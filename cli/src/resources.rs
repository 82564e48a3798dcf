//! The seam between commands and datastores: the same verbs on a directory of manifests and on
//! Kubernetes' API server.

pub(crate) mod api;
mod error;
mod files;
mod manifest;
mod patch;

use std::path::Path;

use serde_json::Value;
use twill_k8s_api::{Kind, Loaded, Loc, ObjectId, Problem, Resource, files::Statuses};
use twill_rpc::message::IpamNodeReleased;

pub(crate) use self::{
    api::{Cluster, has_kubeconfig},
    error::ResourceError,
    files::Files,
    patch::{Patch, PatchType},
};
use crate::{input::Identity, ipam::Datastore};

/// A datastore. Its calls block, each for a bounded time.
pub(crate) trait Resources {
    /// What it is called in messages: a directory, or the URL of a server.
    fn place(&self) -> String;

    /// The directory, where it is one: comments there are worth keeping.
    fn directory(&self) -> Option<&Path>;

    /// By what an object is the same as another here.
    fn identity(&self) -> Identity;

    /// The objects of a kind by name: all, or those of these names that are there.
    fn list(&self, kind: Kind, names: &[String]) -> Result<Listing, ResourceError>;

    /// What nodes say about objects.
    fn statuses(&self) -> Result<Statuses, ResourceError>;

    /// One object as it is printed. An object that is not right can be had, too.
    fn get(&self, target: &Target) -> Result<Value, ResourceError>;

    /// Reads an object as this datastore prints it, with the checks that every manifest goes through.
    fn read(&self, place: &str, object: &Value) -> Loaded;

    /// Makes an object, which must not be there.
    fn create(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError>;

    /// Makes an object or changes the one that is there to what the manifest says.
    fn apply(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError>;

    /// Puts an object in the place of the one that is there.
    fn replace(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError>;

    /// Changes a part of an object; `after` is what comes of it, checked already.
    fn patch(
        &self,
        target: &Target,
        patch: &Patch,
        after: &Resource,
        write: Write,
    ) -> Result<Done, ResourceError>;

    /// Takes an object away, or asks whoever holds it to let go.
    fn delete(&self, target: &Target, write: Write) -> Result<Done, ResourceError>;

    /// All that `twillctl ipam` looks at, in one go.
    fn ipam(&self) -> Result<Datastore, ResourceError>;

    /// Gives back the blocks of a node that is gone. `None` where only daemons do that.
    fn release_node(
        &self,
        node: &str,
        force: bool,
    ) -> Option<Result<IpamNodeReleased, ResourceError>>;

    /// Removes what a node that is gone said of its blocks; tells whether it said anything.
    fn forget_fill(&self, node: &str) -> Result<bool, ResourceError>;
}

/// How something is written.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Write {
    /// Nothing is: only whether it could be is found out.
    pub(crate) dry_run: bool,
    /// Fields that somebody else wrote on the API server are taken over.
    pub(crate) force: bool,
}

/// What came of a verb.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Done {
    /// There was no such object.
    Created,
    /// The object was another one before.
    Changed,
    /// The object was the same already.
    Unchanged,
    /// It is gone.
    Deleted,
    /// It goes when these finalizers are off.
    Held(Vec<String>),
}

/// An object that somebody names on the command line, or that a manifest is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// The kind; `None` for one that Twill does not use, which only a manifest can name.
    pub(crate) kind: Option<Kind>,
    /// `kind:` of the manifest, where there is one: one of our kinds has two names.
    pub(crate) written: Option<(String, String)>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    /// What no other object has.
    id: ObjectId,
}

impl Target {
    /// One that the command line names.
    pub(crate) fn named(kind: Kind, name: &str) -> Self {
        let id =
            ObjectId { kind: kind.singular().to_owned(), namespace: None, name: name.to_owned() };
        Self { kind: Some(kind), written: None, namespace: None, name: name.to_owned(), id }
    }

    /// One that a manifest is about.
    pub(crate) fn of(manifest: &Loc<Resource>) -> Self {
        let resource = &manifest.value;
        let body = serde_json::to_value(resource).unwrap_or_default();
        let text = |field: &Value| field.as_str().map(str::to_owned);
        let version = text(&body["apiVersion"]).unwrap_or_default();
        Self {
            kind: resource.kind(),
            written: Some((version, resource.kind_name().to_owned())),
            namespace: text(&body["metadata"]["namespace"]),
            name: resource.name().to_owned(),
            id: resource.id(),
        }
    }

    /// What no other object has.
    pub(crate) fn id(&self) -> ObjectId {
        self.id.clone()
    }

    /// `IPPool/app-pool`.
    pub(crate) fn title(&self) -> String {
        let kind = match (&self.written, self.kind) {
            (Some((_, kind)), _) => kind,
            (None, kind) => kind.map_or("", Kind::manifest_name),
        };
        format!("{kind}/{}", self.name)
    }
}

/// The objects of a kind.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    pub(crate) items: Vec<Item>,
    /// What is wrong with any of them.
    pub(crate) problems: Vec<Problem>,
}

/// One object of a list.
#[derive(Debug)]
pub(crate) struct Item {
    /// What it says; `None` where that is not right.
    pub(crate) resource: Option<Resource>,
    /// As it is printed.
    pub(crate) manifest: Value,
}

impl Item {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.manifest["metadata"]["name"].as_str().unwrap_or_default()
    }

    /// Its kind as it is written.
    pub(crate) fn kind(&self) -> &str {
        self.manifest["kind"].as_str().unwrap_or_default()
    }
}
