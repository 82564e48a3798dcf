use std::{os::unix::net::UnixListener, thread};

use tempfile::TempDir;
use twill_types::{AttachmentId, Family, ReleaseRequest};

use super::*;
use crate::{frame::write_frame, message::ErrorKind};

const LONG: Duration = Duration::from_secs(20);

/// A socket in a directory of its own, and a thread that treats the one connection as `script`
/// says.
struct Daemon {
    directory: TempDir,
    thread: thread::JoinHandle<()>,
}

impl Daemon {
    fn start(script: impl FnOnce(UnixStream) + Send + 'static) -> Self {
        let directory = TempDir::new().unwrap();
        let listener = UnixListener::bind(directory.path().join("twilld.sock")).unwrap();
        let thread = thread::spawn(move || script(listener.accept().unwrap().0));
        Self { directory, thread }
    }

    fn connect(&self, timeout: Duration) -> Result<Client, ClientError> {
        Client::connect(&self.directory.path().join("twilld.sock"), "test", timeout)
    }

    fn join(self) {
        self.thread.join().unwrap();
    }
}

fn receive<T: serde::de::DeserializeOwned>(stream: &mut UnixStream) -> T {
    decode(&read_frame(stream).unwrap().unwrap()).unwrap()
}

fn welcome(protocol: u16) -> Welcome {
    Welcome { protocol, daemon: "9.9.9".into(), node: "node1".into() }
}

/// Reads the hello and sends the welcome of a daemon of this release.
fn greet(stream: &mut UnixStream) {
    assert_eq!(receive::<Hello>(stream).protocol, PROTOCOL_VERSION);
    write_frame(stream, &welcome(PROTOCOL_VERSION)).unwrap();
}

fn assign() -> AssignRequest {
    AssignRequest {
        attachment: AttachmentId {
            network: "net".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        },
        families: vec![Family::V4],
        wanted: vec![],
        ipv4_pools: vec![],
        ipv6_pools: vec![],
        allow_reserved: false,
        netns: "/run/netns/a".into(),
        netns_cookie: Some(7),
        pod: None,
        foreign: None,
        timeout_ms: 1000,
    }
}

#[test]
fn answers_come_in_order_on_one_connection() {
    let assigned = Assigned {
        addresses: vec!["10.10.0.1".parse().unwrap()],
        blocks: vec!["10.10.0.0/26".parse().unwrap()],
        sequence: 3,
        mtu: 1500,
    };
    let answer = Response::Assigned(assigned.clone());
    let daemon = Daemon::start(move |mut stream| {
        greet(&mut stream);
        assert_eq!(receive::<Request>(&mut stream), Request::Assign(Box::new(assign())));
        write_frame(&mut stream, &answer).unwrap();
        assert!(matches!(receive::<Request>(&mut stream), Request::Release(_)));
        write_frame(&mut stream, &Response::Released(Released { addresses: vec![] })).unwrap();
        // The client closes between two frames.
        assert!(read_frame(&mut stream).unwrap().is_none());
    });
    let mut client = daemon.connect(LONG).unwrap();
    assert_eq!(client.assign(assign()).unwrap(), assigned);
    let attachment = assign().attachment;
    let request = ReleaseRequest { attachment, sequence: Some(3), netns_cookie: Some(7) };
    // The other side may be older, and reads the request alone.
    let release = Release { request: request.clone(), parked: Some(9) };
    let text = serde_json::to_string(&release).unwrap();
    assert_eq!(serde_json::from_str::<ReleaseRequest>(&text).unwrap(), request);
    assert_eq!(serde_json::from_str::<Release>(&text).unwrap(), release);
    let text = serde_json::to_string(&request).unwrap();
    let older = Release { request, parked: None };
    assert_eq!(serde_json::from_str::<Release>(&text).unwrap(), older);
    assert_eq!(client.release(release).unwrap().addresses, Vec::<std::net::IpAddr>::new());
    assert_eq!(client.welcome().unwrap().node, "node1");
    drop(client);
    daemon.join();
}

