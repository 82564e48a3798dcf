//! An API server that is nothing but its connections: TLS on loopback, and for each request an answer that says by
//! which version of HTTP it came.

use std::{
    convert::Infallible,
    fs,
    future::pending,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper::{
    Request, Response,
    body::Incoming,
    header::AUTHORIZATION,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
    server::TlsStream,
};

/// What happens to the connections that stand. Later ones are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing more comes of them, and they stay open.
    FallSilent,
    /// They end as those of an API server that is shut down: GOAWAY.
    GoAway,
}

/// What the server has seen of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) server_name: Option<String>,
    pub(super) authorization: Option<String>,
}

/// What a server is like.
pub(super) struct Kind {
    /// The name in its certificate.
    pub(super) name: &'static str,
    /// What it knows, by ALPN; nothing if it does not know ALPN.
    pub(super) protocols: &'static [&'static str],
    /// How long it lets a connection wait for TLS.
    pub(super) pause: Duration,
}

impl Default for Kind {
    fn default() -> Self {
        Self { name: "127.0.0.1", protocols: &["h2", "http/1.1"], pause: Duration::ZERO }
    }
}

/// The server. Its connections end with it.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    orders: watch::Sender<Option<Order>>,
    shared: Arc<Shared>,
    directory: TempDir,
    _tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    accepted: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
}

impl Server {
    pub(super) async fn start(kind: Kind) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = authority("right");
        fs::write(directory.path().join("ca.pem"), authority.pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new([kind.name.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &authority).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut tls = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap();
        tls.alpn_protocols = kind.protocols.iter().map(|name| name.as_bytes().to_vec()).collect();

        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (orders, shared) = (watch::Sender::new(None), Arc::<Shared>::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(
            listener,
            (TlsAcceptor::from(Arc::new(tls)), kind.pause),
            orders.subscribe(),
            Arc::clone(&shared),
        ));
        Self { address, orders, shared, directory, _tasks: tasks }
    }

    pub(super) fn order(&self, order: Order) {
        self.orders.send_replace(Some(order));
    }

    /// How many connections have come.
    pub(super) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// A file beside the kubeconfig.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A kubeconfig with more about the server and about who asks, as fields of YAML's flow style.
    pub(super) fn kubeconfig(&self, cluster: &str, user: &str) -> PathBuf {
        let path = self.path("kubeconfig");
        let (authority, address) = (self.path("ca.pem"), self.address);
        let authority = authority.display();
        let text = format!(
            "current-context: a\ncontexts:\n- {{name: a, context: {{cluster: c, user: u}}}}\nclusters:\n- name: c\n  \
             cluster: {{server: 'https://{address}', certificate-authority: '{authority}'{cluster}}}\n\
             users:\n- {{name: u, user: {{{user}}}}}\n"
        );
        fs::write(&path, text).unwrap();
        path
    }

    /// From now on the kubeconfig names another authority, which has nothing to do with this server.
    pub(super) fn forget_authority(&self) {
        fs::write(self.path("ca.pem"), authority("other").pem()).unwrap();
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, name);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap()
}

async fn accept(
    listener: TcpListener,
    (tls, pause): (TlsAcceptor, Duration),
    orders: watch::Receiver<Option<Order>>,
    shared: Arc<Shared>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        let mut orders = orders.clone();
        orders.mark_unchanged();
        connections.spawn(async move {
            sleep(pause).await;
            // A client that does not like the certificate goes away.
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, orders, shared).await;
            }
        });
    }
}

async fn serve(
    stream: TlsStream<TcpStream>,
    mut orders: watch::Receiver<Option<Order>>,
    shared: Arc<Shared>,
) {
    let (_, session) = stream.get_ref();
    let is_http2 = session.alpn_protocol() == Some(&b"h2"[..]);
    let server_name = session.server_name().map(str::to_owned);
    let service = service_fn(move |request: Request<Incoming>| {
        let authorization = request.headers().get(AUTHORIZATION);
        let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
        let seen = Seen { server_name: server_name.clone(), authorization };
        shared.seen.lock().unwrap().push(seen);
        let answer = Response::new(format!("{:?}", request.version()));
        async move { Ok::<_, Infallible>(answer) }
    });
    let stream = TokioIo::new(stream);
    if !is_http2 {
        return drop(http1::Builder::new().serve_connection(stream, service).await);
    }
    let connection = http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service);
    let mut connection = pin!(connection);
    loop {
        tokio::select! {
            _ = &mut connection => return,
            changed = orders.changed() => {
                let order = *orders.borrow_and_update();
                match order {
                    Some(Order::GoAway) if changed.is_ok() => {
                        connection.as_mut().graceful_shutdown();
                    }
                    _ => return pending().await,
                }
            }
        }
    }
}
