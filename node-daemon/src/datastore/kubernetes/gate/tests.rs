//! In a time that passes only while everybody waits.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
};

use axum::body::Body as Sent;
use futures_util::{future::join_all, stream};
use serde_json::json;
use tokio::{sync::mpsc, task::JoinSet};

use super::{
    super::{
        access::{Access, ApiError},
        subject::Subject,
        watching::{self, News},
    },
    *,
};

/// As many as a daemon follows.
const LISTS: usize = 13;

const SECOND: Duration = Duration::from_secs(1);

type Answering = Pin<Box<dyn Future<Output = kube::Result<Response<Sent>>> + Send>>;

/// What a test's API server does with a request: `None` to answer as one does that has nothing to tell.
type Say = dyn Fn(&str, Instant) -> Option<Answering> + Send + Sync;

/// An API server, and what was asked of it.
struct Server {
    say: Box<Say>,
    started: Instant,
    /// When, and what.
    asked: Mutex<Vec<(Duration, String)>>,
    on_their_way: Mutex<[usize; 2]>,
    /// All connections break.
    broken: Notify,
}

impl Server {
    fn new(say: impl Fn(&str, Instant) -> Option<Answering> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            say: Box::new(say),
            started: Instant::now(),
            asked: Mutex::default(),
            on_their_way: Mutex::default(),
            broken: Notify::new(),
        })
    }

    fn access(self: &Arc<Self>) -> Access {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move { server.serve(&request.uri().to_string()).await }
        });
        Access::with_client(Client::new(service, "default"), "default".to_owned())
    }

    async fn serve(self: Arc<Self>, uri: &str) -> kube::Result<Response<Sent>> {
        self.asked.lock().unwrap().push((self.started.elapsed(), uri.to_owned()));
        self.count(1);
        let answer = match (self.say)(uri, self.started) {
            Some(answer) => answer.await,
            None => Ok(Response::new(self.nothing_new(uri))),
        };
        self.count(-1);
        answer
    }

    /// A list that is empty, or a watch that says nothing until the connection breaks.
    fn nothing_new(self: &Arc<Self>, uri: &str) -> Sent {
        if !uri.contains("watch=true") {
            return Sent::from(
                json!({"metadata": {"resourceVersion": "1"}, "items": []}).to_string(),
            );
        }
        let server = Arc::clone(self);
        Sent::from_stream(stream::once(async move {
            server.broken.notified().await;
            Err::<Vec<u8>, _>(std::io::Error::from(std::io::ErrorKind::ConnectionReset))
        }))
    }

    fn count(&self, change: isize) {
        let [now, most] = &mut *self.on_their_way.lock().unwrap();
        *now = now.checked_add_signed(change).unwrap();
        *most = (*most).max(*now);
    }

    fn most_at_once(&self) -> usize {
        self.on_their_way.lock().unwrap()[1]
    }

    /// How many requests came in that time.
    fn asked(&self, from: Duration, to: Duration) -> usize {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(when, _)| (from..to).contains(when)).count()
    }

    /// When as many watches had begun, each counted once.
    fn all_begun(&self, count: usize) -> Option<Duration> {
        let asked = self.asked.lock().unwrap();
        let mut begun = BTreeSet::new();
        let watches = asked.iter().filter(|(_, uri)| uri.contains("watch=true"));
        watches.filter(|(_, uri)| begun.insert(uri)).nth(count - 1).map(|(when, _)| *when)
    }
}

fn no_connection() -> Option<Answering> {
    Some(Box::pin(async { Err(kube::Error::Service("connection refused".into())) }))
}

/// A refusal, as the API server says it.
fn status(code: u16, reason: &str, after: Option<u64>) -> Option<Answering> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": reason,
    });
    let mut response = Response::builder().status(code);
    if let Some(after) = after {
        response = response.header(RETRY_AFTER, after);
    }
    let response = response.body(Sent::from(body.to_string())).unwrap();
    Some(Box::pin(async move { Ok(response) }))
}

/// A request that nobody waits for.
async fn ask_in_turn(access: &Access, verb: &'static str, path: &str) -> Result<String, ApiError> {
    let request = Request::get(path).body(Vec::new()).unwrap();
    let client = access.client();
    access.answer_in_turn(verb, path, client.request_text(request)).await
}

