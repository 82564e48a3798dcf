//! Which nodes' daemons live: each renews a Lease of its own in the daemon's namespace. The kubelet's
//! goes with the Node, so it says nothing about a daemon that lives on.

use std::{
    collections::BTreeMap,
    fs::File,
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::{
    api::coordination::v1::{Lease as Object, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use nix::fcntl::Flock;
use twill_k8s_api::files::Lease;

use super::access::{Access, ApiError};
use crate::datastore::{DatastoreError, Leases};

/// The labels of all Leases of node daemons.
pub(crate) const OF_NODES: &str = "app.kubernetes.io/component=twill-node";

/// Tells our Leases from others.
const PART: &str = "app.kubernetes.io/component";
const NODE_DAEMON: &str = "twill-node";

/// Whether there was ever a Node of this name.
const HAD_NODE: &str = "twill.projectcalico.org/had-node";

/// The Leases of a namespace.
pub(super) struct ApiLeases {
    access: Arc<Access>,
    api: Api<Object>,
    /// As this process wrote it last: without it, each renewal would read first.
    written: Mutex<Option<Object>>,
}

impl ApiLeases {
    pub(super) fn new(access: Arc<Access>) -> Self {
        let api = Api::namespaced(access.client(), access.namespace());
        Self { access, api, written: Mutex::default() }
    }

    fn find(&self, name: &str) -> Result<Option<Object>, ApiError> {
        self.access.ask_out_of_turn("get", format!("leases/{name}"), self.api.get_opt(name))
    }

    /// Writes a lease over what it was before, unless it is that no more.
    fn write(&self, lease: &Lease, before: Option<&Object>) -> Result<Object, ApiError> {
        let name = name(&lease.node);
        let mut object = object(&name, lease);
        let (params, what) = (PostParams::default(), format!("leases/{name}"));
        let Some(before) = before else {
            return self.access.ask_out_of_turn("create", what, self.api.create(&params, &object));
        };
        object.metadata.resource_version = before.metadata.resource_version.clone();
        self.access.ask_out_of_turn("update", what, self.api.replace(&name, &params, &object))
    }
}

impl Leases for ApiLeases {
    fn renew(&self, mut lease: Lease) -> Result<Option<Lease>, DatastoreError> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        let mut before = match written.take() {
            Some(object) => Some(object),
            None => self.find(&name(&lease.node))?,
        };
        let had_node = before.clone().and_then(read).is_some_and(|before| before.had_node);
        lease.had_node |= had_node;
        let outcome = match self.write(&lease, before.as_ref()) {
            // Somebody else has written it, or removed it.
            Err(error) if error.is(409) || error.is(404) => {
                before = self.find(&name(&lease.node))?;
                self.write(&lease, before.as_ref())
            }
            outcome => outcome,
        };
        match outcome {
            Ok(object) => *written = Some(object),
            Err(error) => {
                // Who comes to nothing now need not read first the next time.
                *written = before.filter(|_| !error.is(409) && !error.is(404));
                return Err(error.into());
            }
        }
        Ok(before.and_then(read))
    }

    fn get(&self, node: &str) -> Result<Option<Lease>, DatastoreError> {
        // For somebody who waits.
        let name = name(node);
        let found = self.access.ask("get", format!("leases/{name}"), self.api.get_opt(&name))?;
        Ok(found.and_then(read))
    }

    fn list(&self) -> Result<BTreeMap<String, Lease>, DatastoreError> {
        // Who looks after nodes that are gone reads all; a node's own is all that it needs to see.
        let params = ListParams::default().labels(&format!("{PART}={NODE_DAEMON}")).match_any();
        let found = self.access.ask("list", "leases", self.api.list(&params))?;
        Ok(found.items.into_iter().filter_map(read).map(|l| (l.node.clone(), l)).collect())
    }

    fn remove(&self, node: &str) -> Result<bool, DatastoreError> {
        let name = name(node);
        let params = DeleteParams::default();
        match self.access.ask("delete", format!("leases/{name}"), self.api.delete(&name, &params)) {
            Ok(_) => Ok(true),
            Err(error) if error.is(404) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// That needs rights to others' claims, and all nodes would list all Leases for it.
    fn clears_up(&self) -> bool {
        false
    }

    fn try_lead(&self) -> Result<Option<Flock<File>>, DatastoreError> {
        Ok(None)
    }
}

/// The name of a node's Lease.
pub(crate) fn name(node: &str) -> String {
    format!("twill-node-{node}")
}

fn object(name: &str, lease: &Lease) -> Object {
    let label = (PART.to_owned(), NODE_DAEMON.to_owned());
    let annotation = (HAD_NODE.to_owned(), lease.had_node.to_string());
    Object {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([label])),
            annotations: Some(BTreeMap::from([annotation])),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(lease.instance.clone()),
            lease_duration_seconds: i32::try_from(lease.seconds).ok(),
            renew_time: lease.renewed.parse().ok().map(MicroTime),
            ..LeaseSpec::default()
        }),
    }
}

/// What a Lease says, if it is one of a node daemon.
pub(crate) fn read(object: Object) -> Option<Lease> {
    let node = object.metadata.name?.strip_prefix("twill-node-")?.to_owned();
    let spec = object.spec?;
    let annotations = object.metadata.annotations.unwrap_or_default();
    Some(Lease {
        node,
        instance: spec.holder_identity?,
        seconds: spec.lease_duration_seconds?.try_into().ok()?,
        had_node: annotations.get(HAD_NODE).is_some_and(|value| value == "true"),
        renewed: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use axum::http::{Method, Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Default)]
    struct Server {
        asked: Mutex<Vec<Method>>,
        is_away: AtomicBool,
    }

    impl Server {
        fn access(self: &Arc<Self>) -> Arc<Access> {
            let server = Arc::clone(self);
            let service = tower::service_fn(move |request: Request<Body>| {
                let server = Arc::clone(&server);
                async move { server.serve(request).await }
            });
            let client = kube::Client::new(service, "twill-system");
            Arc::new(Access::with_client(client, "twill-system".to_owned()))
        }

        /// There is no Lease until one is written, and never time for a list.
        async fn serve(&self, request: Request<Body>) -> kube::Result<Response<Body>> {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            let refused = |code: u16, reason: &str| json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason});
            let is_lease = parts.uri.path().contains("/leases");
            let (code, answer) = match parts.method {
                _ if self.is_away.load(Ordering::Relaxed) => {
                    return Err(kube::Error::Service("connection refused".into()));
                }
                _ if !is_lease => (429, refused(429, "TooManyRequests")),
                Method::GET => (404, refused(404, "NotFound")),
                _ => (200, serde_json::from_slice::<Value>(&body).unwrap()),
            };
            if is_lease {
                self.asked.lock().unwrap().push(parts.method);
            }
            let response = Response::builder().status(code).header("Retry-After", 30);
            Ok(response.body(Body::from(answer.to_string().into_bytes())).unwrap())
        }
    }

    fn lease() -> Lease {
        Lease {
            node: "node1".to_owned(),
            instance: "1".to_owned(),
            seconds: 60,
            had_node: true,
            renewed: String::new(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_sign_of_life_does_not_wait_behind_lists() {
        let server = Arc::<Server>::default();
        let access = server.access();
        let list = Request::get("/lists").body(Vec::new()).unwrap();
        access.voice().client().request_text(list).await.unwrap_err();
        // The gate is closed for half a minute.
        ApiLeases::new(access).renew(lease()).unwrap();
        assert_eq!(*server.asked.lock().unwrap(), [Method::GET, Method::POST]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn after_a_renewal_without_an_answer_the_next_one_does_not_read_first() {
        let server = Arc::<Server>::default();
        let leases = ApiLeases::new(server.access());
        leases.renew(lease()).unwrap();
        server.is_away.store(true, Ordering::Relaxed);
        leases.renew(lease()).unwrap_err();
        server.is_away.store(false, Ordering::Relaxed);
        leases.renew(lease()).unwrap();
        let asked = server.asked.lock().unwrap();
        assert_eq!(*asked, [Method::GET, Method::POST, Method::PUT]);
    }
}
