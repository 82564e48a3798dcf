//! A directory of manifests as the datastore.

use std::path::{Path, PathBuf};

use serde_json::Value;
use twill_k8s_api::{
    Kind, Loaded, Loc, ObjectId, Resource,
    files::{
        Applied, Statuses, apply_manifest, find_manifest, load_directory, read_claims,
        read_statuses, remove_fill, remove_manifest, with_status,
    },
    load_manifests,
};
use twill_rpc::message::IpamNodeReleased;

use super::{Done, Item, Listing, Patch, ResourceError, Resources, Target, Write};
use crate::{input::Identity, ipam::Datastore};

/// What to do with claims, which are no manifests.
const CLAIMS: &str =
    "claims are made by the daemons, and given back by `twillctl ipam release --node`";

/// Manifests in a directory.
pub(crate) struct Files {
    directory: PathBuf,
}

impl Files {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn not_found(&self, target: &Target) -> ResourceError {
        if target.kind == Some(Kind::BlockAffinity) {
            return ResourceError::InUse(CLAIMS.to_owned());
        }
        ResourceError::NotFound { object: target.title(), place: self.place() }
    }

    fn is_there(&self, id: &ObjectId) -> Result<bool, ResourceError> {
        if !self.directory.is_dir() {
            return Ok(false);
        }
        Ok(find_manifest(&self.directory, id)?.is_some())
    }

    /// How many blocks of a pool nodes hold.
    fn claimed(&self, pool: &str) -> Result<usize, ResourceError> {
        let claims = read_claims(&self.directory)?;
        Ok(claims.claims.values().filter(|claim| claim.pool == pool).count())
    }

    /// Why a manifest cannot take the place of the one that is there.
    fn conflict(
        &self,
        old: &Loc<Resource>,
        new: &Loc<Resource>,
    ) -> Result<Option<ResourceError>, ResourceError> {
        if old.text.is_none() {
            let (id, file) = (new.value.id(), &old.file);
            let message = format!("{id} is an item of a List in {file}; change it there by hand");
            return Ok(Some(ResourceError::InUse(message)));
        }
        let (Resource::IpPool(old), Resource::IpPool(new)) = (&old.value, &new.value) else {
            return Ok(None);
        };
        if (old.spec.cidr, old.spec.block_size) == (new.spec.cidr, new.spec.block_size) {
            return Ok(None);
        }
        let claimed = self.claimed(&new.metadata.name)?;
        let message = format!(
            "cidr and blockSize cannot change while nodes hold blocks of it (now {claimed}); make a \
             new pool, and set `disabled: true` on this one"
        );
        Ok((claimed > 0).then_some(ResourceError::InUse(message)))
    }

    fn write(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError> {
        if manifest.value.kind() == Some(Kind::BlockAffinity) {
            return Err(ResourceError::InUse(CLAIMS.to_owned()));
        }
        let id = manifest.value.id();
        let existing = load_directory(&self.directory)?.resources.remove(&id);
        if let Some(old) = &existing {
            if old.value == manifest.value {
                return Ok(Done::Unchanged);
            }
            if let Some(conflict) = self.conflict(old, manifest)? {
                return Err(conflict);
            }
        }
        if write.dry_run {
            // One whose manifest is wrong is there, too.
            let is_there = existing.is_some() || self.is_there(&id)?;
            return Ok(if is_there { Done::Changed } else { Done::Created });
        }
        Ok(match apply_manifest(&self.directory, manifest)? {
            Applied::Created(_) => Done::Created,
            Applied::Configured(_) => Done::Changed,
            Applied::Unchanged(_) => Done::Unchanged,
        })
    }
}

impl Resources for Files {
    fn place(&self) -> String {
        self.directory.display().to_string()
    }

    fn directory(&self) -> Option<&Path> {
        Some(&self.directory)
    }

    fn identity(&self) -> Identity {
        Resource::id
    }

