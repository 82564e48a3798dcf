//! Tasks that come and go with what is watched. One that dies takes the process down, as the tasks do that
//! a node always has: without it something would stay as it was then, and nobody would say so.

use std::future::Future;

use anyhow::bail;
use tokio::{sync::watch, task::AbortHandle};

/// Where is told that such a task has died.
#[derive(Debug, Default)]
pub(super) struct Deaths(watch::Sender<Option<String>>);

/// A task that ends with its owner.
pub(super) struct Following(AbortHandle);

impl Deaths {
    /// Starts a task that ends when the handle is dropped.
    pub(super) fn start(
        &self,
        what: String,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Following {
        let task = tokio::spawn(task);
        let following = Following(task.abort_handle());
        let died = self.0.clone();
        tokio::spawn(async move {
            if let Err(error) = task.await
                && error.is_panic()
            {
                died.send_replace(Some(format!("the watch of {what} died: {error}")));
            }
        });
        following
    }

    /// Ends, with an error, when one has died.
    pub(super) async fn first(&self) -> anyhow::Result<()> {
        let mut died = self.0.subscribe();
        match died.wait_for(Option::is_some).await.map(|died| died.clone()) {
            Ok(Some(what)) => bail!(what),
            // The sender is this one's own.
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn the_death_of_a_watch_is_told_and_its_end_is_not() {
        let deaths = Deaths::default();
        let (alive, end) = tokio::sync::oneshot::channel::<()>();
        let follows = deaths.start("pods".to_owned(), async move {
            let _kept = alive;
            std::future::pending::<()>().await;
        });
        drop(follows);
        assert!(end.await.is_err(), "it ends with its owner");
        tokio::task::yield_now().await;
        assert!(deaths.first().now_or_never().is_none(), "that is no death");

        let _follows = deaths.start("pods".to_owned(), async { panic!("as a bug does") });
        let error = deaths.first().await.unwrap_err().to_string();
        assert!(error.contains("the watch of pods died"), "{error}");
    }
}
