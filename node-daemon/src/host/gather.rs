//! What was found on the machine, for those who write it to the API server. A write goes to whoever watches
//! Nodes, and what is wrong may come and go every few seconds: an agent sets a sysctl, the daemon sets it
//! back. So changes are gathered, for longer where there is no end of them.

use std::{
    future::Future,
    pin::pin,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};
use twill_k8s_api::Condition;

/// For how long after the start changes are told at once and not gathered, unless the network works sooner.
const START: Duration = Duration::from_secs(60);

/// For how long changes are gathered.
const SHORTEST: Duration = Duration::from_secs(10);

/// The same, of what comes and goes; and after how long without a change it counts as calm.
const LONGEST: Duration = Duration::from_secs(300);

/// How many changes in a row are gathered for no longer than the first: what people break and mend.
const FEW: u32 = 4;

/// Tells what is found, gathered. `works` ends when the network works. Runs until nobody looks any more.
pub(crate) async fn gather(
    found: watch::Receiver<Option<Condition>>,
    told: watch::Sender<Option<Condition>>,
    works: impl Future<Output = ()>,
) {
    let start = async { drop(timeout(START, works).await) };
    let mut pauses = Pauses::default();
    run(found, told, start, || tokio::time::sleep(pauses.next(Instant::now()))).await;
}

/// `pause` is for as long as changes are gathered once `start` has ended.
async fn run<P: Future<Output = ()>>(
    mut found: watch::Receiver<Option<Condition>>,
    told: watch::Sender<Option<Condition>>,
    start: impl Future<Output = ()>,
    mut pause: impl FnMut() -> P,
) {
    let mut start = pin!(start);
    let mut is_starting = true;
    loop {
        let other = async { found.wait_for(|found| *found != *told.borrow()).await.map(drop) };
        tokio::select! {
            // What is found at the very end of the start belongs to it.
            biased;
            changed = other => if changed.is_err() { return },
            () = &mut start, if is_starting => {
                is_starting = false;
                continue;
            }
        }
        if !is_starting {
            pause().await;
        }
        let now = found.borrow_and_update().clone();
        told.send_if_modified(|told| {
            let is_other = *told != now;
            *told = now;
            is_other
        });
    }
}

/// How long changes are gathered, one time after the other.
#[derive(Debug, Default)]
struct Pauses {
    in_a_row: u32,
    /// When the last one is over.
    over: Option<Instant>,
}

impl Pauses {
    /// The pause that begins now.
    fn next(&mut self, now: Instant) -> Duration {
        if self.over.is_none_or(|over| now >= over + LONGEST) {
            self.in_a_row = 0;
        }
        // 2^5 times the shortest is more than the longest.
        let pause = LONGEST.min(SHORTEST * (1 << self.in_a_row.saturating_sub(FEW - 1).min(5)));
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.over = Some(now + pause);
        pause
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;

    use tokio::{
        sync::{mpsc, oneshot},
        task::JoinHandle,
    };

    use super::*;

    fn condition(message: &str) -> Option<Condition> {
        Some(Condition::fails("TwillDataplaneReady", "ChecksFailed", message))
    }

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(20), what).await.unwrap()
    }

    /// A gathering whose pauses the test ends.
    struct Bench {
        found: watch::Sender<Option<Condition>>,
        hears: watch::Receiver<Option<Condition>>,
        /// What ends a pause that has begun.
        begun: mpsc::UnboundedReceiver<oneshot::Sender<()>>,
        /// Pauses that are over. A test's runtime has one thread: who hears of it does so after what follows the
        /// pause, and who yields goes on after what the others could do.
        over: mpsc::UnboundedReceiver<()>,
        task: JoinHandle<()>,
    }

    impl Bench {
        fn new(start: impl Future<Output = ()> + Send + 'static) -> Self {
            let (found, told) = (watch::Sender::default(), watch::Sender::default());
            let hears = told.subscribe();
            let (begins, begun) = mpsc::unbounded_channel();
            let (ends, over) = mpsc::unbounded_channel();
            let pause = move || {
                let (end, ended) = oneshot::channel();
                begins.send(end).unwrap();
                let ends = ends.clone();
                async move {
                    ended.await.unwrap();
                    ends.send(()).unwrap();
                }
            };
            let task = tokio::spawn(run(found.subscribe(), told, start, pause));
            Self { found, hears, begun, over, task }
        }

        /// Finds `first` and, while changes are gathered, `then`.
        async fn find(&mut self, first: &str, then: &str) {
            self.found.send_replace(condition(first));
            let end = soon(self.begun.recv()).await.unwrap();
            assert!(!self.hears.has_changed().unwrap(), "{first} is told at once");
            self.found.send_replace(condition(then));
            end.send(()).unwrap();
            soon(self.over.recv()).await.unwrap();
        }

        async fn heard(&mut self) -> Option<Condition> {
            soon(self.hears.changed()).await.unwrap();
            self.hears.borrow_and_update().clone()
        }
    }

    #[tokio::test]
    async fn what_comes_and_goes_while_changes_are_gathered_is_not_told() {
        let mut bench = Bench::new(ready(()));
        tokio::task::yield_now().await;
        bench.find("a", "a").await;
        assert_eq!(bench.heard().await, condition("a"));
        bench.find("b", "a").await;
        assert!(!bench.hears.has_changed().unwrap(), "what is back is told");
        bench.find("b", "c").await;
        assert_eq!(bench.heard().await, condition("c"));
        drop(bench.found);
        soon(bench.task).await.unwrap();
    }

    #[tokio::test]
    async fn a_start_is_told_at_once_and_what_comes_after_it_is_gathered() {
        let (works, starts) = oneshot::channel::<()>();
        let mut bench = Bench::new(async move { drop(starts.await) });
        for text in ["a", "b", "a"] {
            bench.found.send_replace(condition(text));
            assert_eq!(bench.heard().await, condition(text));
        }
        assert!(bench.begun.is_empty());
        works.send(()).unwrap();
        tokio::task::yield_now().await;
        bench.find("b", "c").await;
        assert_eq!(bench.heard().await, condition("c"));
        bench.task.abort();
    }

    #[test]
    fn pauses_grow_while_there_is_no_end_of_changes() {
        let mut pauses = Pauses::default();
        let mut now = Instant::now();
        let mut seconds = |calm: u64| {
            now += Duration::from_secs(calm);
            let pause = pauses.next(now);
            now += pause;
            pause.as_secs()
        };
        let flapping: Vec<u64> = (0..11).map(|_| seconds(5)).collect();
        assert_eq!(flapping, [10, 10, 10, 10, 20, 40, 80, 160, 300, 300, 300]);
        assert_eq!(seconds(299), 300);
        assert_eq!(seconds(300), 10);
    }
}
