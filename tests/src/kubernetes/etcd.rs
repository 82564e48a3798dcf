//! What is asked of etcd itself, beside the API server.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::ApiServer;

/// Where it listens, in its namespace.
const CLIENTS: &str = "127.0.0.1:2379";

impl ApiServer {
    /// Makes etcd forget every state but the newest. An API server that starts after that can tell nobody what
    /// has changed since an earlier one.
    pub fn compact(&self) -> Result<()> {
        let any = json!({"key": "AA==", "range_end": "AA==", "count_only": true});
        let found = self.ask_etcd("/v3/kv/range", &any)?;
        // A number in a text, as all of 64 bits.
        let revision = found["header"]["revision"].clone();
        ensure!(revision.is_string(), "etcd says no revision: {found}");
        let compaction = json!({"revision": revision, "physical": true});
        self.ask_etcd("/v3/kv/compaction", &compaction).map(drop)
    }

    /// By etcd's gateway for JSON.
    fn ask_etcd(&self, path: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let ask = || -> Result<String> {
            let mut stream = TcpStream::connect(CLIENTS)?;
            stream.set_read_timeout(Some(Duration::from_secs(30)))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        let answer = self.namespace().enter(ask)?.context("etcd does not answer")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer of HTTP")?;
        ensure!(head.contains(" 200 "), "{path}: {answer}");
        serde_json::from_str(body).with_context(|| format!("{path}: {answer}"))
    }
}
