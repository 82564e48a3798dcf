//! One voice: while the API server is silent or has too much to do, one request of a node is on its way, and all
//! others that nobody waits for stand behind it. A thousand nodes that each ask for thirteen lists again and again
//! take from the server the time in which it would have answered. docs/adr/0020-datastore-seam.md.
//!
//! Promise: what is on its way is not given up here, and a refusal (403, 404, 409) closes nothing: it is an answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::http::{Request, Response, StatusCode, header::RETRY_AFTER};
use kube::client::{Body, Client};
use tokio::{
    sync::{Mutex as Turns, Notify, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::backoff::{jittered, spread};

/// How many requests of a node are on their way at once, at the most.
const WIDE: usize = 8;

/// A server that takes longer for an answer has much to do: half as many are asked at once.
const SLOW: Duration = Duration::from_secs(1);

/// How long one request without an answer keeps the next one from being asked: it may be the only one that has none.
const HELD: Duration = Duration::from_secs(15);

/// After how long without an answer nobody knows any more how much the server can do.
const RESTED: Duration = Duration::from_secs(10);

/// The first pause after a silence is any part of this: all nodes of a server lose it at one moment.
const FIRST: Duration = Duration::from_secs(2);

/// A later one is this part of how long the silence is, so that who comes back is found soon after a short one; and
/// as long at the least as the first may be, and at the most.
const PART: u32 = 30;
const LONGEST: Duration = Duration::from_secs(15);

/// What is added to a server's own `Retry-After`: any part of this after the first refusal, twice as much for each
/// further thing that is refused with no answer in between, up to [`LONGEST`]. Not for the same thing again: there may be
/// no time for that one alone, and who asks for it waits longer each time.
const BUSY: Duration = Duration::from_secs(1);

/// Further refused things make no difference: with so many it is [`LONGEST`] already.
const MANY: usize = 5;

/// Where the server does not say how long.
const UNSAID: Duration = Duration::from_secs(1);

/// The longest that a server is taken at its word.
const BELIEVED: Duration = Duration::from_secs(60);

tokio::task_local! {
    /// The list that the task follows, if it follows one. kube has no place for it in a request, and a client for each
    /// list would have a queue and a task for each.
    static ASKING: watch::Sender<Stage>;
}

/// How far the last request for a list has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It waits for its turn, or for the answer.
    Asking,
    /// It has an answer, even if that says no. It was asked then.
    Answered(Instant),
    /// It has none, and the gate is closed.
    Unanswered,
    /// There was no time for it, and the gate is closed; it may be so for this one alone.
    Busy,
}

/// What came of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// An answer that was thought about.
    Answered,
    /// Nothing.
    Silent,
    /// The server has too much to do, or is about to begin; it may say for how long.
    Busy(Option<Duration>),
}

impl Outcome {
    /// By the HTTP status code of the answer. 504 is none of the server's other work: a request reached its limit.
    pub(super) fn of_code(code: u16, after: Option<Duration>) -> Self {
        let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if busy.iter().any(|busy| busy.as_u16() == code) {
            Self::Busy(after)
        } else {
            Self::Answered
        }
    }

    fn of(answer: &kube::Result<Response<Body>>) -> Self {
        let Ok(answer) = answer else { return Self::Silent };
        let after = answer.headers().get(RETRY_AFTER).and_then(|after| after.to_str().ok());
        let after = after.and_then(|after| after.parse().ok()).map(Duration::from_secs);
        Self::of_code(answer.status().as_u16(), after)
    }
}

/// What all that a node asks goes through, unless somebody waits for the answer.
#[derive(Default)]
pub(super) struct Gate {
    /// Whoever is at the door waits until there is room; the others wait behind it, in the order in which they came.
    door: Turns<()>,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    /// How many may be on their way.
    room: usize,
    /// When each that is on its way was asked.
    asked: BTreeMap<u64, Instant>,
    next: u64,
    closed: Option<Closed>,
    /// When the last answer came.
    answered: Option<Instant>,
    /// When the first of the requests without an answer ended since the last one that had one.
    silent_since: Option<Instant>,
    /// What a busy server has refused since the last answer.
    refused: BTreeSet<String>,
}

/// Nothing is asked.
#[derive(Clone, Copy)]
struct Closed {
    until: Instant,
    /// By a server that spoke: what was asked before that time is no sign that it has less to do.
    is_busy: bool,
}

/// A request on its way. It counts until this is dropped.
pub(super) struct Pass<'a> {
    gate: &'a Gate,
    number: u64,
    asked: Instant,
}

impl Default for State {
    fn default() -> Self {
        Self {
            room: 1,
            asked: BTreeMap::new(),
            next: 0,
            closed: None,
            answered: None,
            silent_since: None,
            refused: BTreeSet::new(),
        }
    }
}

impl State {
    /// Until when the next one has to wait, if nothing changes before.
    fn full_until(&mut self, now: Instant) -> Option<Instant> {
        if self.answered.is_some_and(|answered| now.saturating_duration_since(answered) > RESTED) {
            self.room = 1;
        }
        if let Some(closed) = self.closed.filter(|closed| closed.until > now) {
            return Some(closed.until);
        }
        let held = self.asked.values().map(|asked| *asked + HELD).filter(|until| *until > now);
        if held.clone().count() < self.room { None } else { held.min() }
    }

