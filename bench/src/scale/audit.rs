//! The API server's audit log: what the node daemons ask of it, and nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::PathBuf,
};

use anyhow::{Context, Result};
use serde::Deserialize;
use twill_tests::kubernetes::ApiServer;

/// Which Node a token is bound to.
const NODE: &str = "authentication.kubernetes.io/node-name";

/// Two watches of one resource that a node has differ in this.
const SELECTOR: &str = "fieldSelector=";

/// A line of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Audited {
    pub(super) stage: String,
    pub(super) verb: String,
    #[serde(rename = "requestURI")]
    uri: String,
    user: User,
    #[serde(default)]
    pub(super) object_ref: ObjectRef,
    #[serde(default)]
    response_status: ResponseStatus,
}

#[derive(Debug, Deserialize)]
struct User {
    #[serde(default)]
    extra: BTreeMap<String, Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ObjectRef {
    pub(super) resource: String,
    pub(super) subresource: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseStatus {
    code: u16,
}

/// When a request is counted: a watch stands there when it begins, and once more when it is over.
pub(super) fn is_counted(line: &Audited) -> bool {
    line.stage == if line.verb == "watch" { "ResponseStarted" } else { "ResponseComplete" }
}

impl Audited {
    /// The node, and what it watches, where this is a watch that begins: one that is refused, as a server does
    /// that has too much to do, is none.
    fn watch(self) -> Option<(String, String)> {
        if self.verb != "watch" || !is_counted(&self) || self.response_status.code != 200 {
            return None;
        }
        let node = self.user.extra.get(NODE)?.first()?.clone();
        let (_, query) = self.uri.split_once('?').unwrap_or_default();
        let selector = query.split('&').find(|part| part.starts_with(SELECTOR));
        let resource = self.object_ref.resource;
        // With a mesh it is first that of the own Node, then that of all.
        let selector = selector.filter(|_| resource != "nodes").unwrap_or_default();
        Some((node, format!("{resource} {selector}")))
    }
}

/// The watches that have begun from a moment on, each of a node's once.
pub(super) struct Watches {
    path: PathBuf,
    /// The server begins another one when it is large. There is none before the first request.
    log: Option<BufReader<File>>,
    /// The last line, while it is half written.
    line: Vec<u8>,
    begun: BTreeSet<(String, String)>,
}

impl Watches {
    /// Those from now on.
    pub(super) fn from_now(api: &ApiServer) -> Result<Self> {
        let path = api.directory().join("audit.log");
        let mut watches = Self { path, log: None, line: Vec::new(), begun: BTreeSet::new() };
        watches.open()?;
        if let Some(log) = &mut watches.log {
            log.seek(SeekFrom::End(0))?;
        }
        Ok(watches)
    }

    /// How many have begun.
    pub(super) fn count(&mut self) -> Result<usize> {
        loop {
            // In this order: what the server has written before it began another one is read.
            let is_current = self.is_current()?;
            self.read()?;
            if is_current {
                return Ok(self.begun.len());
            }
            self.line.clear();
            self.open()?;
            if self.log.is_none() {
                return Ok(self.begun.len());
            }
        }
    }

    fn open(&mut self) -> Result<()> {
        self.log = match File::open(&self.path) {
            Ok(file) => Some(BufReader::new(file)),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => return Err(error).context("cannot read the audit log"),
        };
        Ok(())
    }

    fn is_current(&self) -> Result<bool> {
        let Some(log) = &self.log else { return Ok(false) };
        let inode = log.get_ref().metadata()?.ino();
        Ok(fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == inode))
    }

    fn read(&mut self) -> Result<()> {
        let Some(log) = &mut self.log else { return Ok(()) };
        while log.read_until(b'\n', &mut self.line)? > 0 && self.line.ends_with(b"\n") {
            let line = std::mem::take(&mut self.line);
            let line: Audited = serde_json::from_slice(&line)?;
            self.begun.extend(line.watch());
        }
        Ok(())
    }
}
