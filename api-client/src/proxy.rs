//! A proxy before the API server: `proxy-url` of a kubeconfig, which is as good as an order, or `HTTPS_PROXY` but
//! for what `NO_PROXY` excludes. As client-go has it, in a pod as well, and never for an address of the host itself;
//! but `.NAME` excludes NAME too.
//! kube's own reading compares `NO_PROXY` with the proxy, where it should with the API server.

use std::{fmt, net::IpAddr};

use hyper::Uri;
use hyper_util::client::{
    legacy::connect::proxy::{SocksV5, Tunnel},
    proxy::matcher::{Intercept, Matcher},
};
use kube::config::Kubeconfig;

/// The port of a server that names none.
const HTTPS: u16 = 443;

/// A proxy, and who names it.
#[derive(Debug)]
pub struct Proxy {
    at: Intercept,
    scheme: Scheme,
    origin: &'static str,
}

/// How a proxy is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    /// CONNECT of HTTP.
    Http,
    /// The same over TLS.
    Https,
    Socks5,
}

/// What should name a proxy does not. Its value may hold a password, so it is not said.
#[derive(Debug, thiserror::Error)]
#[error(
    "{origin} names no proxy that can be used; write http://HOST:PORT, https://HOST:PORT or \
     socks5://HOST:PORT there"
)]
pub struct UnusableProxy {
    origin: &'static str,
}

/// What a context of a kubeconfig says, the current one if none is asked for.
pub fn named<'a>(kubeconfig: &'a Kubeconfig, context: Option<&str>) -> Option<&'a str> {
    let wanted = context.or(kubeconfig.current_context.as_deref())?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == wanted)?;
    let name = &context.context.as_ref()?.cluster;
    let cluster = kubeconfig.clusters.iter().find(|cluster| &cluster.name == name)?;
    cluster.cluster.as_ref()?.proxy_url.as_deref().filter(|url| !url.is_empty())
}

impl Proxy {
    /// The proxy to `server`, if there is one. `named` is that of the kubeconfig, `variable` asks the
    /// environment.
    ///
    /// # Errors
    ///
    /// What names one has no address in it.
    pub fn find(
        named: Option<&str>,
        server: &Uri,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, UnusableProxy> {
        if let Some(url) = named {
            return Self::new(url, "", "proxy-url of the kubeconfig", server);
        }
        if server.scheme_str() != Some("https") || is_of_this_host(server) {
            return Ok(None);
        }
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let value = variable(name).filter(|value| !value.is_empty())?;
                Some((name, value))
            })
        };
        let Some((name, url)) = first(["HTTPS_PROXY", "https_proxy"]) else { return Ok(None) };
        let excluded = first(["NO_PROXY", "no_proxy"]).map(|(_, value)| value).unwrap_or_default();
        Self::new(&url, &excluded, name, server)
    }

    fn new(
        url: &str,
        excluded: &str,
        origin: &'static str,
        server: &Uri,
    ) -> Result<Option<Self>, UnusableProxy> {
        let all = Matcher::builder().all(url).build();
        let at = all.intercept(server).ok_or(UnusableProxy { origin })?;
        let scheme = match at.uri().scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            Some("socks5" | "socks5h") => Scheme::Socks5,
            _ => return Err(UnusableProxy { origin }),
        };
        let but = match excluded_hosts(excluded, server.port_u16().unwrap_or(HTTPS)) {
            Some(hosts) => Matcher::builder().all(url).no(hosts.join(",")).build(),
            None => return Ok(None),
        };
        Ok(but.intercept(server).map(|at| Self { at, scheme, origin }))
    }

    pub(super) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Over connections to the proxy that `connector` makes.
    pub(super) fn tunnel<C>(&self, connector: C) -> Tunnel<C> {
        let tunnel = Tunnel::new(self.at.uri().clone(), connector);
        match self.at.basic_auth() {
            Some(auth) => tunnel.with_auth(auth.clone()),
            None => tunnel,
        }
    }

    /// The same by SOCKS.
    pub(super) fn socks<C>(&self, connector: C) -> SocksV5<C> {
        let socks = SocksV5::new(self.at.uri().clone(), connector);
        match self.at.raw_auth() {
            Some((user, password)) => socks.with_auth(user.to_owned(), password.to_owned()),
            None => socks,
        }
    }
}