    /// Takes note of what came of a request for `what` that was asked then.
    fn note(&mut self, what: &str, asked: Instant, outcome: Outcome, now: Instant) {
        // Out of turn, or before the gate was closed.
        let is_early = |closed: &Closed| asked < closed.until;
        let pause = match outcome {
            Outcome::Answered => {
                if self.closed.as_ref().is_some_and(|closed| closed.is_busy && is_early(closed)) {
                    return;
                }
                let is_slow = now.saturating_duration_since(asked) > SLOW;
                self.room = if is_slow { (self.room / 2).max(1) } else { WIDE.min(self.room + 1) };
                self.refused.clear();
                (self.closed, self.silent_since, self.answered) = (None, None, Some(now));
                return;
            }
            // It says no more than the one that closed the gate.
            _ if self.closed.as_ref().is_some_and(is_early) => return,
            Outcome::Silent => match self.silent_since {
                None => spread(FIRST),
                Some(since) => jittered(((now - since) / PART).clamp(FIRST, LONGEST)),
            },
            Outcome::Busy(after) => {
                if self.refused.len() < MANY {
                    self.refused.insert(what.to_owned());
                }
                let more = self.refused.iter().skip(1).fold(BUSY, |more, _| more * 2);
                after.unwrap_or(UNSAID).min(BELIEVED) + spread(more.min(LONGEST))
            }
        };
        let is_busy = outcome != Outcome::Silent;
        // A server that speaks is there.
        self.silent_since = (!is_busy).then(|| self.silent_since.unwrap_or(now));
        self.room = 1;
        self.closed = Some(Closed { until: now + pause, is_busy });
    }
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this request is the next one, and there is room for it.
    pub(super) async fn enter(&self) -> Pass<'_> {
        let _turn = self.door.lock().await;
        loop {
            let until = match self.ask_now() {
                Ok(pass) => return pass,
                Err(until) => until,
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// The pass; until when there is none, if nothing changes before.
    fn ask_now(&self) -> Result<Pass<'_>, Instant> {
        let (now, mut state) = (Instant::now(), self.state());
        if let Some(until) = state.full_until(now) {
            return Err(until);
        }
        let number = state.next;
        state.next += 1;
        state.asked.insert(number, now);
        Ok(Pass { gate: self, number, asked: now })
    }

    /// Takes note of what came of a request for `what`, which was asked then.
    pub(super) fn note(&self, what: &str, asked: Instant, outcome: Outcome) {
        self.state().note(what, asked, outcome, Instant::now());
        self.changed.notify_one();
    }

    /// A client of which each request waits for its turn.
    pub(super) fn before(self: &Arc<Self>, client: Client, namespace: &str) -> Client {
        let gate = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let (gate, client) = (Arc::clone(&gate), client.clone());
            async move { gate.send(&client, request).await }
        });
        Client::new(service, namespace)
    }

    async fn send(&self, client: &Client, request: Request<Body>) -> kube::Result<Response<Body>> {
        // In the task of who asks: only the service is called in another one.
        let tell = |stage| ASKING.try_with(|asking| asking.send_replace(stage));
        // Who asks for itself has nobody to tell.
        let _ = tell(Stage::Asking);
        let pass = self.enter().await;
        let what = request.uri().path().to_owned();
        let answer = client.send(request).await;
        let outcome = Outcome::of(&answer);
        let asked = pass.end(&what, outcome);
        let _ = tell(match outcome {
            Outcome::Answered => Stage::Answered(asked),
            Outcome::Silent => Stage::Unanswered,
            Outcome::Busy(_) => Stage::Busy,
        });
        answer
    }
}

impl Pass<'_> {
    /// It is over; when it was asked.
    fn end(self, what: &str, outcome: Outcome) -> Instant {
        self.gate.note(what, self.asked, outcome);
        self.asked
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.gate.state().asked.remove(&self.number);
        self.gate.changed.notify_one();
    }
}

/// A list that is followed through a gate.
pub(crate) struct Voice {
    gate: Arc<Gate>,
    client: Client,
    stage: watch::Sender<Stage>,
}

impl Voice {
    pub(super) fn new(gate: &Arc<Gate>, client: Client) -> Self {
        Self { gate: Arc::clone(gate), client, stage: watch::Sender::new(Stage::Asking) }
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs what asks by the client.
    pub(super) async fn follow<T>(&self, task: impl Future<Output = T>) -> T {
        ASKING.scope(self.stage.clone(), task).await
    }

    /// Waits until the last request has been answered for so long.
    pub(super) async fn answered_for(&self, time: Duration) {
        let mut stage = self.stage.subscribe();
        loop {
            let answered = stage.wait_for(|stage| matches!(stage, Stage::Answered(_))).await;
            if answered.map(drop).is_err() {
                // The sender is this one's own.
                return std::future::pending().await;
            }
            tokio::select! {
                _ = stage.changed() => {}
                () = sleep(time) => return,
            }
        }
    }

    /// Whether the failure is that of the last request, so that the gate waits already.
    pub(super) fn is_held(&self) -> bool {
        matches!(*self.stage.borrow(), Stage::Unanswered | Stage::Busy)
    }

    /// Whether a server that has no time for the last request may have time for others.
    pub(super) fn is_busy(&self) -> bool {
        *self.stage.borrow() == Stage::Busy
    }

    /// The answer ended before its end: the server may be gone.
    pub(super) fn broke(&self) {
        if let Stage::Answered(asked) = *self.stage.borrow() {
            self.gate.note("", asked, Outcome::Silent);
        }
    }
}

#[cfg(test)]
mod tests;
