//! The lists that the controller watches, as nodes follow theirs.

use futures_util::StreamExt;
use kube::{
    Api, Client,
    core::{DynamicObject, PartialObjectMeta},
    runtime::watcher::{self, watcher},
};
use tokio::sync::mpsc;

use super::kinds::List;
pub(super) use crate::datastore::kubernetes::News;
use crate::datastore::kubernetes::{Account, describe, pass_on, whole};

/// Runs until nobody listens.
pub(super) async fn follow(client: Client, list: List, news: mpsc::Sender<(List, News)>) {
    let mut config = watcher::Config::default();
    if list != List::Claims {
        // From the API server's memory.
        config = config.any_semantic();
    }
    let describe = |error| describe(Account::Controller, list.plural().to_owned(), error);
    if list == List::Nodes {
        let api: Api<PartialObjectMeta> = Api::all_with(client, &list.resource());
        let stream = watcher(api, config).map(|event| Ok(whole(event?)));
        pass_on(stream, list, describe, None, news).await;
    } else {
        let api: Api<DynamicObject> = Api::all_with(client, &list.resource());
        pass_on(watcher(api, config), list, describe, None, news).await;
    }
}
