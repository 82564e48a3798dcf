//! The tasks that the daemon is made of: each runs as long as the process, and one that ends takes it down.

use std::{collections::HashMap, future::Future};

use anyhow::anyhow;
use tokio::task::{Id, JoinSet};

/// Tasks with names, so that a daemon that goes down says which of them did it.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    /// Starts a task that may fail.
    pub(crate) fn spawn<E: Into<anyhow::Error>>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let id = self.set.spawn(async move { task.await.map_err(Into::into) }).id();
        self.names.insert(id, name);
    }

    /// Starts a task that cannot fail.
    pub(crate) fn endless(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.spawn(name, async move {
            task.await;
            anyhow::Ok(())
        });
    }

    /// Ends them all, and waits until they have.
    pub(crate) async fn shutdown(&mut self) {
        self.set.shutdown().await;
    }

    /// Why the first of them ended; waits for ever where there is none.
    pub(crate) async fn first_to_end(&mut self) -> anyhow::Error {
        let Some(ended) = self.set.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let id = ended.as_ref().map_or_else(|error| error.id(), |(id, _)| *id);
        let name = self.names.get(&id).copied().unwrap_or("without a name");
        match ended {
            Ok((_, Ok(()))) => anyhow!("the task `{name}` ended without being told to"),
            Ok((_, Err(error))) => error.context(format!("the task `{name}` failed")),
            Err(error) => anyhow!("the task `{name}` died: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use anyhow::bail;

    use super::*;

    /// What is said of a task that does this beside one that goes on.
    async fn said(task: impl Future<Output = anyhow::Result<()>> + Send + 'static) -> String {
        let mut tasks = Tasks::default();
        tasks.endless("calm", pending());
        tasks.spawn("reaper", task);
        format!("{:#}", tasks.first_to_end().await)
    }

    #[tokio::test]
    async fn a_task_that_ends_is_named() {
        assert_eq!(said(async { Ok(()) }).await, "the task `reaper` ended without being told to");
        let failed = said(async { bail!("no kernel") }).await;
        assert_eq!(failed, "the task `reaper` failed: no kernel");
        let died = said(async { panic!("a defect") }).await;
        assert!(died.starts_with("the task `reaper` died: task "), "{died}");
        assert!(died.contains("a defect"), "{died}");
    }
}
