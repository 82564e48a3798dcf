use std::{
    io::{Read, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use twill_types::error_chain;

use super::*;

/// A client of whatever listens on this port of the loopback.
pub(super) fn client(port: u16) -> (tempfile::TempDir, ApiServer) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{server: \"http://127.0.0.1:{port}\"}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u, namespace: own}}}}]\n\
         users: [{{name: u, user: {{}}}}]\ncurrent-context: c\n"
    );
    std::fs::write(&file, text).unwrap();
    let cluster = Cluster { kubeconfig: Some(file), ..Cluster::default() };
    (dir, ApiServer::open(&cluster).unwrap())
}

#[test]
fn a_server_that_says_nothing_is_not_waited_for_for_ever() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (_dir, mut server) = client(listener.local_addr().unwrap().port());
    server.deadline = Duration::from_millis(50);
    // The kernel takes the connection, and nobody reads of it.
    let error = server.list(Kind::IpPool, &[]).unwrap_err();
    assert!(matches!(error, ResourceError::Late { verb: "list", .. }), "{error:?}");
    drop(listener);
    server.deadline = DEADLINE;
    let error = server.list(Kind::IpPool, &[]).unwrap_err();
    assert!(matches!(error, ResourceError::Unreachable { .. }), "{error:?}");
    assert!(error_chain(&error).to_lowercase().contains("connection refused"), "{error:?}");
}

#[test]
fn an_answer_that_is_no_object_is_told() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let (_dir, server) = client(listener.local_addr().unwrap().port());
    let answer = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = vec![0; 4096];
        let length = stream.read(&mut request).unwrap();
        let body = "<html>a proxy</html>";
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    let error = server.list(Kind::Secret, &[]).unwrap_err();
    let request = answer.join().unwrap();
    // The namespace is the context's.
    assert!(request.starts_with("GET /api/v1/namespaces/own/secrets?"), "{request}");
    assert!(matches!(error, ResourceError::Unreadable { .. }), "{error:?}");
    assert!(error_chain(&error).starts_with("cannot read secrets in namespace own"), "{error:?}");
}

/// What has come of a request, up to the empty line.
fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        stream.read_exact(&mut octet).unwrap();
        head.extend(octet);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn the_proxy_of_the_context_is_gone_through() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    // Nobody answers at the one, and nobody is there to be found at the other (RFC 5737).
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n\
         - {{name: a, cluster: {{server: \"http://192.0.2.1:6443\", proxy-url: \"http://192.0.2.2:1\"}}}}\n\
         - {{name: b, cluster: {{server: \"http://192.0.2.1:6443\", proxy-url: \"http://me:secret@{}\"}}}}\n\
         contexts: [{{name: a, context: {{cluster: a, user: u}}}}, {{name: b, context: {{cluster: b, user: u}}}}]\n\
         users: [{{name: u, user: {{}}}}]\ncurrent-context: a\n",
        listener.local_addr().unwrap()
    );
    std::fs::write(&file, text).unwrap();
    let proxy = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let connect = head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 Go\r\n\r\n").unwrap();
        let request = head(&mut stream);
        let body = r#"{"kind": "List", "apiVersion": "v1", "metadata": {}, "items": []}"#;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).unwrap();
        (connect, request)
    });
    let context = Some("b".to_owned());
    let cluster = Cluster { kubeconfig: Some(file), context, ..Cluster::default() };
    let server = ApiServer::open(&cluster).unwrap();
    let listing = server.list(Kind::IpPool, &[]).unwrap();
    assert!(listing.items.is_empty());
    let (connect, request) = proxy.join().unwrap();
    assert!(connect.starts_with("CONNECT 192.0.2.1:6443 "), "{connect}");
    // "me:secret" in base64.
    assert!(connect.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{connect}");
    assert!(request.starts_with("GET /apis/projectcalico.org/v3/ippools?"), "{request}");
}

#[test]
fn a_proxy_that_cannot_be_used_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    let text = "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: \"https://192.0.2.1:6443\", \
                proxy-url: \"ftp://me:secret@192.0.2.2\"}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\n\
                users: [{name: u, user: {}}]\ncurrent-context: c\n";
    std::fs::write(&file, text).unwrap();
    let cluster = Cluster { kubeconfig: Some(file), ..Cluster::default() };
    let error = error_chain(&ApiServer::open(&cluster).err().unwrap());
    assert!(
        error.starts_with(
            "cannot reach the API server by a proxy: proxy-url of the kubeconfig names no proxy"
        ) && !error.contains("secret"),
        "{error}"
    );
}

#[test]
fn no_name_leads_to_another_path() {
    // Nobody is asked.
    let (_dir, server) = client(1);
    for name in ["", "a/b", "..?x", "a#b", "%2e"] {
        let error = server.get(&Target::named(Kind::IpPool, name)).unwrap_err();
        assert!(matches!(error, ResourceError::NotFound { .. }), "{name}: {error:?}");
    }
}

#[test]
fn a_context_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    std::fs::write(&file, "apiVersion: v1\nkind: Config\n").unwrap();
    let cluster = Cluster {
        kubeconfig: Some(file.clone()),
        context: Some("nowhere".to_owned()),
        ..Cluster::default()
    };
    let error = ApiServer::open(&cluster).err().unwrap();
    let text = error_chain(&error);
    assert!(text.contains(file.to_str().unwrap()) && text.contains("nowhere"), "{text}");
}
