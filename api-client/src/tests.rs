mod server;

use std::{fs, path::Path, time::Duration};

use futures_util::future::join_all;
use hyper::Request;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};
use twill_types::error_chain;

use self::server::{Kind, Order, Seen, Server};
use super::{KeepAlive, Proxy, client, named};

/// Nothing here takes as long.
const DEADLINE: Duration = Duration::from_secs(30);

/// As many as a daemon's watches.
const WATCHES: usize = 13;

/// A node's.
const KEEP_ALIVE: KeepAlive =
    KeepAlive { interval: Duration::from_secs(10), timeout: Duration::from_secs(5) };

async fn client_of(kubeconfig: &Path) -> Client {
    client_with(kubeconfig, KEEP_ALIVE).await.unwrap()
}

/// As all who call this crate make one.
async fn client_with(kubeconfig: &Path, keep_alive: KeepAlive) -> kube::Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).unwrap();
    let url = named(&read, None).map(str::to_owned);
    let options = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(read, &options).await.unwrap();
    config.connect_timeout = Some(Duration::from_secs(2));
    let proxy = Proxy::find(url.as_deref(), &config.cluster_url, |_| None).unwrap();
    client(config, proxy.as_ref(), keep_alive)
}

/// By which version of HTTP a request came; else why it did not.
async fn ask(client: &Client) -> Result<String, String> {
    let request = Request::get("/version").body(Vec::new()).unwrap();
    let answer = timeout(DEADLINE, client.request_text(request)).await.expect("an end");
    answer.map_err(|error| error_chain(&error))
}