#[test]
fn the_daemons_error_is_passed_on() {
    let error = RpcError { kind: ErrorKind::NoPool, message: "no pool selects node3".into() };
    let answer = Response::Error(error.clone());
    let daemon = Daemon::start(move |mut stream| {
        greet(&mut stream);
        receive::<Request>(&mut stream);
        write_frame(&mut stream, &answer).unwrap();
    });
    match daemon.connect(LONG).unwrap().assign(assign()) {
        Err(ClientError::Remote(remote)) => assert_eq!(remote, error),
        other => panic!("{other:?}"),
    }
    daemon.join();
}

#[test]
fn versions_are_compared_before_anything_else() {
    // Closing with the request unread is what a daemon does that refuses a version.
    let daemon = Daemon::start(|mut stream| {
        receive::<Hello>(&mut stream);
        write_frame(&mut stream, &welcome(PROTOCOL_VERSION + 1)).unwrap();
    });
    let mut client = daemon.connect(LONG).unwrap();
    let error = client.assign(assign()).unwrap_err();
    assert!(matches!(error, ClientError::Version { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("twilld 9.9.9") && text.contains("twilld.sock"), "{text}");
    daemon.join();
}

#[test]
fn nobody_listens() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("twilld.sock");
    let missing = Client::connect(&path, "test", LONG).unwrap_err();
    assert!(matches!(missing, ClientError::NotRunning { .. }), "{missing:?}");
    drop(UnixListener::bind(&path).unwrap());
    let refused = Client::connect(&path, "test", LONG).unwrap_err();
    assert!(matches!(refused, ClientError::NotRunning { .. }), "{refused:?}");
    assert!(refused.to_string().contains(path.to_str().unwrap()), "{refused}");
    let long = directory.path().join("x".repeat(200));
    let error = Client::connect(&long, "test", LONG).unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
}

#[test]
fn a_silent_daemon_meets_the_deadline() {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let daemon = Daemon::start(move |mut stream| {
        greet(&mut stream);
        // Half a frame is no answer either.
        stream.write_all(&[0, 0]).unwrap();
        wait.recv().unwrap_err();
    });
    let mut client = daemon.connect(Duration::from_millis(50)).unwrap();
    let error = client.node_status().unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");
    drop(done);
    daemon.join();
}

#[test]
fn a_daemon_that_accepts_nobody_meets_the_deadline() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("twilld.sock");
    let listener = UnixListener::bind(&path).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let timeout = Duration::from_millis(50);
    let _first = Client::connect(&path, "test", timeout).unwrap();
    let error = Client::connect(&path, "test", timeout).unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error:?}");
}

#[test]
fn a_daemon_that_dies_is_told_from_one_that_talks_nonsense() {
    type Script = fn(&mut UnixStream);
    type Expected = fn(&ClientError) -> bool;
    let cases: [(&str, Script, Expected); 6] = [
        ("closes at once", |_| {}, |e| matches!(e, ClientError::Lost { .. })),
        (
            "dies after the welcome",
            |s| {
                greet(s);
                receive::<Request>(s);
            },
            |e| matches!(e, ClientError::Lost { .. }),
        ),
        (
            "dies inside a frame",
            |s| {
                greet(s);
                receive::<Request>(s);
                s.write_all(b"\0\0\0\x10{\"type").unwrap();
            },
            |e| matches!(e, ClientError::Lost { .. }),
        ),
        (
            "is a web server",
            |s| s.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap(),
            |e| matches!(e, ClientError::Protocol { source: FrameError::Oversized(_), .. }),
        ),
        (
            "sends a message nobody knows",
            |s| {
                greet(s);
                receive::<Request>(s);
                s.write_all(b"\0\0\0\x10{\"type\": \"fish\"}").unwrap();
            },
            |e| matches!(e, ClientError::Protocol { source: FrameError::Decode { .. }, .. }),
        ),
        (
            "answers another question",
            |s| {
                greet(s);
                receive::<Request>(s);
                write_frame(s, &Response::Done).unwrap();
            },
            |e| matches!(e, ClientError::Unexpected { asked: "NodeStatus", got: "Done", .. }),
        ),
    ];
    for (name, script, expected) in cases {
        let daemon = Daemon::start(move |mut stream| script(&mut stream));
        let error = daemon.connect(LONG).unwrap().node_status().unwrap_err();
        assert!(expected(&error), "{name}: {error:?}");
        daemon.join();
    }
}