impl fmt::Display for Proxy {
    /// Without user and password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.at.uri(), self.origin)
    }
}

/// The hosts that `NO_PROXY` excludes, as the matcher reads them; `None` if it is all. The matcher knows neither
/// ports nor `*.NAME`, which Go does, and compares `*` with names only.
fn excluded_hosts(excluded: &str, port: u16) -> Option<Vec<&str>> {
    let mut hosts = Vec::new();
    for entry in excluded.split(',').map(str::trim) {
        if entry == "*" {
            return None;
        }
        let (host, of_port) = match entry.rsplit_once(':') {
            Some((host, of_port)) if !host.contains(':') || host.ends_with(']') => {
                (host, Some(of_port))
            }
            // An address of IPv6.
            _ => (entry, None),
        };
        if of_port.is_none_or(|of_port| of_port.parse() == Ok(port)) {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let below = host.strip_prefix('*').filter(|below| below.starts_with('.'));
            hosts.push(below.unwrap_or(host));
        }
    }
    Some(hosts)
}

/// Go's rule, which is that of all other components.
fn is_of_this_host(server: &Uri) -> bool {
    let host = server.host().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The proxy, as it is told in the log.
    fn find(named: Option<&str>, server: &str, environment: &[(&str, &str)]) -> String {
        let variable = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match Proxy::find(named, &server.parse().unwrap(), variable) {
            Ok(None) => "none".to_owned(),
            Ok(Some(proxy)) => proxy.to_string(),
            Err(error) => error.to_string(),
        }
    }

    const SERVER: &str = "https://10.0.0.1:6443";

    #[test]
    fn a_proxy_is_that_of_the_kubeconfig_or_of_the_environment() {
        const NAMED: &str = "http://a:1/ (proxy-url of the kubeconfig)";
        const UPPER: &str = "http://b:2/ (HTTPS_PROXY)";
        let (named, upper) = (Some("http://a:1"), ("HTTPS_PROXY", "http://b:2"));
        for (named, server, environment, expected) in [
            (None, SERVER, &[][..], "none"),
            (named, SERVER, &[], NAMED),
            // An order: `NO_PROXY` is about the environment's.
            (named, SERVER, &[upper, ("NO_PROXY", "*")], NAMED),
            (named, "https://127.0.0.1:6443", &[], NAMED),
            (None, SERVER, &[upper], UPPER),
            (None, SERVER, &[("https_proxy", "b:2")], "http://b:2/ (https_proxy)"),
            (
                None,
                SERVER,
                &[("HTTPS_PROXY", ""), ("https_proxy", "b:2")],
                "http://b:2/ (https_proxy)",
            ),
            (None, SERVER, &[("HTTPS_PROXY", "socks5://b:2")], "socks5://b:2/ (HTTPS_PROXY)"),
            (None, SERVER, &[("HTTPS_PROXY", "http://me:secret@b:2")], UPPER),
            // The API server is compared, not the proxy.
            (None, SERVER, &[upper, ("NO_PROXY", "a.example, 10.0.0.0/8")], "none"),
            (None, SERVER, &[upper, ("no_proxy", "10.0.0.1")], "none"),
            (None, SERVER, &[upper, ("NO_PROXY", "b,192.0.2.0/24")], UPPER),
            (None, "https://api.a.example", &[upper, ("NO_PROXY", ".a.example")], "none"),
            (None, "https://[fd00::1]:6443", &[upper, ("NO_PROXY", "fd00::/8")], "none"),
            // All of them, as a name and as the address that a pod has.
            (None, "https://api.a.example", &[upper, ("NO_PROXY", "*")], "none"),
            (None, SERVER, &[upper, ("NO_PROXY", "*")], "none"),
            (None, "https://[fd00::1]:6443", &[upper, ("NO_PROXY", "b.example, *")], "none"),
            // With a port it is about that one.
            (None, SERVER, &[upper, ("NO_PROXY", "10.0.0.1:6443")], "none"),
            (None, SERVER, &[upper, ("NO_PROXY", "10.0.0.1:443")], UPPER),
            (None, "https://10.0.0.1", &[upper, ("NO_PROXY", "10.0.0.1:443")], "none"),
            (None, "https://[fd00::1]:6443", &[upper, ("NO_PROXY", "[fd00::1]:6443")], "none"),
            (None, "https://[fd00::1]:6443", &[upper, ("NO_PROXY", "[fd00::1]:443")], UPPER),
            (None, "https://[fd00::1]:6443", &[upper, ("NO_PROXY", "fd00::1")], "none"),
            (None, "https://api.a.example", &[upper, ("NO_PROXY", "a.example:443")], "none"),
            (None, "https://api.a.example", &[upper, ("NO_PROXY", "a.example:6443")], UPPER),
            // Names below a name.
            (None, "https://api.a.example", &[upper, ("NO_PROXY", "*.a.example")], "none"),
            (None, "https://api.a.example", &[upper, ("NO_PROXY", "*.a.example:443")], "none"),
            (None, "https://api.b.example", &[upper, ("NO_PROXY", "*.a.example")], UPPER),
            (None, SERVER, &[upper, ("NO_PROXY", "*.0.0.1")], UPPER),
            // Of the host itself, and without TLS.
            (None, "https://localhost:6443", &[upper], "none"),
            (None, "https://127.1.2.3:6443", &[upper], "none"),
            (None, "https://[::1]:6443", &[upper], "none"),
            (None, "http://10.0.0.1:8080", &[upper], "none"),
            // Nothing else is looked at.
            (None, SERVER, &[("ALL_PROXY", "http://b:2"), ("HTTP_PROXY", "http://b:2")], "none"),
        ] {
            assert_eq!(
                find(named, server, environment),
                expected,
                "{named:?} {server} {environment:?}"
            );
        }
    }

    #[test]
    fn what_names_no_proxy_is_refused_and_not_told() {
        for url in ["ftp://me:secret@a:1", "socks4://a:1", "/secret", "a secret"] {
            for (named, environment, origin) in [
                (Some(url), &[][..], "proxy-url of the kubeconfig"),
                (None, &[("HTTPS_PROXY", url)], "HTTPS_PROXY"),
            ] {
                let text = find(named, SERVER, environment);
                assert!(text.starts_with(&format!("{origin} names no proxy")), "{url}: {text}");
                assert!(!text.contains("secret"), "{text}");
            }
        }
    }

    #[test]
    fn the_current_context_names_the_proxy() {
        let text = "current-context: a\ncontexts:\n- {name: b, context: {cluster: d, user: u}}\n\
                    - {name: a, context: {cluster: c, user: u}}\nclusters:\n\
                    - {name: d, cluster: {server: https://d, proxy-url: 'http://wrong:1'}}\n\
                    - {name: c, cluster: {server: https://c, proxy-url: 'http://right:1'}}\n";
        let read = Kubeconfig::from_yaml(text).unwrap();
        assert_eq!(named(&read, None), Some("http://right:1"));
        assert_eq!(named(&read, Some("b")), Some("http://wrong:1"));
        assert_eq!(named(&read, Some("c")), None);
        let without = text.replace(", proxy-url: 'http://right:1'", "");
        assert_eq!(named(&Kubeconfig::from_yaml(&without).unwrap(), None), None);
    }
}
