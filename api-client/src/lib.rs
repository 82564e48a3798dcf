//! The connection to the API server, of daemons and of `twillctl`: one of HTTP/2 for all that a process watches and
//! asks, by a proxy where there is one. kube's own client speaks HTTP/1.1 alone, so that each of a daemon's thirteen
//! watches has a connection with a TLS session of its own, on the node and, times the number of nodes, on the API
//! server; and it knows no proxy.
//!
//! Promise: nothing is asked past a proxy that is named, and no password of one is told. What is asked, and what an
//! answer means, is the caller's.

mod proxy;
mod single_flight;
#[cfg(test)]
mod tests;
mod token;

use std::time::Duration;

use hyper::{
    Uri,
    rt::{Read, Write},
};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{
        Client as HttpClient,
        connect::{Connection, HttpConnector},
    },
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Error,
    client::{Body, ConfigExt},
    config::Config,
};
use tower::{BoxError, Service, ServiceBuilder, util::MapRequestLayer};

pub use self::proxy::{Proxy, UnusableProxy, named};
use self::{proxy::Scheme, single_flight::SingleFlight};

/// How a connection that died without a word is noticed. Without it all that goes through such a connection
/// would wait for its own deadlines.
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    /// How often the server is asked whether the connection is alive.
    pub interval: Duration,
    /// How long it may take to say so.
    pub timeout: Duration,
}

/// How long TCP may take of the time that a connection may: the kernel asks ever later for what is lost, and a new
/// connection asks at once. The rest is TLS, for which a server with much to do needs longer.
const TCP: Duration = Duration::from_secs(2);

/// A client. Where the server, or what stands before it, knows no HTTP/2, it speaks HTTP/1.1. kube's layer
/// that repeats what was answered with 429 or 503 is left out: who asks has a deadline and a back-off.
/// `config.proxy_url` is not looked at: [`Proxy::find`] is right about `NO_PROXY`.
///
/// # Errors
///
/// The configuration cannot be used: its certificates, its keys, how it authenticates, its server's name.
pub fn client(
    config: Config,
    proxy: Option<&Proxy>,
    keep_alive: KeepAlive,
) -> kube::Result<Client> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    // A request is several small writes.
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(config.connect_timeout.unwrap_or(TCP).min(TCP)));
    let Some(proxy) = proxy else { return over(tcp, config, keep_alive) };
    match proxy.scheme() {
        Scheme::Http => over(proxy.tunnel(tcp), config, keep_alive),
        Scheme::Https => {
            let tls = HttpsConnectorBuilder::new()
                .with_tls_config(config.rustls_client_config()?)
                .https_only()
                .enable_http1()
                .wrap_connector(tcp);
            over(proxy.tunnel(tls), config, keep_alive)
        }
        Scheme::Socks5 => over(proxy.socks(tcp), config, keep_alive),
    }
}

/// A client of which `connector` makes the connections that TLS goes over.
fn over<C>(connector: C, config: Config, keep_alive: KeepAlive) -> kube::Result<Client>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let mut builder = HttpsConnectorBuilder::new()
        .with_tls_config(config.rustls_client_config()?)
        .https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into();
        let name = name.map_err(|error| Error::Service(BoxError::from(error)))?;
        builder = builder.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let tls = builder.enable_all_versions().wrap_connector(connector);
    let mut connector = TimeoutConnector::new(tls);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    let http = HttpClient::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .http2_keep_alive_interval(keep_alive.interval)
        .http2_keep_alive_timeout(keep_alive.timeout)
        .build::<_, Body>(connector);
    let token = token::read(&config.auth_info)?;
    let auth = if token.is_none() { config.auth_layer()? } else { None };
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(token.map(|token| MapRequestLayer::new(move |request| token.put_on(request))))
        .option_layer(auth)
        .layer(config.extra_headers_layer()?)
        .service(SingleFlight::new(http));
    Ok(Client::new(service, config.default_namespace))
}
