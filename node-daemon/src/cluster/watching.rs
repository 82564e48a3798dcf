//! One watched list: what fails is tried again, later each time, and not by all at once.

use std::{pin::pin, time::Duration};

use futures_util::{Stream, StreamExt};
use kube::{
    Api, Client,
    core::{DynamicObject, PartialObjectMeta, TypeMeta},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::Value;
use tokio::{sync::mpsc, time::timeout};
use twill_types::error_chain;

use super::{kinds::List, requests::jittered};
use crate::datastore::kubernetes::{ApiError, failed};

/// The first and the longest pause after a failure.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(30)];

/// The pause where only people can help: a permission or a definition is missing.
const REFUSED: Duration = Duration::from_secs(60);

/// How long a watch that failed has to be silent until it is taken to work again.
const SETTLED: Duration = Duration::from_secs(3);

/// What a watch has to say.
pub(super) enum News {
    /// A change, or a part of a list.
    Event(Box<Event<DynamicObject>>),
    /// It works again.
    Resumed,
    /// It fails, for this reason.
    Failed(String),
}

/// Runs until nobody listens.
pub(super) async fn follow(client: Client, list: List, news: mpsc::Sender<(List, News)>) {
    let mut config = watcher::Config::default();
    if list != List::Claims {
        // From the API server's memory.
        config = config.any_semantic();
    }
    if list == List::Nodes {
        let whole = |meta: PartialObjectMeta<DynamicObject>| DynamicObject {
            types: Some(TypeMeta::default()),
            metadata: meta.metadata,
            data: Value::Null,
        };
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &list.resource());
        let stream = watcher(api, config);
        pass_on(stream.map(|event| event.map(|event| map(event, whole))), list, news).await;
    } else {
        let api: Api<DynamicObject> = Api::all_with(client, &list.resource());
        pass_on(watcher(api, config), list, news).await;
    }
}

fn map<K, T>(event: Event<K>, change: impl Fn(K) -> T) -> Event<T> {
    match event {
        Event::Apply(object) => Event::Apply(change(object)),
        Event::Delete(object) => Event::Delete(change(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(change(object)),
        Event::InitDone => Event::InitDone,
    }
}

async fn pass_on(
    stream: impl Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
    list: List,
    news: mpsc::Sender<(List, News)>,
) {
    let mut stream = pin!(stream);
    let mut pause = PAUSES[0];
    let (mut fails, mut is_listing) = (false, true);
    loop {
        let next = match fails && !is_listing {
            true => timeout(SETTLED, stream.next()).await,
            false => Ok(stream.next().await),
        };
        let (said, wait) = match next {
            Err(_) => {
                fails = false;
                pause = PAUSES[0];
                (News::Resumed, None)
            }
            Ok(None) => return,
            Ok(Some(Ok(event))) => {
                is_listing = matches!(event, Event::Init | Event::InitApply(_));
                // The beginning of a list is no answer yet.
                if !matches!(event, Event::Init) {
                    fails = false;
                    pause = PAUSES[0];
                }
                (News::Event(Box::new(event)), None)
            }
            // Too old a version: it lists again at once.
            Ok(Some(Err(watcher::Error::WatchError(status)))) if status.code == 410 => continue,
            Ok(Some(Err(error))) => {
                fails = true;
                let (text, refused) = describe(list, error);
                let wait = if refused { REFUSED } else { pause };
                pause = (pause * 2).min(PAUSES[1]);
                (News::Failed(text), Some(jittered(wait)))
            }
        };
        if news.send((list, said)).await.is_err() {
            return;
        }
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
        }
    }
}

/// What failed, and whether only people can help.
fn describe(list: List, error: watcher::Error) -> (String, bool) {
    let what = list.plural().to_owned();
    let (verb, source) = match error {
        watcher::Error::InitialListFailed(source) => ("list", source),
        watcher::Error::WatchStartFailed(source) | watcher::Error::WatchFailed(source) => {
            ("watch", source)
        }
        watcher::Error::WatchError(status) => ("watch", kube::Error::Api(status)),
        watcher::Error::NoResourceVersion => {
            return (format!("a watch of {what} has no resource version"), false);
        }
    };
    match failed(verb, what, source) {
        ApiError::Forbidden { verb, what, message } => {
            let text = format!(
                "the controller may not {verb} {what}: {message}; grant it to its account, as \
                 conf/rbac/twill-controller.yaml does"
            );
            (text, true)
        }
        error if error.is(404) => {
            let what = list.plural();
            let text = format!("the API server does not know {what}; apply conf/crds");
            (text, true)
        }
        error => (error_chain(&error), false),
    }
}
