//! One watched list: listed once, then followed by its resource version with bookmarks; listed again where
//! that has become too old. What fails is tried again, later each time.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt};
use kube::{
    Api,
    core::{DynamicObject, PartialObjectMeta},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::Value;
use tokio::{sync::mpsc, time::sleep};
use twill_types::error_chain;

use super::{
    access::{Access, Account, ApiError, failed},
    deaths::Following,
    gate::Voice,
    refusals::REFUSED,
    subject::Subject,
};
use crate::backoff::{Backoff, jittered};

/// The first and the longest pause after a failure.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];

/// A version that is too old again within this time is no accident: a list is a load on the server.
const EXPIRED: Duration = Duration::from_secs(60);

/// How long a watch that failed has to be silent until it is taken to work again: longer than a
/// connection may take, or, where it is known, from when the server has answered.
const SETTLED: Duration = Duration::from_secs(3);

/// How long a watch may go on: as long as the API server sees fit, which is between half an hour and an hour and
/// another time for each. Else all watches of all nodes that started together would begin anew together,
/// every five minutes. What is dead is noticed by the connection.
const ENDLESS: u32 = 0;

/// What a watch has to say.
pub(crate) enum News {
    /// A change, or a part of a list.
    Event(Box<Event<DynamicObject>>),
    /// It works again.
    Resumed,
    /// It fails. A refusal is for people; anything else passes.
    Failed { text: String, refused: bool },
}

/// Runs until nobody listens.
pub(super) async fn follow(voice: Voice, subject: Subject, news: mpsc::Sender<(Subject, News)>) {
    let client = voice.client();
    let resource = subject.kind.resource();
    let mut config = watcher::Config::default().timeout(ENDLESS);
    if !subject.is_own() {
        // From the API server's memory. Not for what is written here: what was given back must not show
        // again.
        config = config.any_semantic();
    }
    if let Some(field) = &subject.field {
        config = config.fields(field);
    }
    let stream = if subject.is_metadata_alone() {
        let api: Api<PartialObjectMeta> = Api::all_with(client, &resource);
        watcher(api, config).map(|event| Ok(whole(event?))).boxed()
    } else {
        let api: Api<DynamicObject> = match &subject.namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        watcher(api, config).boxed()
    };
    let describe = |error| describe(Account::Node, subject.what(), error);
    voice.follow(pass_on(stream, subject.clone(), describe, Some(&voice), news)).await;
}

/// What failed.
pub(crate) struct Failure {
    text: String,
    /// Only people can help.
    refused: bool,
    /// The server may be gone.
    is_silence: bool,
}

/// Passes on what a watch tells, for a node as for the controller, until nobody listens. `describe` says what
/// failed. With a voice requests wait for their turn, and after one without an answer there is no other pause; one that
/// a busy server refuses again and again is asked ever later, so that it does not hold up the others.
pub(crate) async fn pass_on<S: Clone>(
    stream: impl Stream<Item = watcher::Result<Event<DynamicObject>>>,
    subject: S,
    describe: impl Fn(watcher::Error) -> Failure,
    voice: Option<&Voice>,
    news: mpsc::Sender<(S, News)>,
) {
    let mut stream = pin!(stream);
    let mut backoff = Backoff::new(PAUSES[0], PAUSES[1]);
    let mut expiry = Expiry::default();
    let (mut fails, mut is_listing) = (false, true);
    loop {
        let next = tokio::select! {
            biased;
            next = stream.next() => Some(next),
            () = settled(voice), if fails => None,
        };
        let (said, wait) = match next {
            // Not even the list has been answered yet.
            None if is_listing => continue,
            // It waits for changes, as it should.
            None => {
                fails = false;
                backoff.succeeded();
                (News::Resumed, None)
            }
            Some(None) => return,
            Some(Some(Ok(event))) => {
                is_listing = match event {
                    Event::Init | Event::InitApply(_) => true,
                    Event::InitDone | Event::Apply(_) | Event::Delete(_) => false,
                };
                // The beginning of a list is no answer yet.
                if !matches!(event, Event::Init) {
                    fails = false;
                    backoff.succeeded();
                }
                (News::Event(Box::new(event)), None)
            }
            // Too old a version: it lists again.
            Some(Some(Err(watcher::Error::WatchError(status)))) if status.code == 410 => {
                if let Some(pause) = expiry.pause() {
                    sleep(pause).await;
                }
                continue;
            }
            Some(Some(Err(error))) => {
                let failure = describe(error);
                let wait = pause(&failure, voice, &mut backoff, fails);
                fails = true;
                let Failure { text, refused, .. } = failure;
                (News::Failed { text, refused }, wait)
            }
        };
        if news.send((subject.clone(), said)).await.is_err() {
            return;
        }
        if let Some(wait) = wait {
            sleep(wait).await;
        }
    }
}

/// Waits until a watch that failed, and has not said anything since, is taken to work again.
async fn settled(voice: Option<&Voice>) {
    match voice {
        Some(voice) => voice.answered_for(SETTLED).await,
        None => sleep(SETTLED).await,
    }
}

/// The pause after a failure, beside that at the gate: `again` if it has not worked since the last one.
fn pause(
    failure: &Failure,
    voice: Option<&Voice>,
    backoff: &mut Backoff,
    again: bool,
) -> Option<Duration> {
    if failure.refused {
        return Some(jittered(REFUSED));
    }
    let Some(voice) = voice else { return Some(backoff.failed()) };
    if voice.is_held() {
        return voice.is_busy().then(|| backoff.failed());
    }
    if failure.is_silence {
        voice.broke();
    }
    // One whose answers break again and again is asked for ever later, whatever the others do.
    (again || !failure.is_silence).then(|| backoff.failed())
}

/// As an object that has nothing else.
pub(crate) fn whole(event: Event<PartialObjectMeta>) -> Event<DynamicObject> {
    let object = |PartialObjectMeta { types, metadata, .. }| DynamicObject {
        types,
        metadata,
        data: Value::Null,
    };
    match event {
        Event::Init => Event::Init,
        Event::InitApply(found) => Event::InitApply(object(found)),
        Event::InitDone => Event::InitDone,
        Event::Apply(found) => Event::Apply(object(found)),
        Event::Delete(found) => Event::Delete(object(found)),
    }
}

/// How often the version that a watch follows was too old.
struct Expiry {
    last: Option<Instant>,
    backoff: Backoff,
}

impl Default for Expiry {
    fn default() -> Self {
        Self { last: None, backoff: Backoff::new(PAUSES[0], PAUSES[1]) }
    }
}

impl Expiry {
    /// The pause until the next list: none for one that comes alone.
    fn pause(&mut self) -> Option<Duration> {
        let is_repeated = self.last.is_some_and(|last| last.elapsed() < EXPIRED);
        self.last = Some(Instant::now());
        if !is_repeated {
            self.backoff.succeeded();
            return None;
        }
        Some(self.backoff.failed())
    }
}

/// What failed, by the name of the list.
pub(crate) fn describe(account: Account, what: String, error: watcher::Error) -> Failure {
    let (verb, source) = match error {
        watcher::Error::InitialListFailed(source) => ("list", source),
        watcher::Error::WatchStartFailed(source) | watcher::Error::WatchFailed(source) => {
            ("watch", source)
        }
        watcher::Error::WatchError(status) => ("watch", kube::Error::Api(status)),
        watcher::Error::NoResourceVersion => {
            let text = format!("a watch of {what} has no resource version");
            return Failure { text, refused: false, is_silence: false };
        }
    };
    let error = failed(account, verb, what.clone(), source);
    if error.is(404) {
        let text =
            format!("the API server does not know {what}; apply the definitions of conf/crds");
        return Failure { text, refused: true, is_silence: false };
    }
    // A request that is no good, as by a name that there cannot be, does not become better.
    let refused = matches!(error, ApiError::Forbidden { .. }) || error.is(400) || error.is(422);
    Failure { text: error_chain(&error), refused, is_silence: error.is_silence() }
}

/// Starts following; ends when the handle is dropped.
pub(super) fn start(
    access: &Access,
    subject: &Subject,
    news: &mpsc::Sender<(Subject, News)>,
) -> Following {
    let task = follow(access.voice(), subject.clone(), news.clone());
    access.deaths().start(subject.what(), task)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::{Request, Response};
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// Follows until a watch has begun; the list's and the watch's URI and what they accept.
    async fn asked(subject: Subject) -> Vec<(String, String)> {
        let asked = Arc::<Mutex<Vec<(String, String)>>>::default();
        let (sender, mut news) = mpsc::channel(8);
        let (notes, watching) = (Arc::clone(&asked), Arc::new(tokio::sync::Notify::new()));
        let begun = Arc::clone(&watching);
        let server = tower::service_fn(move |request: Request<Body>| {
            let uri = request.uri().to_string();
            let accept = request.headers().get("accept").and_then(|accept| accept.to_str().ok());
            let accept = accept.unwrap_or_default().to_owned();
            let is_watch = uri.contains("watch=true");
            notes.lock().unwrap().push((uri, accept));
            let begun = Arc::clone(&begun);
            async move {
                if is_watch {
                    begun.notify_one();
                    return std::future::pending().await;
                }
                let list = json!({"metadata": {"resourceVersion": "1"}, "items": []});
                Ok::<_, kube::Error>(Response::new(Body::from(list.to_string().into_bytes())))
            }
        });
        let access =
            Access::with_client(kube::Client::new(server, "default"), "default".to_owned());
        let task = tokio::spawn(follow(access.voice(), subject, sender));
        tokio::select! {
            () = watching.notified() => {}
            () = async { while news.recv().await.is_some() {} } => panic!("it ended"),
        }
        task.abort();
        asked.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn the_server_says_how_long_a_watch_goes_on() {
        for subject in Subject::of_every_node("node1") {
            let asked = asked(subject).await;
            let [_, (watch, _)] = &asked[..] else { panic!("{asked:?}") };
            assert!(watch.contains("timeoutSeconds=0"), "{watch}");
            assert!(watch.contains("allowWatchBookmarks=true"), "{watch}");
        }
    }

    #[tokio::test]
    async fn what_kubelets_write_is_asked_for_without_its_status() {
        let namespaces = |subject: &Subject| subject.kind.kind == "Namespace";
        let namespaces = Subject::of_every_node("node1").into_iter().find(namespaces).unwrap();
        for subject in [Subject::nodes(None), Subject::nodes(Some("a")), namespaces] {
            for (uri, accept) in asked(subject).await {
                assert!(accept.contains("as=PartialObjectMetadata"), "{uri}: {accept}");
            }
        }
    }

    #[test]
    fn versions_that_are_too_old_again_and_again_are_listed_ever_later() {
        let mut expiry = Expiry::default();
        assert_eq!(expiry.pause(), None, "one is nothing strange");
        let (first, second) = (expiry.pause().unwrap(), expiry.pause().unwrap());
        assert!(first >= PAUSES[0] / 2 && second >= PAUSES[0], "{first:?}, {second:?}");
        expiry.last = Instant::now().checked_sub(EXPIRED);
        assert_eq!(expiry.pause(), None, "after a while it is another story");
    }

    #[tokio::test]
    async fn lists_that_expire_at_once_are_no_hot_loop() {
        let gone = || {
            let status = kube::core::Status::failure("too old", "Expired").with_code(410);
            Err(watcher::Error::WatchError(status.boxed()))
        };
        let stream = futures_util::stream::iter((0..3).map(|_| gone()));
        let (sender, _news) = mpsc::channel(1);
        let before = Instant::now();
        let say = |error| describe(Account::Node, "pods".to_owned(), error);
        pass_on(stream, (), say, None, sender).await;
        // Two pauses, the second about twice the first, each of half its length at the least.
        assert!(before.elapsed() >= PAUSES[0] * 3 / 2, "{:?}", before.elapsed());
    }
}
