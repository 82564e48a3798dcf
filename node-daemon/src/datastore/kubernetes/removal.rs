//! How an object goes that a finalizer of ours holds: the finalizer is taken off, if the object is still what it
//! was when it was read, and then it is deleted, if it is still what that made of it. An end in between leaves an
//! object that is its owner's still. Who asks does so in its own way.

use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::DynamicObject,
};
use serde_json::{Value, json};

/// An object that is to go.
pub(crate) struct Removal<'a> {
    api: &'a Api<DynamicObject>,
    name: String,
    patch: Value,
    is_going: bool,
}

/// What has to be known of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found<'a> {
    pub(crate) uid: &'a str,
    /// `metadata.resourceVersion` as it was read.
    pub(crate) version: &'a str,
    pub(crate) finalizers: &'a [String],
    /// Somebody has deleted it, and it waits for its finalizers.
    pub(crate) is_going: bool,
}

impl<'a> Found<'a> {
    pub(crate) fn of(object: &'a DynamicObject) -> Self {
        let metadata = &object.metadata;
        Self {
            uid: metadata.uid.as_deref().unwrap_or_default(),
            version: metadata.resource_version.as_deref().unwrap_or_default(),
            finalizers: metadata.finalizers.as_deref().unwrap_or_default(),
            is_going: metadata.deletion_timestamp.is_some(),
        }
    }
}

impl<'a> Removal<'a> {
    /// Of the object of this name, which this finalizer holds. Others' finalizers stay.
    pub(crate) fn new(
        api: &'a Api<DynamicObject>,
        name: &str,
        found: Found<'_>,
        finalizer: &str,
    ) -> Self {
        let others = found.finalizers.iter().filter(|other| *other != finalizer);
        let patch = json!({"metadata": {
            "uid": found.uid, "resourceVersion": found.version,
            "finalizers": others.collect::<Vec<_>>(),
        }});
        Self { api, name: name.to_owned(), patch, is_going: found.is_going }
    }

    /// A claim goes with the parts that nobody has any more.
    pub(crate) fn with_parts(mut self) -> Self {
        self.patch["spec"] = json!({"delegations": null});
        self
    }

    /// The first request, a `patch`. 404: it was gone before. 409: it is not what was read.
    pub(crate) async fn unhold(&self) -> kube::Result<DynamicObject> {
        let (params, patch) = (PatchParams::default(), Patch::Merge(&self.patch));
        self.api.patch(&self.name, &params, &patch).await
    }

    /// The second one, a `delete`, with what the first answered; `None` if the object was being deleted, and
    /// went with its finalizer. 404: it is gone.
    pub(crate) fn delete(
        &self,
        unheld: &DynamicObject,
    ) -> Option<impl Future<Output = kube::Result<()>> + Send> {
        let params = DeleteParams::default().preconditions(Preconditions {
            uid: unheld.metadata.uid.clone(),
            resource_version: unheld.metadata.resource_version.clone(),
        });
        let (api, name) = (self.api, self.name.clone());
        let delete = async move { api.delete(&name, &params).await.map(drop) };
        (!self.is_going).then_some(delete)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Method;

    use super::{
        super::{fake::Fake, subject::BLOCK_AFFINITIES},
        *,
    };

    async fn remove(fake: &Fake, object: &DynamicObject) -> kube::Result<()> {
        let api = fake.access().objects(&BLOCK_AFFINITIES.resource());
        let removal = Removal::new(&api, "a", Found::of(object), "ours");
        let unheld = removal.unhold().await?;
        match removal.delete(&unheld) {
            Some(delete) => delete.await,
            None => Ok(()),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_has_changed_since_it_was_read_stays() {
        let fake = Fake::default();
        let put = |deleted: Option<&str>| {
            let object = json!({
                "apiVersion": "projectcalico.org/v3", "kind": "BlockAffinity",
                "metadata": {"name": "a", "finalizers": ["others", "ours"], "deletionTimestamp": deleted},
                "spec": {},
            });
            let object = fake.with(|objects| objects.put("blockaffinities/a", object));
            serde_json::from_value::<DynamicObject>(object).unwrap()
        };
        let asked = || {
            let asked = fake.with(|objects| std::mem::take(&mut objects.asked)).into_iter();
            asked.map(|(method, _)| method).collect::<Vec<_>>()
        };
        let old = put(None);
        let now = put(None);
        let refused = remove(&fake, &old).await.unwrap_err();
        assert!(matches!(&refused, kube::Error::Api(status) if status.code == 409), "{refused}");
        assert_eq!(asked(), [Method::PATCH]);
        remove(&fake, &now).await.unwrap();
        assert_eq!(asked(), [Method::PATCH, Method::DELETE]);
        // What somebody has deleted is not deleted again; others' finalizers are theirs.
        let going = put(Some("2026-01-01T00:00:00Z"));
        remove(&fake, &going).await.unwrap();
        assert_eq!(asked(), [Method::PATCH]);
        let left = fake.with(|objects| objects.stored["blockaffinities/a"].clone());
        assert_eq!(left["metadata"]["finalizers"], json!(["others"]));
    }
}
