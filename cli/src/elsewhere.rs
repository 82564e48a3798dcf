//! What to do where a command is for a daemon, and the daemon is on another machine.

use std::path::Path;

use twill_rpc::ClientError;

use crate::{
    args::{BgpCommand, Cli, Command, NodeCommand, Peer},
    config::{Datastore, Settings},
    ipam::IpamCommand,
};

/// The error as it is, but for a daemon that does not run: in a cluster it is a node's, in a pod.
pub(crate) fn explained(cli: &Cli, settings: &Settings, error: anyhow::Error) -> anyhow::Error {
    let of_cluster = cli.is_plugin || matches!(settings.datastore, Datastore::Kubernetes(_));
    match error.downcast_ref() {
        Some(ClientError::NotRunning { path, .. }) if of_cluster => {
            anyhow::Error::msg(remedy(path, &words(&cli.command), settings.has_daemon))
        }
        _ => error,
    }
}

/// The pod is found by the node's name, which is not known here: any node may be meant.
fn remedy(socket: &Path, words: &str, has_daemon: bool) -> String {
    let service = match has_daemon {
        true => "; where it is a service of this machine: systemctl start twilld",
        false => "",
    };
    format!(
        "no twilld runs on this machine (nobody listens on {}), and `{words}` asks the one of the machine that it is \
         called on. For node NODE: kubectl exec -n twill-system $(kubectl get pods -n twill-system -l \
         app.kubernetes.io/name=twill-node --field-selector spec.nodeName=NODE -o name) -c twilld -- \
         /usr/bin/twillctl {words}{service}",
        socket.display()
    )
}

/// The command without its options.
fn words(command: &Command) -> String {
    let fixed = match command {
        Command::Node(NodeCommand::Status { .. }) => "node status",
        Command::Node(NodeCommand::Check { .. }) => "node check",
        Command::Bgp(BgpCommand::Peers { .. }) => "bgp peers",
        Command::Bgp(BgpCommand::Routes { .. }) => "bgp routes",
        Command::Bgp(BgpCommand::Explain { prefix, .. }) => return format!("bgp explain {prefix}"),
        Command::Bgp(BgpCommand::Refresh { peer: Peer { address, .. }, .. }) => {
            return format!("bgp refresh {address}");
        }
        Command::Ipam(IpamCommand::Release(_)) => "ipam release",
        Command::Ipam(_) => "ipam check",
        _ => "version",
    };
    fixed.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_of_a_node_is_named_where_there_is_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (socket, config, resources) = (path("s"), path("c"), path(""));
        std::fs::write(&config, "datastore: {type: kubernetes}\n").unwrap();
        let said = |line: &[&str]| {
            let line = [line, &["--socket", &socket]].concat();
            let cli = Cli::from_arguments(line.iter().map(Into::into)).unwrap();
            let error = crate::run(&cli, &mut Vec::new(), &mut Vec::new()).unwrap_err();
            format!("{error:#}")
        };
        let of_user = ["--kubeconfig", "/nonexistent"];
        for line in [
            &["kubectl-twill", "node", "status"][..],
            &[&["twillctl", "node", "status"][..], &of_user].concat(),
            &["kubectl-twill", "bgp", "explain", "10.0.0.1", "--resources", &resources],
        ] {
            let text = said(line);
            let words = match line[1] {
                "bgp" => "bgp explain 10.0.0.1/32",
                _ => "node status",
            };
            let command =
                format!("spec.nodeName=NODE -o name) -c twilld -- /usr/bin/twillctl {words}");
            assert!(text.ends_with(&command) && text.contains(&socket), "{text}");
        }
        // A node's own, as a service that uses the cluster.
        let text = said(&["twillctl", "--config", &config, "node", "check"]);
        assert!(
            text.ends_with(
                "twillctl node check; where it is a service of this machine: systemctl start twilld"
            ),
            "{text}"
        );

        let version = [&["twillctl", "version", "--socket", &socket][..], &of_user].concat();
        let cli = Cli::from_arguments(version.iter().map(Into::into)).unwrap();
        crate::run(&cli, &mut Vec::new(), &mut Vec::new()).unwrap();
    }
}
