use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use super::{super::tests::client, *};

/// An API server: what it answers to method, path with query, and body.
struct Server {
    port: u16,
    is_over: Arc<AtomicBool>,
    task: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(answer: impl Fn(&str, &str, &Value) -> Option<Value> + Send + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let task = thread::spawn(move || {
            for stream in listener.incoming() {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                serve(&stream.unwrap(), &answer);
            }
        });
        Self { port, is_over, task: Some(task) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::SeqCst);
        // The one that it waits for.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        let _ = self.task.take().map(thread::JoinHandle::join);
    }
}

/// Answers one request; without an answer it is 404.
fn serve(mut stream: &TcpStream, answer: &impl Fn(&str, &str, &Value) -> Option<Value>) {
    let mut reader = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or_default() == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let length = head.iter().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
    });
    let mut body = vec![0; length.unwrap_or_default()];
    reader.read_exact(&mut body).unwrap();
    let mut words = head[0].split(' ');
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let body = serde_json::from_slice(&body).unwrap_or_default();
    let (code, text) = match answer(method, path, &body) {
        Some(object) => ("200 OK", object.to_string()),
        None => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
                "reason": "NotFound", "message": "not found", "details": {"name": path},
            });
            ("404 Not Found", status.to_string())
        }
    };
    let answer = format!(
        "HTTP/1.1 {code}\r\nContent-Type: application/json\r\nConnection: close\r\n\
         Content-Length: {}\r\n\r\n{text}",
        text.len()
    );
    let _ = stream.write_all(answer.as_bytes());
}

fn list(items: &[Value]) -> Value {
    json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "9"}, "items": items})
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "projectcalico.org/v3", "kind": kind,
        "metadata": {"name": name, "uid": "u", "resourceVersion": "7"}, "spec": spec,
    })
}

/// The controller removes the request of the node at the same moment, and an owner that had read it before enters
/// the part after that.
#[test]
fn a_part_that_its_owner_enters_late_is_taken_back_and_what_is_gone_is_done() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let said = Arc::clone(&seen);
    let delegations = Mutex::new(json!([]));
    let part = json!({"cidr": "10.0.0.32/29", "node": "gone", "request": "0a000000-26.r"});
    let server = Server::start(move |method, path, body| {
        let path = path.split_once("/v3/").map_or(path, |(_, path)| path);
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        said.lock().unwrap().push(format!("{method} {path}"));
        let mut delegations = delegations.lock().unwrap();
        let asked = json!({"node": "gone", "owner": "n2", "block": "10.0.0.0/26"});
        let asking = json!({"node": "n3", "owner": "gone", "block": "10.0.1.0/26"});
        let of_gone = query.contains("spec.node%3Dgone") || query.contains("spec.node=gone");
        match (method, path) {
            ("GET", "blockrequests") if of_gone => {
                Some(list(&[object("BlockRequest", "0a000000-26.r", &asked)]))
            }
            ("GET", "blockrequests") => {
                Some(list(&[object("BlockRequest", "0a000100-26.r", &asking)]))
            }
            ("GET", "blockaffinities") => {
                let of_owner = json!({"node": "n2", "cidr": "10.0.0.0/26", "pool": "a",
                    "delegations": *delegations});
                let own = json!({"node": "gone", "cidr": "10.0.1.0/26", "pool": "a"});
                let own = object("BlockAffinity", "0a000100-26", &own);
                let others = object("BlockAffinity", "0a000000-26", &of_owner);
                Some(list(&if of_gone { vec![own] } else { vec![others] }))
            }
            ("GET", _) if path.contains("leases") => Some(list(&[])),
            ("PATCH", "blockaffinities/0a000000-26") => {
                *delegations = body["spec"]["delegations"].clone();
                Some(object("BlockAffinity", "0a000000-26", &json!({})))
            }
            ("PATCH", "blockrequests/0a000000-26.r") => {
                *delegations = json!([part]);
                None
            }
            _ => None,
        }
    });
    let (_dir, client) = client(server.port);
    let released = client.give_back("gone", false).unwrap();
    let seen = seen.lock().unwrap().clone();
    let parts = vec!["10.0.0.32/29".parse().unwrap()];
    // That to the node is gone as well, and not answered.
    let blocks = vec!["10.0.1.0/26".parse().unwrap()];
    let wanted = IpamNodeReleased { blocks, parts, requests: 1, ..IpamNodeReleased::default() };
    assert_eq!(released, wanted, "{seen:#?}");
    for call in [
        "PATCH blockrequests/0a000000-26.r/status",
        "PATCH blockaffinities/0a000000-26",
        "PATCH blockaffinities/0a000100-26",
        "PATCH blockrequests/0a000100-26.r/status",
    ] {
        assert!(seen.iter().any(|seen| seen == call), "{call}: {seen:#?}");
    }
    let last = seen.iter().rposition(|seen| seen == "PATCH blockaffinities/0a000000-26");
    let removed = seen.iter().position(|seen| seen == "PATCH blockrequests/0a000000-26.r");
    assert!(removed.is_some() && removed < last, "{seen:#?}");
}
