//! What an ADD has to know of the pod and of its namespace before it chooses a pool. What no watch has
//! told of yet is waited for, then asked for once; a pool that others would get is never taken instead.

use std::{collections::BTreeMap, sync::Arc};

use tokio::time::{Duration, Instant, timeout_at};
use twill_rpc::message::{ErrorKind, PodAnnotationsRequest, RpcError};
use twill_types::error_chain;

use crate::{
    datastore::{
        kubernetes::{PATIENCE, Unknown},
        pods::{Annotations, PodNamespace},
    },
    ipam::Ipam,
};

impl Ipam {
    /// What is asked for a pod by its own annotations, unless the caller knows them, and its namespace's. Of
    /// one that is none of a cluster's (no uid, or no cluster) the namespace need not be known either.
    pub(crate) async fn pod_annotations(
        &self,
        request: &PodAnnotationsRequest,
    ) -> Result<Annotations, RpcError> {
        let deadline = Instant::now() + Duration::from_millis(request.timeout_ms);
        let PodAnnotationsRequest { pod, own_known, .. } = request;
        let view = self.ready(deadline).await?;
        let Some(pods) = self.pods.as_ref().filter(|_| pod.uid.is_some()) else {
            let namespace = view.namespaces.get(&pod.namespace);
            return Ok(namespace.map(|found| found.asked(BTreeMap::new())).unwrap_or_default());
        };
        let own = async {
            // A static pod has them from its manifest, before the API server has its mirror.
            if *own_known { Ok(BTreeMap::new()) } else { pods.pod(pod, deadline).await }
        };
        let (namespace, own) = tokio::join!(self.namespace(&pod.namespace, deadline), own);
        Ok(namespace?.asked(own.map_err(|unknown| again(&unknown))?))
    }

    /// The namespace of a pod.
    pub(crate) async fn namespace(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<PodNamespace, RpcError> {
        let told = self.view.borrow().namespaces.get(name).cloned();
        let asked_for = || self.pods.as_ref().and_then(|pods| pods.asked_for(name));
        if let Some(found) = told.or_else(asked_for) {
            return Ok(found);
        }
        if let Some(found) =
            self.namespace_told(name, deadline.min(Instant::now() + PATIENCE)).await
        {
            return Ok(found);
        }
        match &self.pods {
            Some(pods) => pods.namespace(name, deadline).await.map_err(|unknown| again(&unknown)),
            None => Err(RpcError {
                kind: ErrorKind::TryAgain,
                message: format!(
                    "there are pools with a namespaceSelector, and nothing is known of namespace {name}; \
                     apply it (kind: Namespace) with its labels"
                ),
            }),
        }
    }
}

impl Ipam {
    /// The namespace as the configuration has it, or will have it until then.
    async fn namespace_told(&self, name: &str, until: Instant) -> Option<PodNamespace> {
        let mut view = self.view.clone();
        let known = view.wait_for(|view| view.namespaces.contains_key(name));
        let view = Arc::clone(&*timeout_at(until, known).await.ok()?.ok()?);
        view.namespaces.get(name).cloned()
    }
}

fn again(unknown: &Unknown) -> RpcError {
    let message = format!(
        "what the pod asks for is not known, so no pool is taken for it: {}",
        error_chain(unknown)
    );
    RpcError { kind: ErrorKind::TryAgain, message }
}