/// All that a daemon follows, and what is told of it.
fn follow_all(access: &Access) -> (JoinSet<()>, mpsc::Receiver<(Subject, News)>) {
    let (sender, news) = mpsc::channel(1000);
    let mut subjects = Subject::of_every_node("node1");
    subjects.extend([Subject::nodes(Some("node1")), Subject::pods("node1")]);
    assert_eq!(subjects.len(), LISTS);
    let follow = |subject| watching::follow(access.voice(), subject, sender.clone());
    (subjects.into_iter().map(follow).collect(), news)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_asked_by_one_and_found_soon_after_it_is_back() {
    let back = 60 * SECOND;
    let server = Server::new(move |_, started| (started.elapsed() < back).then(no_connection)?);
    let (_tasks, _news) = follow_all(&server.access());
    sleep(back + 3 * SECOND).await;
    // By themselves they asked 13 times at once, and about a hundred times in all.
    let asked = server.asked(Duration::ZERO, back);
    assert!((25..=62).contains(&asked), "{asked} requests in a minute");
    assert_eq!(server.asked(Duration::ZERO, Duration::from_millis(1)), 1);
    let begun = server.all_begun(LISTS).expect("all follow again");
    assert!(begun <= back + FIRST + SECOND / 10, "after {begun:?}");
    assert_eq!(server.asked(back, back + 3 * SECOND), 2 * LISTS, "once each");
}

#[tokio::test(start_paused = true)]
async fn after_a_long_silence_it_is_asked_less() {
    let server = Server::new(|_, _| no_connection());
    let (_tasks, _news) = follow_all(&server.access());
    sleep(3600 * SECOND).await;
    let asked = server.asked(3000 * SECOND, 3600 * SECOND);
    assert!((35..=85).contains(&asked), "{asked} requests in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn what_a_server_is_slow_to_answer_is_not_thrown_away() {
    let back = 60 * SECOND;
    let answering = Arc::new(AtomicBool::new(false));
    let is_back = Arc::clone(&answering);
    let server = Server::new(move |uri, started| {
        if is_back.load(Ordering::Relaxed) {
            return None;
        }
        let is_watch = uri.contains("watch=true");
        assert!(!is_watch, "no list was answered");
        Some(Box::pin(async move {
            tokio::time::sleep_until(started + back).await;
            let list = json!({"metadata": {"resourceVersion": "1"}, "items": []});
            Ok(Response::new(Sent::from(list.to_string())))
        }))
    });
    let (_tasks, _news) = follow_all(&server.access());
    sleep(back - SECOND).await;
    answering.store(true, Ordering::Relaxed);
    sleep(2 * SECOND).await;
    // One each fifteen seconds: it may have been that one alone.
    assert_eq!(server.asked(Duration::ZERO, back), 4);
    let begun = server.all_begun(LISTS).expect("all follow");
    assert!(begun <= back + SECOND / 10, "after {begun:?}");
    assert_eq!(server.asked(Duration::ZERO, back + SECOND), 2 * LISTS, "once each");
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_refused_holds_no_other() {
    let server = Server::new(|uri, _| {
        uri.contains("/ippools").then(|| status(403, "Forbidden", None)).flatten()
    });
    let (_tasks, _news) = follow_all(&server.access());
    sleep(60 * SECOND).await;
    let begun = server.all_begun(LISTS - 1).expect("all others follow");
    assert!(begun < SECOND / 10, "after {begun:?}");
    let refused = server.asked(Duration::ZERO, 60 * SECOND) - 2 * (LISTS - 1);
    assert!((2..=5).contains(&refused), "it was asked for {refused} times");
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_taken_at_its_word() {
    let server = Server::new(|_, started| match started.elapsed() {
        at if at < 10 * SECOND => status(429, "TooManyRequests", Some(4)),
        _ => None,
    });
    let (_tasks, _news) = follow_all(&server.access());
    sleep(30 * SECOND).await;
    let asked = server.asked(Duration::ZERO, 10 * SECOND);
    assert!((2..=3).contains(&asked), "{asked} times while it was busy");
    assert_eq!(server.asked(Duration::from_millis(1), 4 * SECOND), 0);
    let begun = server.all_begun(LISTS).expect("all follow");
    // Its four seconds, and of those that come on top four at the most.
    assert!(begun <= 18 * SECOND, "after {begun:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_quick_is_asked_more_at_once_and_a_slow_one_less() {
    for (takes, [least, most], all) in [
        (SECOND / 100, [4, WIDE], SECOND / 4),
        (2 * SECOND, [1, 1], 2 * SECOND * 2 * u32::try_from(LISTS).unwrap()),
    ] {
        let server = Server::new(|_, _| None);
        // Through another one, as this one has to answer both.
        let slow = Server::new(move |uri, _| {
            let answer = server.nothing_new(uri);
            Some(Box::pin(async move {
                sleep(takes).await;
                Ok(Response::new(answer))
            }))
        });
        let (_tasks, _news) = follow_all(&slow.access());
        sleep(all).await;
        let at_once = slow.most_at_once();
        assert!((least..=most).contains(&at_once), "{at_once} at once, {takes:?} each");
        assert!(slow.all_begun(LISTS).is_some(), "in {all:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_is_one_loss() {
    let server = Server::new(|_, started| match started.elapsed() {
        // Away from then on.
        at if at >= 100 * SECOND => no_connection(),
        _ => None,
    });
    let (_tasks, mut news) = follow_all(&server.access());
    sleep(10 * SECOND).await;
    assert_eq!(server.asked(Duration::ZERO, 10 * SECOND), 2 * LISTS);
    server.broken.notify_waiters();
    sleep(3 * SECOND).await;
    assert_eq!(server.asked(10 * SECOND, 13 * SECOND), LISTS, "each watch once, and no list");
    sleep(4 * SECOND).await;
    let mut told = [0, 0];
    while let Ok((_, news)) = news.try_recv() {
        match news {
            News::Failed { .. } => told[0] += 1,
            News::Resumed => told[1] += 1,
            News::Event(_) => {}
        }
    }
    assert_eq!(told, [LISTS; 2], "all failed, and work again");

    sleep(90 * SECOND).await;
    server.broken.notify_waiters();
    sleep(60 * SECOND).await;
    while let Ok((subject, news)) = news.try_recv() {
        assert!(!matches!(news, News::Resumed), "{subject:?} waits for its turn");
    }
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_may_take_longer_after_it_came_too_late() {
    let server = Server::new(|_, _| {
        Some(Box::pin(async {
            sleep(5 * SECOND).await;
            Ok(Response::new(Sent::from("{}")))
        }))
    });
    let access = server.access();
    let ask = async || {
        let asked = Instant::now();
        (ask_in_turn(&access, "get", "/x").await, asked.elapsed())
    };
    let (first, took) = ask().await;
    assert!(matches!(first, Err(ApiError::Late { .. })), "{first:?}");
    assert_eq!(took.as_secs(), 3);
    sleep(FIRST).await;
    let (second, took) = ask().await;
    assert_eq!((second.unwrap().as_str(), took.as_secs()), ("{}", 5));
    ask().await.0.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_nobody_waits_for_is_asked_in_its_turn_and_no_longer_waited_for_than_it_may_take() {
    let server = Server::new(|_, _| no_connection());
    let access = server.access();
    let (_tasks, _news) = follow_all(&access);
    sleep(1000 * SECOND).await;
    let before = server.asked(Duration::ZERO, 2000 * SECOND);
    let answers = join_all((0..4).map(|_| ask_in_turn(&access, "get", "/x"))).await;
    assert!(answers.iter().all(Result::is_err), "{answers:?}");
    let is_unasked = |answer: &Result<_, ApiError>| matches!(answer, Err(error @ ApiError::Queued { .. }) if !error.is_silence());
    assert!(answers.iter().filter(|answer| is_unasked(answer)).count() >= 3, "{answers:?}");
    assert!(server.started.elapsed() < 1004 * SECOND);
    assert!(server.asked(Duration::ZERO, 2000 * SECOND) <= before + 1);
}

#[tokio::test(start_paused = true)]
async fn one_list_that_a_server_has_no_time_for_holds_up_nothing_else() {
    for code in [429, 503, 504] {
        let server = Server::new(move |uri, _| {
            uri.contains("/ippools").then(|| status(code, "Busy", None)).flatten()
        });
        let access = server.access();
        let (_tasks, _news) = follow_all(&access);
        sleep(60 * SECOND).await;
        let begun = server.all_begun(LISTS - 1).expect("all others follow");
        assert!(begun < 6 * SECOND, "{code}: after {begun:?}");
        for _ in 0..20 {
            let answer = ask_in_turn(&access, "get", "/x").await;
            assert!(answer.is_ok(), "{code}: {answer:?}");
            sleep(7 * SECOND).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_quick_request_is_no_sign_that_one_of_another_kind_is() {
    let server = Server::new(|uri, _| {
        let takes = if uri.contains("slow") { 5 * SECOND } else { SECOND / 100 };
        Some(Box::pin(async move {
            sleep(takes).await;
            Ok(Response::new(Sent::from("{}")))
        }))
    });
    let access = server.access();
    let mut written = Vec::new();
    for _ in 0..4 {
        ask_in_turn(&access, "get", "/quick").await.unwrap();
        written.push(ask_in_turn(&access, "patch", "/slow").await.is_ok());
    }
    assert_eq!(written, [false, true, true, true]);
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_taken_at_its_word_by_what_nobody_waits_for() {
    let server = Server::new(|uri, _| {
        let mut answer = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 429,
            "reason": "TooManyRequests", "message": "later",
        });
        answer["details"] = json!({"retryAfterSeconds": 30});
        let answer = Response::builder().status(429).body(Sent::from(answer.to_string())).unwrap();
        uri.contains("/x").then(|| Box::pin(async { Ok(answer) }) as Answering)
    });
    let access = server.access();
    let refused = ask_in_turn(&access, "get", "/x").await.unwrap_err();
    assert!(refused.is(429), "{refused:?}");
    let (_tasks, _news) = follow_all(&access);
    sleep(32 * SECOND).await;
    assert_eq!(server.asked(Duration::from_millis(1), 30 * SECOND), 0);
    assert!(server.all_begun(LISTS).is_some());
}
