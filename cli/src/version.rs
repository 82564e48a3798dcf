use serde::Serialize;
use twill_rpc::message::{PROTOCOL_VERSION, Welcome};

/// What runs here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Version {
    client: &'static str,
    protocol: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    daemon: Option<Welcome>,
}

impl Version {
    pub(crate) fn new(daemon: Option<Welcome>) -> Self {
        Self { client: env!("CARGO_PKG_VERSION"), protocol: PROTOCOL_VERSION, daemon }
    }

    pub(crate) fn text(&self) -> String {
        let client = format!("Client Version:  {} (protocol {})\n", self.client, self.protocol);
        let daemon = self.daemon.as_ref().map(|welcome| {
            let Welcome { daemon, protocol, node } = welcome;
            format!("Daemon Version:  {daemon} (protocol {protocol}) on {node}\n")
        });
        client + &daemon.unwrap_or_default()
    }
}