/// What a daemon answers to [`assign`] in these tests.
fn no_pool() -> Response {
    Response::Error(RpcError { kind: ErrorKind::NoPool, message: "no pool selects node3".into() })
}

fn ahead() -> Request {
    Request::Assign(Box::new(assign()))
}

#[test]
fn what_was_asked_ahead_is_asked_once() {
    let daemon = Daemon::start(|mut stream| {
        greet(&mut stream);
        assert_eq!(receive::<Request>(&mut stream), ahead());
        write_frame(&mut stream, &Response::Done).unwrap();
        // The same question after its answer is a new one.
        assert_eq!(receive::<Request>(&mut stream), ahead());
        write_frame(&mut stream, &no_pool()).unwrap();
        assert!(read_frame(&mut stream).unwrap().is_none());
    });
    let mut client = daemon.connect(LONG).unwrap();
    client.ask_ahead(ahead()).unwrap();
    assert_eq!(client.call(&ahead()).unwrap(), Response::Done);
    let error = client.call(&ahead()).unwrap_err();
    assert!(matches!(error, ClientError::Remote(_)), "{error:?}");
    drop(client);
    daemon.join();
}

#[test]
fn an_answer_nobody_waited_for_is_not_that_of_the_next_question() {
    // An error is an answer as well, and no business of who asks next.
    for unread in [Response::Done, no_pool()] {
        let daemon = Daemon::start(move |mut stream| {
            greet(&mut stream);
            assert_eq!(receive::<Request>(&mut stream), ahead());
            write_frame(&mut stream, &unread).unwrap();
            assert_eq!(receive::<Request>(&mut stream), Request::Readiness(None));
            write_frame(&mut stream, &Response::Done).unwrap();
            assert_eq!(receive::<Request>(&mut stream), Request::BgpPeers);
            write_frame(&mut stream, &Response::BgpPeers(vec![])).unwrap();
        });
        let mut client = daemon.connect(LONG).unwrap();
        client.ask_ahead(ahead()).unwrap();
        client.ask_ahead(Request::Readiness(None)).unwrap();
        assert_eq!(client.bgp_peers().unwrap(), []);
        daemon.join();
    }
}

#[test]
fn the_error_that_answers_what_was_asked_ahead_is_told_to_who_asks_the_same() {
    let daemon = Daemon::start(|mut stream| {
        greet(&mut stream);
        receive::<Request>(&mut stream);
        write_frame(&mut stream, &no_pool()).unwrap();
    });
    let mut client = daemon.connect(LONG).unwrap();
    client.ask_ahead(ahead()).unwrap();
    let error = client.assign(assign()).unwrap_err();
    assert!(matches!(&error, ClientError::Remote(e) if e.kind == ErrorKind::NoPool), "{error:?}");
    daemon.join();
}

#[test]
fn a_daemon_that_dies_after_it_was_asked_ahead_is_lost_to_any_question() {
    for next in [ahead(), Request::BgpPeers] {
        for greets in [true, false] {
            let daemon = Daemon::start(move |mut stream| {
                if greets {
                    greet(&mut stream);
                } else {
                    receive::<Hello>(&mut stream);
                }
                assert_eq!(receive::<Request>(&mut stream), ahead());
            });
            let mut client = daemon.connect(LONG).unwrap();
            client.ask_ahead(ahead()).unwrap();
            daemon.thread.join().unwrap();
            let error = client.call(&next).unwrap_err();
            assert!(matches!(error, ClientError::Lost { .. }), "{next:?}, {greets}: {error:?}");
        }
    }
}

#[test]
fn a_version_that_is_refused_is_told_after_a_question_ahead() {
    for next in [ahead(), Request::BgpPeers] {
        let daemon = Daemon::start(|mut stream| {
            receive::<Hello>(&mut stream);
            write_frame(&mut stream, &welcome(PROTOCOL_VERSION + 1)).unwrap();
        });
        let mut client = daemon.connect(LONG).unwrap();
        // The daemon may have closed already or not.
        let asked = client.ask_ahead(ahead());
        assert!(matches!(asked, Ok(()) | Err(ClientError::Lost { .. })), "{asked:?}");
        let error = client.call(&next).unwrap_err();
        assert!(matches!(error, ClientError::Version { .. }), "{next:?}: {error:?}");
        daemon.join();
    }
}
