//! An API server that a test plays: objects without namespaces in memory, with uids and resource versions,
//! and something that a test does at a moment that it could not meet otherwise.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use axum::http::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};

use super::access::Access;

/// What a test does when a request has been answered: method and path, then the server.
type Hook = Box<dyn Fn(&Method, &str, &mut Objects) + Send>;

/// What is stored, by the last parts of the path: `blockaffinities/0a000000-26`.
#[derive(Default)]
pub(super) struct Objects {
    pub(super) stored: BTreeMap<String, Value>,
    /// What was asked: method and path.
    pub(super) asked: Vec<(Method, String)>,
    /// Each creation is answered with 409.
    pub(super) is_all_taken: bool,
    /// How many patches are answered with 409 from now on: somebody else is faster each time.
    pub(super) conflicts: usize,
    /// How many patches are answered with 429 from now on: it has much to do.
    pub(super) refusals: usize,
    /// What an admission policy refuses, by path and body of the request.
    pub(super) forbids: Option<fn(&str, &Value) -> bool>,
    version: u64,
}

/// The server.
#[derive(Clone, Default)]
pub(super) struct Fake {
    objects: Arc<Mutex<Objects>>,
    hook: Arc<Mutex<Option<Hook>>>,
}

impl Objects {
    /// Stores an object as if another client had.
    pub(super) fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = json!(self.version.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("uid{}", self.version));
        }
        self.stored.insert(path.to_owned(), object.clone());
        object
    }

    /// How often a list was asked for.
    pub(super) fn lists(&self) -> usize {
        self.asked
            .iter()
            .filter(|(method, path)| *method == Method::GET && !path.contains('/'))
            .count()
    }

    fn answer(
        &mut self,
        method: &Method,
        (path, query): (&str, &str),
        body: &Value,
    ) -> (StatusCode, Value) {
        let missing = || (StatusCode::NOT_FOUND, status(404, "NotFound"));
        let conflict = || (StatusCode::CONFLICT, status(409, "Conflict"));
        if self.forbids.is_some_and(|forbids| forbids(path, body)) {
            return (StatusCode::FORBIDDEN, status(403, "Forbidden"));
        }
        match *method {
            Method::POST => {
                let name = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap());
                if self.is_all_taken || self.stored.contains_key(&name) {
                    return conflict();
                }
                (StatusCode::CREATED, self.put(&name, body.clone()))
            }
            Method::GET if path.contains('/') => match self.stored.get(path) {
                Some(object) => (StatusCode::OK, object.clone()),
                None => missing(),
            },
            Method::GET => (StatusCode::OK, self.table(path, &selector(query))),
            Method::PATCH if self.conflicts > 0 => {
                self.conflicts -= 1;
                conflict()
            }
            Method::PATCH if self.refusals > 0 => {
                self.refusals -= 1;
                (StatusCode::TOO_MANY_REQUESTS, status(429, "TooManyRequests"))
            }
            Method::PATCH => {
                // A status is a part of its object, and only an object can be made by applying it.
                let is_status = path.ends_with("/status");
                let path = path.trim_end_matches("/status");
                let is_applied = !body["kind"].is_null() && !is_status;
                let before = self.stored.get(path).cloned();
                let Some(before) = before.or_else(|| is_applied.then(|| body.clone())) else {
                    return missing();
                };
                let expected = &body["metadata"]["resourceVersion"];
                if !expected.is_null() && *expected != before["metadata"]["resourceVersion"] {
                    return conflict();
                }
                let mut patched = before;
                merge(&mut patched, body);
                (StatusCode::OK, self.put(path, patched))
            }
            Method::DELETE => match self.stored.remove(path) {
                Some(object) => (StatusCode::OK, object),
                None => missing(),
            },
            _ => (StatusCode::METHOD_NOT_ALLOWED, status(405, "MethodNotAllowed")),
        }
    }

    fn table(&self, list: &str, selector: &[String]) -> Value {
        let is_meant = |object: &Value| {
            let labels = &object["metadata"]["labels"];
            selector.iter().all(|requirement| match requirement.split_once("!=") {
                Some((label, value)) => labels[label] != value,
                None => labels[requirement.trim_start_matches('!')].is_null(),
            })
        };
        let rows = self.stored.iter().filter_map(|(path, object)| {
            let name = path.strip_prefix(list)?.strip_prefix('/')?;
            is_meant(object).then_some(())?;
            Some(json!({"cells": [name, object["spec"]["node"], object["spec"]["pool"]]}))
        });
        json!({
            "kind": "Table", "apiVersion": "meta.k8s.io/v1",
            "columnDefinitions": [{"name": "Name"}, {"name": "Node"}, {"name": "Pool"}],
            "rows": rows.collect::<Vec<_>>(),
        })
    }
}

impl Fake {
    /// A connection to it; has to be made inside a runtime.
    pub(super) fn access(&self) -> Arc<Access> {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { fake.serve(request).await }
        });
        let client = kube::Client::new(service, "twill-system");
        Arc::new(Access::with_client(client, "twill-system".to_owned()))
    }

    /// Does something after each answer.
    pub(super) fn after(&self, hook: impl Fn(&Method, &str, &mut Objects) + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    /// Looks at it, or changes it.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut Objects) -> T) -> T {
        look(&mut self.objects.lock().unwrap())
    }

    async fn serve(&self, request: Request<Body>) -> Result<Response<Body>, kube::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await?;
        let body = serde_json::from_slice(&body).unwrap_or_default();
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let of_group = path.split_once("/v3/").or_else(|| path.split_once("/api/v1/"));
        let path = of_group.map_or("", |(_, path)| path).to_owned();
        let mut objects = self.objects.lock().unwrap();
        objects.asked.push((parts.method.clone(), path.clone()));
        let (code, answer) = objects.answer(&parts.method, (&path, query), &body);
        if let Some(hook) = &*self.hook.lock().unwrap() {
            hook(&parts.method, &path, &mut objects);
        }
        let response = Response::builder().status(code);
        Ok(response.body(Body::from(answer.to_string().into_bytes())).unwrap())
    }
}

/// The requirements of a label selector: `label!=value`, or `!label`.
fn selector(query: &str) -> Vec<String> {
    let of_selector = query.split('&').find_map(|pair| pair.strip_prefix("labelSelector="));
    let mut text = of_selector.unwrap_or_default().to_owned();
    for (code, character) in [("%2F", "/"), ("%21", "!"), ("%3D", "="), ("%2C", ",")] {
        text = text.replace(code, character);
    }
    text.split(',').filter(|requirement| !requirement.is_empty()).map(str::to_owned).collect()
}

fn status(code: u16, reason: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": reason,
    })
}

/// RFC 7386.
fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *object = patch.clone();
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            object.as_object_mut().map(|object| object.remove(key));
        } else {
            merge(&mut object[key.as_str()], value);
        }
    }
}
