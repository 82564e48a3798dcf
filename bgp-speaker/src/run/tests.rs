use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::Ipv4Addr,
    sync::Arc,
};

use tokio::sync::Semaphore;
use twill_bgp_proto::{PeerKind, State, wire};
use twill_types::Asn;

use super::*;

#[test]
fn a_changed_password_is_another_number_and_no_other_peer_has_one() {
    let (one, two) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
    let mut keys = Keys::default();
    let mut set = |passwords: &[(IpAddr, &str)]| {
        let of = |text: &str| Password::new(text).unwrap();
        keys.replace(passwords.iter().map(|(peer, text)| (*peer, of(text))).collect());
        (keys.number(one), keys.number(two))
    };
    assert_eq!(set(&[]), (0, 0));
    assert_eq!(set(&[(one, "a"), (two, "b")]), (1, 2));
    assert_eq!(set(&[(one, "a"), (two, "c")]), (1, 3));
    assert_eq!(set(&[(two, "c")]), (0, 3));
    assert_eq!(set(&[(one, "a"), (two, "c")]), (4, 3));
}

fn config() -> SpeakerConfig {
    SpeakerConfig {
        router_id: Ipv4Addr::new(192, 0, 2, 1),
        asn: Asn::new(64512).unwrap(),
        hostname: String::new(),
        seed: 1,
        forwarding: BTreeSet::new(),
        selection_deferral: Duration::from_secs(60),
        max_paths: 16,
    }
}

/// Whether a NOTIFICATION is among these messages, of which the last may be cut off.
fn has_notification(mut said: &[u8]) -> bool {
    while let Some(&[high, low, kind]) = said.get(16..19) {
        if kind == 3 {
            return true;
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        said = said.get(length.max(19)..).unwrap_or_default();
    }
    false
}

/// A peer that says every half second that it lives, until the node closes or the time is up; the answer is
/// whether the node closed, and the connection, which stays open with it.
fn lively_peer(listener: &std::net::TcpListener) -> std::io::Result<(bool, std::net::TcpStream)> {
    let (mut stream, _) = listener.accept()?;
    let open = wire::Open {
        asn: Asn::new(64513).unwrap(),
        hold_time: 3,
        identifier: Ipv4Addr::new(192, 0, 2, 2),
        capabilities: vec![wire::Capability::FourOctetAs(Asn::new(64513).unwrap())],
    };
    stream.write_all(&wire::encode_open(&open))?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    for _ in 0..12 {
        stream.write_all(&wire::encode_keepalive())?;
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((true, stream)),
            Ok(count) => {
                said.extend_from_slice(&buffer[..count]);
                if has_notification(&said) {
                    return Ok((true, stream));
                }
                std::thread::sleep(Duration::from_millis(500));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok((false, stream))
}

/// A session with a lively peer outlasts a stop of this process that is longer than the hold time, while the
/// peer is not stopped: its KEEPALIVEs wait in the socket.
async fn outlasts(stop: impl Future<Output = ()>) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let key = PeerKey {
        address: Ipv4Addr::LOCALHOST.into(),
        port: listener.local_addr().unwrap().port(),
    };
    let peer = std::thread::spawn(move || lively_peer(&listener));
    let (reports, _reported) = mpsc::unbounded_channel();
    let (handle, task) = start(config(), reports);
    let remote = PeerConfig::new("lively", PeerKind::Global, Asn::new(64513).unwrap());
    let remote = PeerConfig { hold_time: 3, takes_connections: false, ..remote };
    let (peers, passwords) = ([(key, remote)].into(), BTreeMap::new());
    handle.send(Command::SetPeers { peers, passwords }).await;
    let state = async || handle.snapshot(Pictured::Sessions).await.peers[0].state;
    while state().await != State::Established {
        assert!(!peer.is_finished(), "no session");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.await;
    let heard = tokio::task::spawn_blocking(move || peer.join().unwrap().unwrap());
    let (closed, _open) = heard.await.unwrap();
    assert!(!closed);
    assert_eq!(state().await, State::Established);
    handle.stop().await;
    task.await.unwrap().unwrap();
}

const STOP: Duration = Duration::from_millis(3300);

#[tokio::test]
async fn what_waits_in_the_socket_is_heard_before_the_hold_timer_expires() {
    // The one thread that the runtime of this test has: the stop itself, and no wait for anything.
    outlasts(async { std::thread::sleep(STOP) }).await;
}

/// As in the daemon: who reads may run on another thread than who looks at the timers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_is_heard_where_another_thread_reads_it() {
    outlasts(async {
        let both = Arc::new(std::sync::Barrier::new(2));
        let stop = |both: Arc<std::sync::Barrier>| {
            tokio::spawn(async move {
                both.wait();
                std::thread::sleep(STOP);
            })
        };
        let (one, two) = (stop(Arc::clone(&both)), stop(both));
        one.await.unwrap();
        two.await.unwrap();
    })
    .await;
}

/// However much waits, and however little: what is due in between is done soon.
#[tokio::test]
async fn a_turn_is_bounded_in_octets_and_in_inputs() {
    for (length, handled) in [(64 * 1024, 2), (100 * 1024, 2), (BUDGET_OCTETS, 1), (19, BUDGET)] {
        let (reports, _reported) = mpsc::unbounded_channel();
        let mut shell = Shell::new(config(), reports);
        let waiting = Arc::new(Semaphore::new(2 * BUDGET));
        for _ in 0..2 * BUDGET {
            let permit = Arc::clone(&waiting).try_acquire_owned().unwrap();
            let bytes = vec![0xff; length];
            shell.events.try_send(Event::Received { conn: ConnId(1), bytes, permit }).unwrap();
        }
        let first = shell.event_queue.recv().await.unwrap();
        shell.events(first);
        assert_eq!(waiting.available_permits(), handled, "pieces of {length}");
    }
}

#[tokio::test]
async fn a_port_in_use_ends_nothing_but_a_start() {
    let other = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let taken = other.local_addr().unwrap().port();
    let (reports, _reported) = mpsc::unbounded_channel();
    let mut shell = Shell::new(config(), reports);
    let refused = shell.listen(taken).await.unwrap_err();
    assert!(refused.to_string().contains(&format!("port {taken}; stop what uses it")));

    shell.listen(0).await.unwrap();
    shell.listen(taken).await.unwrap();
    assert_eq!(shell.listener.as_ref().map(|(port, _)| *port), Some(0));
    drop(other);
    shell.listen(taken).await.unwrap();
    assert_eq!(shell.listener.as_ref().map(|(port, _)| *port), Some(taken));
}

/// Who has stopped a speaker starts the next one at once, when the AS number changes for example.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_speaker_that_has_stopped_has_left_its_port() {
    // Bound in both families and without a backlog, it keeps the port from everybody who takes any.
    let keeper = tokio::net::TcpSocket::new_v6().unwrap();
    keeper.set_reuseaddr(true).unwrap();
    keeper.bind((std::net::Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
    let port = keeper.local_addr().unwrap().port();
    for _ in 0..200 {
        let (reports, _reported) = mpsc::unbounded_channel();
        let (handle, task) = start(config(), reports);
        handle.send(Command::Listen(port)).await;
        handle.stop().await;
        let next = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
        drop(next.expect("the port is free"));
        task.await.unwrap().unwrap();
    }
}