    fn list(&self, kind: Kind, names: &[String]) -> Result<Listing, ResourceError> {
        let (found, problems): (Vec<Resource>, _) = if kind == Kind::BlockAffinity {
            let claims = read_claims(&self.directory)?;
            let all = claims.claims.values().map(|c| Resource::BlockAffinity(c.to_manifest()));
            (all.collect(), claims.problems)
        } else {
            let catalog = load_directory(&self.directory)?;
            let all = catalog.resources.into_values().map(|resource| resource.value);
            (all.filter(|found| found.kind() == Some(kind)).collect(), catalog.problems)
        };
        let statuses = read_statuses(&self.directory)?;
        let mut items = Vec::new();
        let is_meant = |name: &str| names.is_empty() || names.iter().any(|other| other == name);
        for resource in found.into_iter().filter(|found| is_meant(found.name())) {
            let manifest = with_status(&resource, &statuses).map_err(|source| {
                let what = resource.id().to_string();
                ResourceError::Unreadable { what, source: source.into() }
            })?;
            items.push(Item { resource: Some(resource), manifest });
        }
        Ok(Listing { items, problems })
    }

    fn statuses(&self) -> Result<Statuses, ResourceError> {
        Ok(read_statuses(&self.directory)?)
    }

    fn get(&self, target: &Target) -> Result<Value, ResourceError> {
        let kind = target.kind.ok_or_else(|| self.not_found(target))?;
        let found = self.list(kind, std::slice::from_ref(&target.name))?.items.pop();
        found.map(|item| item.manifest).ok_or_else(|| self.not_found(target))
    }

    fn read(&self, place: &str, object: &Value) -> Loaded {
        let mut manifest = object.clone();
        if let Some(fields) = manifest.as_object_mut() {
            // What nodes say is not in the manifest.
            fields.remove("status");
        }
        load_manifests(&manifest.to_string(), place)
    }

    fn create(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError> {
        match self.is_there(&manifest.value.id())? {
            true => Err(ResourceError::Exists),
            false => self.write(manifest, write),
        }
    }

    fn apply(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError> {
        self.write(manifest, write)
    }

    fn replace(&self, manifest: &Loc<Resource>, write: Write) -> Result<Done, ResourceError> {
        match self.is_there(&manifest.value.id())? {
            true => self.write(manifest, write),
            false => Err(self.not_found(&Target::of(manifest))),
        }
    }

    /// The file gets the object anew: its comments are gone.
    fn patch(
        &self,
        target: &Target,
        _: &Patch,
        after: &Resource,
        write: Write,
    ) -> Result<Done, ResourceError> {
        if !self.is_there(&after.id())? {
            return Err(self.not_found(target));
        }
        let manifest = Loc { value: after.clone(), file: String::new(), line: 1, text: None };
        self.write(&manifest, write)
    }

    fn delete(&self, target: &Target, write: Write) -> Result<Done, ResourceError> {
        let id = target.id();
        if !self.is_there(&id)? {
            return Err(self.not_found(target));
        }
        if target.kind == Some(Kind::IpPool) {
            let claimed = self.claimed(&target.name)?;
            if claimed > 0 {
                return Err(ResourceError::InUse(format!(
                    "nodes hold blocks of it (now {claimed}); set `disabled: true` on it, and delete \
                     it when its pods are gone"
                )));
            }
        }
        if !write.dry_run && remove_manifest(&self.directory, &id)?.is_none() {
            return Err(self.not_found(target));
        }
        Ok(Done::Deleted)
    }

    fn ipam(&self) -> Result<Datastore, ResourceError> {
        Ok(Datastore::read(&self.directory)?)
    }

    fn release_node(&self, _: &str, _: bool) -> Option<Result<IpamNodeReleased, ResourceError>> {
        None
    }

    fn forget_fill(&self, node: &str) -> Result<bool, ResourceError> {
        Ok(remove_fill(&self.directory, node)?)
    }
}
