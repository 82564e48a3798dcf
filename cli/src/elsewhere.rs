//! What to do where a command is for a daemon, and the daemon is on another machine.

use std::{borrow::Cow, net::SocketAddr, path::Path};

use twill_rpc::ClientError;
use twill_types::Family;

use crate::{
    args::{BgpCommand, Cli, Command, NodeCommand, Peer},
    config::{Datastore, Settings},
};

/// The error as it is, but for a daemon that does not run: in a cluster it is a node's, in a pod.
pub(crate) fn explained(cli: &Cli, settings: &Settings, error: anyhow::Error) -> anyhow::Error {
    let of_cluster = cli.is_plugin || matches!(settings.datastore, Datastore::Kubernetes(_));
    match error.downcast_ref() {
        Some(ClientError::NotRunning { path, .. }) if of_cluster => {
            anyhow::Error::msg(remedy(path, cli, settings.has_daemon))
        }
        _ => error,
    }
}

/// The pod is found by the node's name, which is not known here: any node may be meant.
fn remedy(socket: &Path, cli: &Cli, has_daemon: bool) -> String {
    let service = match has_daemon {
        true => "; where it is a service of this machine: systemctl start twilld",
        false => "",
    };
    let (words, input) = words(&cli.command);
    let (stdin, input) = match input {
        Some(file) => (" -i", format!(" < {}", quoted(&file.to_string_lossy()))),
        None => ("", String::new()),
    };
    let cluster = cluster(cli);
    format!(
        "no twilld runs on this machine (nobody listens on {}), and `{words}` asks the one of the machine that it is \
         called on. For node NODE (and with the namespace that Twill is in, if that is not twill-system): \
         kubectl{cluster} exec{stdin} -n twill-system $(kubectl{cluster} get pods -n twill-system -l \
         app.kubernetes.io/name=twill-node --field-selector spec.nodeName=NODE -o name) -c twilld -- \
         /usr/bin/twillctl {words}{input}{service}",
        socket.display()
    )
}

/// The options by which kubectl finds the cluster that the command is about.
fn cluster(cli: &Cli) -> String {
    let kubeconfig = cli.kubeconfig.as_ref().map(|file| file.to_string_lossy());
    let options = [("--context", cli.context.as_deref()), ("--kubeconfig", kubeconfig.as_deref())];
    let said = options.into_iter().filter_map(|(name, value)| Some((name, value?)));
    said.map(|(name, value)| format!(" {name} {}", quoted(value))).collect()
}

/// What the command is about, without the options that say how it prints; and what it is to read.
fn words(command: &Command) -> (String, Option<&Path>) {
    let words = match command {
        Command::Node(NodeCommand::Status { .. }) => "node status".to_owned(),
        Command::Node(NodeCommand::Check { .. }) => "node check".to_owned(),
        Command::Bgp(BgpCommand::Peers { .. }) => "bgp peers".to_owned(),
        Command::Bgp(BgpCommand::Routes { within: None, .. }) => "bgp routes".to_owned(),
        Command::Bgp(BgpCommand::Routes { within: Some(prefix), .. }) => {
            format!("bgp routes --within {prefix}")
        }
        Command::Bgp(BgpCommand::Explain { prefix, .. }) => format!("bgp explain {prefix}"),
        Command::Bgp(BgpCommand::Refresh { peer, family, .. }) => refresh(*peer, *family),
        Command::Ipam(command) => {
            let (words, input) = command.elsewhere();
            return (format!("ipam {words}"), input);
        }
        _ => "version".to_owned(),
    };
    (words, None)
}

fn refresh(Peer { address, port }: Peer, family: Option<Family>) -> String {
    let peer = match port {
        Some(port) => SocketAddr::new(address, port).to_string(),
        None => address.to_string(),
    };
    let family = match family {
        Some(Family::V4) => " --family ipv4",
        Some(Family::V6) => " --family ipv6",
        None => "",
    };
    format!("bgp refresh {}{family}", quoted(&peer))
}

