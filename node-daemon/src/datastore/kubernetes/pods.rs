//! The pods of this node on the API server, by a watch of their metadata; what no watch has told of yet
//! is asked for once.

use std::{path::Path, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, core::DynamicObject};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::{mpsc, watch},
    task::block_in_place,
    time::{Instant, timeout_at},
};
use tracing::{debug, warn};
use twill_k8s_api::files::FileError;
use twill_rpc::message::PodRef;
use twill_types::error_chain;

use super::{
    access::{Access, ApiError},
    subject::Subject,
    watching::{self, News},
};
use crate::{
    datastore::pods::{Annotations, KnownPod, KnownPods, PodNamespace},
    last_known::LastKnown,
    problems,
    tasks::Tasks,
};

/// How long a pod or a namespace is waited for until it is asked for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// How often the copy is written at the most.
const COPY_PAUSE: Duration = Duration::from_secs(1);

/// How much may wait to be looked at.
const QUEUE: usize = 256;

const FILE: &str = "pods.json";

/// The version of the copy's format.
const FORMAT: u32 = 1;

/// Nothing is known of a pod or a namespace.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    /// It is not there.
    #[error("the API server has no {0}; it is gone, or not there yet")]
    Absent(String),
    /// Another one has its name.
    #[error("the API server has another {0} by now, with another uid")]
    Replaced(String),
    /// It cannot be asked for.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// The pods of this node.
pub(crate) struct ApiPods {
    access: Arc<Access>,
    /// By the watch; and by those who had to ask.
    known: watch::Sender<Arc<KnownPods>>,
    problems: watch::Sender<Vec<String>>,
}

impl ApiPods {
    /// Starts with the copy of what was known, and watches.
    pub(super) fn start(
        access: &Arc<Access>,
        state_dir: &Path,
        node: &str,
        tasks: &mut Tasks,
    ) -> Self {
        let file = LastKnown::new((state_dir, FILE), "this node's pods", FORMAT, node);
        let copy = Copy { file, written: None };
        let known = watch::Sender::new(Arc::new(KnownPods::from_copy(copy.read())));
        let problems = watch::Sender::default();
        let (sender, news) = mpsc::channel(QUEUE);
        let following = watching::start(access, &Subject::pods(node), &sender);
        let (told, said) = (known.clone(), problems.clone());
        tasks.endless("pods", async move {
            // They live as long as this task, which lives as long as the process.
            let _kept = (following, sender);
            run(news, told, said, copy).await;
        });
        Self { access: Arc::clone(access), known, problems }
    }

    /// What is known.
    pub(crate) fn known(&self) -> watch::Receiver<Arc<KnownPods>> {
        self.known.subscribe()
    }

    /// What is wrong with the watch.
    pub(crate) fn problems(&self) -> watch::Receiver<Vec<String>> {
        self.problems.subscribe()
    }

    /// What a pod says about its network.
    pub(crate) async fn pod(
        &self,
        pod: &PodRef,
        deadline: Instant,
    ) -> Result<Annotations, Unknown> {
        if let Some(annotations) = self.told(pod, deadline.min(Instant::now() + PATIENCE)).await {
            return Ok(annotations);
        }
        let what = format!("pods/{} in namespace {}", pod.name, pod.namespace);
        debug!(what, "no watch has told of it: asking for it");
        let api: Api<Pod> = Api::namespaced(self.access.client(), &pod.namespace);
        let request = self.access.answer("get", &what, api.get_metadata_opt(&pod.name));
        let found = until(deadline, &what, request).await?;
        let found = found.and_then(|found| KnownPod::of(&metadata_alone(found.metadata)));
        let found = found.ok_or_else(|| Unknown::Absent(what.clone()))?;
        if !pod.uid.as_deref().is_some_and(|uid| found.is(uid)) {
            return Err(Unknown::Replaced(what));
        }
        let annotations = found.annotations.clone();
        self.known.send_if_modified(|known| Arc::make_mut(known).set(found));
        Ok(annotations)
    }

    /// The same as the watch has told it, or will have until then.
    async fn told(&self, pod: &PodRef, until: Instant) -> Option<Annotations> {
        let mut known = self.known.subscribe();
        let told = known.wait_for(|known| known.find(pod).is_some());
        let known = Arc::clone(&*timeout_at(until, told).await.ok()?.ok()?);
        known.find(pod).map(|pod| pod.annotations.clone())
    }

    /// A namespace that had to be asked for lately.
    pub(crate) fn asked_for(&self, namespace: &str) -> Option<PodNamespace> {
        self.known.borrow().namespace(namespace).cloned()
    }

