//! The API server behind a proxy.

use std::{
    fs, io,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
};

use anyhow::{Context, Result, anyhow, ensure};
use twill_tests::{kubernetes::ApiServer, wait::wait_for};

use super::{
    LONG,
    twillctl::{Ctl, scratch},
};

/// The API server, as if it were on another host (RFC 5737).
const AWAY: &str = "192.0.2.7";

/// A proxy that nobody is.
const NOBODY: &str = "http://127.0.0.1:1";

/// `HTTPS_PROXY` is gone through, and nothing is asked past it, but for a server that `NO_PROXY` has and for one on
/// the host itself.
pub(crate) fn twillctl_goes_through_the_proxy_of_its_environment(api: &ApiServer) -> Result<()> {
    const PROXY: &str = "HTTPS_PROXY";
    const GET: [&str; 2] = ["get", "ippools"];
    api.namespace().ip(&format!("addr add {AWAY}/32 dev lo"))?;
    let text = fs::read_to_string(api.kubeconfig())?;
    let (own, away) = (
        "server: \"https://127.0.0.1:6443\"",
        format!("server: \"https://{AWAY}:6443\", tls-server-name: localhost"),
    );
    ensure!(text.contains(own), "{text}");
    let kubeconfig = scratch(api, "proxy")?.join("kubeconfig");
    fs::write(&kubeconfig, text.replace(own, &away))?;
    let ctl = || Ctl::with(api.namespace(), &kubeconfig);
    ctl().run(&GET, "")?;

    let listener = api.namespace().enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let proxy = format!("http://{}", listener.local_addr()?);
    let (got, target) = thread::scope(|scope| {
        let carried = scope.spawn(|| api.namespace().enter(|| carry(&listener)));
        let got = ctl().variable(PROXY, &proxy).run(&GET, "");
        (got, carried.join())
    });
    got?;
    let target = target.map_err(|_| anyhow!("the proxy panicked"))???;
    ensure!(target == format!("{AWAY}:6443"), "{target}");

    let said = ctl().variable(PROXY, NOBODY).refused(&GET, "")?;
    ensure!(said.contains(AWAY) && said.to_lowercase().contains("connection refused"), "{said}");
    ctl().variable(PROXY, NOBODY).variable("NO_PROXY", "a.example,192.0.2.0/24").run(&GET, "")?;
    Ctl::new(api).variable(PROXY, NOBODY).run(&GET, "").map(drop)
}

/// Carries one connection by CONNECT of HTTP to where it wants to go, to its end; where that was.
fn carry(listener: &TcpListener) -> Result<String> {
    listener.set_nonblocking(true)?;
    let (mut client, _) = wait_for("a client of the proxy", LONG, || Ok(listener.accept()?))?;
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(LONG))?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        client.read_exact(&mut octet)?;
        head.extend(octet);
    }
    let head = String::from_utf8(head)?;
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next());
    let target = target.with_context(|| head.clone())?.to_owned();
    let mut server = TcpStream::connect(&target)?;
    client.write_all(b"HTTP/1.1 200 Go\r\n\r\n")?;
    let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
    thread::scope(|scope| {
        scope.spawn(move || {
            // However it ends.
            let _ = io::copy(&mut from_server, &mut to_client);
            let _ = to_client.shutdown(Shutdown::Write);
        });
        let _ = io::copy(&mut client, &mut server);
        let _ = server.shutdown(Shutdown::Write);
    });
    Ok(target)
}