/// A word as a shell reads it.
pub(crate) fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Machine;

    #[test]
    fn the_pod_of_a_node_is_named_where_there_is_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (socket, config, resources) = (path("s"), path("c"), path(""));
        std::fs::write(&config, "datastore: {type: kubernetes}\n").unwrap();
        let executed = |line: &[&str]| {
            let line = [line, &["--socket", &socket]].concat();
            let cli = Cli::from_arguments(line.iter().map(Into::into)).unwrap();
            // What this machine has does not count.
            let (file, directory) = (path("none").into(), path("none").into());
            let machine = Machine { file, directory, has_kubeconfig: false };
            let settings = Settings::resolve_on(&cli, machine).unwrap();
            crate::execute(&cli, &settings, &mut Vec::new(), &mut Vec::new())
                .map_err(|error| explained(&cli, &settings, error))
        };
        let said = |line: &[&str]| format!("{:#}", executed(line).unwrap_err());
        let of_user = ["--kubeconfig", "/nonexistent"];
        for line in [
            &["kubectl-twill", "node", "status"][..],
            &[&["twillctl", "node", "status"][..], &of_user].concat(),
            &["kubectl-twill", "bgp", "explain", "10.0.0.1", "--resources", &resources],
            &["kubectl-twill", "bgp", "refresh", "192.168.2.1:1790", "--context", "lab"],
        ] {
            let text = said(line);
            let words = match line[2] {
                "explain" => "bgp explain 10.0.0.1/32",
                "refresh" => "bgp refresh 192.168.2.1:1790",
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

        executed(&[&["twillctl", "version"][..], &of_user].concat()).unwrap();
    }

    #[test]
    fn the_command_is_about_the_same_cluster_session_and_address() {
        let said = |line: &[&str]| {
            let cli = Cli::from_arguments(line.iter().map(Into::into)).unwrap();
            remedy(Path::new("/s"), &cli, false)
        };
        let text =
            said(&["kubectl-twill", "bgp", "refresh", "192.168.2.1:1790", "--context", "lab"]);
        assert!(text.contains("kubectl --context lab exec -n twill-system"), "{text}");
        assert!(text.contains("$(kubectl --context lab get pods"), "{text}");
        assert!(text.contains("the namespace that Twill is in"), "{text}");
        assert!(text.ends_with("/usr/bin/twillctl bgp refresh 192.168.2.1:1790"), "{text}");

        let line =
            ["bgp", "refresh", "[fd00::1]:1790", "--family", "ipv6", "--kubeconfig", "/my/k c"];
        let text = said(&[&["twillctl"][..], &line].concat());
        assert_eq!(text.matches("kubectl --kubeconfig '/my/k c' ").count(), 2, "{text}");
        assert!(text.ends_with("bgp refresh '[fd00::1]:1790' --family ipv6"), "{text}");

        for (line, words) in [
            ("bgp routes --within 10.0.0.0/8", "bgp routes --within 10.0.0.0/8"),
            ("ipam check --fix -o json", "ipam check --fix"),
            (
                "ipam release --ip 10.0.0.1,fd00::1 --force",
                "ipam release --ip 10.0.0.1 --ip fd00::1 --force",
            ),
            (
                "ipam release --handle n/c/eth0 --sequence 7",
                "ipam release --handle n/c/eth0 --sequence 7",
            ),
            ("ipam release --from-report /r", "ipam release --from-report /dev/stdin < /r"),
        ] {
            let text =
                said(&["kubectl-twill"].into_iter().chain(line.split(' ')).collect::<Vec<_>>());
            assert!(text.ends_with(&format!("/usr/bin/twillctl {words}")), "{text}");
            assert_eq!(text.contains("kubectl exec -i -n"), line.contains("report"), "{text}");
        }
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