#[tokio::test]
async fn all_requests_share_a_connection_of_http2() {
    let server = Server::start(Kind::default()).await;
    let client = client_of(&server.kubeconfig("", "")).await;
    for _ in 0..3 {
        assert_eq!(ask(&client).await.unwrap(), "HTTP/2.0");
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_server_without_http2_is_asked_by_http1() {
    for protocols in [&["http/1.1"][..], &[]] {
        let server = Server::start(Kind { protocols, ..Kind::default() }).await;
        let client = client_of(&server.kubeconfig("", "")).await;
        for answer in join_all((0..WATCHES).map(|_| ask(&client))).await {
            assert_eq!(answer.unwrap(), "HTTP/1.1", "{protocols:?}");
        }
    }
}

#[tokio::test]
async fn what_begins_at_once_waits_for_one_handshake() {
    let server = Server::start(Kind::default()).await;
    let client = client_of(&server.kubeconfig("", "")).await;
    for answer in join_all((0..WATCHES).map(|_| ask(&client))).await {
        assert_eq!(answer.unwrap(), "HTTP/2.0");
    }
    assert_eq!((server.accepted(), server.seen().len()), (1, WATCHES));
}

#[tokio::test]
async fn a_handshake_that_fails_fails_for_all_who_waited() {
    let server = Server::start(Kind::default()).await;
    server.forget_authority();
    let client = client_of(&server.kubeconfig("", "")).await;
    for answer in join_all((0..WATCHES).map(|_| ask(&client))).await {
        let error = answer.unwrap_err();
        assert!(error.contains("invalid peer certificate: UnknownIssuer"), "{error}");
    }
    assert_eq!(server.accepted(), 1);
    ask(&client).await.unwrap_err();
    assert_eq!(server.accepted(), 2, "who comes later tries again");
    assert_eq!(server.seen(), [], "nothing is told to a stranger");
}

#[tokio::test]
async fn a_handshake_goes_on_when_who_asked_for_it_has_given_up() {
    let pause = Duration::from_secs(1);
    let server = Server::start(Kind { pause, ..Kind::default() }).await;
    let client = client_of(&server.kubeconfig("", "")).await;
    for _ in 0..2 {
        timeout(pause / 10, ask(&client)).await.unwrap_err();
    }
    assert_eq!(ask(&client).await.unwrap(), "HTTP/2.0");
    assert_eq!((server.accepted(), server.seen().len()), (1, 1));
}

#[tokio::test]
async fn the_certificate_is_that_of_tls_server_name() {
    let name = "kubernetes.example";
    let server = Server::start(Kind { name, ..Kind::default() }).await;
    let error = ask(&client_of(&server.kubeconfig("", "")).await).await.unwrap_err();
    assert!(error.contains("certificate not valid for name \"127.0.0.1\""), "{error}");
    let kubeconfig = server.kubeconfig(&format!(", tls-server-name: {name}"), "");
    assert_eq!(ask(&client_of(&kubeconfig).await).await.unwrap(), "HTTP/2.0");
    assert_eq!(server.seen(), [Seen { server_name: Some(name.to_owned()), authorization: None }]);
}

#[tokio::test]
async fn a_connection_that_dies_without_a_word_is_left() {
    let server = Server::start(Kind::default()).await;
    let soon = Duration::from_secs(2);
    let keep_alive = KeepAlive { interval: soon, timeout: soon };
    let client = client_with(&server.kubeconfig("", ""), keep_alive).await.unwrap();
    ask(&client).await.unwrap();
    server.order(Order::FallSilent);
    // Well before the deadlines of those who ask, which are not looked at here.
    let error = ask(&client).await.unwrap_err();
    assert!(error.contains("keep-alive timed out"), "{error}");
    assert_eq!(ask(&client).await.unwrap(), "HTTP/2.0");
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn a_server_that_says_goodbye_loses_no_request() {
    let server = Server::start(Kind::default()).await;
    let client = client_of(&server.kubeconfig("", "")).await;
    ask(&client).await.unwrap();
    server.order(Order::GoAway);
    let moved = async {
        while server.accepted() == 1 {
            assert_eq!(ask(&client).await.unwrap(), "HTTP/2.0");
        }
    };
    timeout(DEADLINE, moved).await.unwrap();
    for answer in join_all((0..WATCHES).map(|_| ask(&client))).await {
        assert_eq!(answer.unwrap(), "HTTP/2.0");
    }
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn the_next_request_has_the_token_that_is_in_the_file() {
    let server = Server::start(Kind::default()).await;
    let file = server.path("token");
    let user = format!("tokenFile: '{}'", file.display());
    fs::write(&file, "first\n").unwrap();
    let client = client_of(&server.kubeconfig("", &user)).await;
    ask(&client).await.unwrap();
    fs::write(&file, "second").unwrap();
    ask(&client).await.unwrap();
    // Half written, or gone for a moment: what stood there last.
    fs::write(&file, "").unwrap();
    ask(&client).await.unwrap();
    fs::remove_file(&file).unwrap();
    ask(&client).await.unwrap();
    let borne: Vec<_> = server.seen().into_iter().filter_map(|seen| seen.authorization).collect();
    assert_eq!(borne, ["Bearer first", "Bearer second", "Bearer second", "Bearer second"]);
    assert_eq!(server.accepted(), 1);
    let kubeconfig = server.kubeconfig("", &user);
    let error = client_with(&kubeconfig, KEEP_ALIVE).await.map(drop).unwrap_err();
    assert!(error_chain(&error).contains("failed to read token file"), "{error:?}");
}

#[tokio::test]
async fn a_token_in_the_kubeconfig_is_used() {
    let server = Server::start(Kind::default()).await;
    let user = format!("token: inline, tokenFile: '{}'", server.path("none").display());
    ask(&client_of(&server.kubeconfig("", &user)).await).await.unwrap();
    assert_eq!(server.seen()[0].authorization.as_deref(), Some("Bearer inline"));
}

#[tokio::test]
async fn a_proxy_is_gone_through() {
    let server = Server::start(Kind::default()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let target = head.split(' ').nth(1).unwrap();
        let mut server = TcpStream::connect(target).await.unwrap();
        client.write_all(b"HTTP/1.1 200 Go\r\n\r\n").await.unwrap();
        let answered = timeout(DEADLINE, copy_bidirectional(&mut client, &mut server));
        // However the two end.
        let _ = answered.await.unwrap();
        head
    });
    let kubeconfig = server.kubeconfig(&format!(", proxy-url: 'http://me:secret@{proxy}'"), "");
    {
        let client = client_of(&kubeconfig).await;
        assert_eq!(ask(&client).await.unwrap(), "HTTP/2.0");
    }
    drop(server);
    let head = tasks.join_next().await.unwrap().unwrap();
    assert!(head.starts_with("CONNECT 127.0.0.1:"), "{head}");
    // "me:secret" in base64.
    assert!(head.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{head}");
}
