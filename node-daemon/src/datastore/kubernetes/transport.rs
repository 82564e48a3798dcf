//! One connection of HTTP/2 to the API server for all that a daemon watches and asks. kube's own client speaks
//! HTTP/1.1 alone, so that each of thirteen watches has a connection with a TLS session of its own, on the
//! node and, times the number of nodes, on the API server.

use std::time::Duration;

use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Error,
    client::{Body, ConfigExt},
    config::Config,
};
use tower::{BoxError, ServiceBuilder};

/// How often the server is asked whether the connection is alive, and how long it may take to say so. Without
/// it all that goes through a connection which died without a word would wait for its own deadlines.
pub(crate) type KeepAlive = [Duration; 2];

/// A node's: there are many, and a server with much to do may be slow to answer.
pub(crate) const OF_A_NODE: KeepAlive = [Duration::from_secs(10), Duration::from_secs(5)];

/// A client. Where the server, or what stands before it, knows no HTTP/2, it speaks HTTP/1.1. kube's layer
/// that repeats what was answered with 429 or 503 is left out: who asks has a deadline and a back-off.
pub(super) fn client(config: Config, keep_alive: KeepAlive) -> kube::Result<Client> {
    if config.proxy_url.is_some() {
        // Not built in; it says so.
        return Client::try_from(config);
    }
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    let mut builder = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into();
        let name = name.map_err(|error| Error::Service(BoxError::from(error)))?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let mut connector = TimeoutConnector::new(builder.enable_all_versions().wrap_connector(http));
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    let http = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(keep_alive[0])
        .http2_keep_alive_timeout(keep_alive[1])
        .build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace))
}