    /// A namespace that no watch has told of.
    pub(crate) async fn namespace(
        &self,
        name: &str,
        deadline: Instant,
    ) -> Result<PodNamespace, Unknown> {
        let what = format!("namespaces/{name}");
        debug!(what, "no watch has told of it: asking for it");
        let api: Api<Namespace> = Api::all(self.access.client());
        let request = self.access.answer("get", &what, api.get_metadata_opt(name));
        let found = until(deadline, &what, request).await?;
        let found = found.ok_or(Unknown::Absent(what))?.metadata;
        let labels = found.labels.unwrap_or_default();
        let namespace = PodNamespace::new(labels, &found.annotations.unwrap_or_default());
        self.known.send_modify(|known| {
            Arc::make_mut(known).set_namespace(name, namespace.clone());
        });
        Ok(namespace)
    }
}

/// An answer that comes too late for who waits is none.
async fn until<T>(
    deadline: Instant,
    what: &str,
    answer: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let late = |_| ApiError::Late { verb: "get", what: what.to_owned() };
    timeout_at(deadline, answer).await.map_err(late)?
}

fn metadata_alone(
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> DynamicObject {
    DynamicObject { types: None, metadata, data: Value::Null }
}

/// Takes what the watch tells, and keeps the copy.
async fn run(
    mut news: mpsc::Receiver<(Subject, News)>,
    known: watch::Sender<Arc<KnownPods>>,
    problems: watch::Sender<Vec<String>>,
    mut copy: Copy,
) {
    let mut due: Option<Instant> = None;
    loop {
        let wait = async {
            match due {
                Some(due) => timeout_at(due, news.recv()).await,
                None => Ok(news.recv().await),
            }
        };
        match wait.await {
            Ok(None) => return,
            Ok(Some((_, said))) => {
                let changed = take(&known, &problems, said);
                due = due.or_else(|| changed.then(|| Instant::now() + COPY_PAUSE));
            }
            Err(_) => {
                due = None;
                let pods = known.borrow().pods();
                if let Err(error) = block_in_place(|| copy.write(pods)) {
                    let error = error_chain(&error);
                    warn!(error, "the copy of this node's pods is out of date");
                }
            }
        }
    }
}

/// Whether what is kept of pods is another.
fn take(
    known: &watch::Sender<Arc<KnownPods>>,
    problems: &watch::Sender<Vec<String>>,
    news: News,
) -> bool {
    let mut changed = false;
    let (fault, is_answer) = match &news {
        News::Failed { text, refused: true } => (vec![text.clone()], true),
        // That the server is away is said once, and not for each watch.
        News::Failed { refused: false, .. } => (Vec::new(), false),
        News::Resumed => (Vec::new(), true),
        News::Event(event) => (Vec::new(), !matches!(**event, kube::runtime::watcher::Event::Init)),
    };
    known.send_if_modified(|known| match news {
        News::Event(event) => {
            changed = Arc::make_mut(known).take(&event);
            // Who waits looks again, and what is evidence may be another.
            true
        }
        News::Resumed => Arc::make_mut(known).set_stale(false),
        News::Failed { .. } => Arc::make_mut(known).set_stale(true),
    });
    if is_answer && *problems.borrow() != fault {
        problems::tell(problems, fault);
    }
    changed
}

/// What is in the copy.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Copied {
    pods: Vec<KnownPod>,
}

/// The copy of this node's pods in `stateDir`, for a start without the API server: what a pod asks for
/// is not to be forgotten while its sandbox is made again.
struct Copy {
    file: LastKnown,
    written: Option<Copied>,
}

impl Copy {
    fn read(&self) -> Vec<KnownPod> {
        self.file.find().map_or_else(Vec::new, |copied: Copied| copied.pods)
    }

    fn write(&mut self, pods: Vec<KnownPod>) -> Result<(), FileError> {
        let copied = Copied { pods };
        if self.written.as_ref() == Some(&copied) {
            return Ok(());
        }
        self.file.write(&copied)?;
        self.written = Some(copied);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_waits_for_an_answer_longer_than_until_the_deadline() {
        let never = std::future::pending::<Result<(), ApiError>>();
        let outcome = until(Instant::now(), "pods/a in namespace b", never).await;
        assert!(
            matches!(&outcome, Err(ApiError::Late { what, .. }) if what.starts_with("pods/a")),
            "{outcome:?}"
        );
        assert_eq!(until(Instant::now(), "pods/a", async { Ok(7) }).await.unwrap(), 7);
    }
}
