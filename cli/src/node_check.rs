//! `twillctl node check`.

use std::{fs, io, path::Path};

use anyhow::bail;
use serde_json::Value;
use twill_rpc::message::{HostCheck, HostOutcome, NodeChecked};

use crate::table::plain;

/// All checks, and below them in full what is to be done.
pub(crate) fn table(checked: &NodeChecked) -> String {
    let row = |check: &HostCheck| {
        let outcome = match check.outcome {
            HostOutcome::Ok => "ok",
            HostOutcome::Warning => "warning",
            HostOutcome::Failed => "FAILED",
        };
        vec![check.name.clone(), outcome.to_owned(), check.detail.clone()]
    };
    let mut text = plain(&["CHECK", "RESULT", "FOUND"], checked.checks.iter().map(row).collect());
    let remedies: Vec<&HostCheck> =
        checked.checks.iter().filter(|check| !check.remedy.is_empty()).collect();
    if !remedies.is_empty() {
        text += "\nTo do\n";
        for check in remedies {
            text += &format!("- {}: {}\n", check.name, check.remedy);
        }
    }
    text
}

/// An error if something stops pods' packets.
pub(crate) fn result(checked: &NodeChecked) -> anyhow::Result<()> {
    match checked.checks.iter().filter(|check| check.outcome == HostOutcome::Failed).count() {
        0 => Ok(()),
        1 => bail!("one check failed"),
        count => bail!("{count} checks failed"),
    }
}

/// Whether the container runtime takes Twill's network: of the files in its directory it takes the first
/// by name that it can read. Where Twill is a DaemonSet of Kubernetes (`in_pod`), other hands put it there.
pub(crate) fn runtime_configuration(directory: &Path, in_pod: bool) -> HostCheck {
    let found = networks(directory);
    let dir = directory.display();
    let install = match in_pod {
        true => "the init container `install` of daemonset/twill-node brings it: read its log (kubectl logs POD \
                 -c install), and delete this node's pod to have it run again"
            .to_owned(),
        false => format!("install conf/cni/05-twill.conflist into {dir}"),
    };
    let (outcome, detail, remedy) = match &found {
        Err(error) => (
            HostOutcome::Failed,
            format!("{dir} cannot be read, and the runtime finds no network there: {error}"),
            install,
        ),
        Ok(networks) => match networks.first() {
            Some(first) if first.is_ours => {
                (HostOutcome::Ok, format!("the runtime takes {dir}/{}", first.file), String::new())
            }
            Some(first) => (
                HostOutcome::Failed,
                format!(
                    "the runtime takes {dir}/{}, a network of the plugin {}, so new pods are not Twill's",
                    first.file, first.plugin
                ),
                match networks.iter().find(|network| network.is_ours) {
                    Some(_) if in_pod => {
                        format!(
                            "remove {dir}/{} from the node, and what brings it there",
                            first.file
                        )
                    }
                    Some(ours) => format!(
                        "remove {dir}/{}, or rename {} to sort before it",
                        first.file, ours.file
                    ),
                    None => install,
                },
            ),
            None => (HostOutcome::Failed, format!("{dir} has no network for the runtime"), install),
        },
    };
    HostCheck { name: "runtime-configuration".to_owned(), outcome, detail, remedy }
}

/// A network as the runtime sees it.
struct Network {
    file: String,
    /// The first plugin's type.
    plugin: String,
    /// Whether Twill is among its plugins, for links or for addresses.
    is_ours: bool,
}

/// The networks of a directory in the order in which a runtime prefers them.
fn networks(directory: &Path) -> io::Result<Vec<Network>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        // The names that libcni looks at.
        if [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end)) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names.into_iter().filter_map(|name| network(directory, name)).collect())
}

/// `None` for what a runtime passes over: no JSON, or no plugin.
fn network(directory: &Path, file: String) -> Option<Network> {
    let text = fs::read(directory.join(&file)).ok()?;
    let json: Value = serde_json::from_slice(&text).ok()?;
    let plugins = match json.get("plugins") {
        Some(plugins) => plugins.as_array()?.clone(),
        None => vec![json],
    };
    let kind = |plugin: &Value| plugin.get("type").and_then(Value::as_str).map(str::to_owned);
    let is_ours = plugins.iter().any(|plugin| {
        let ipam = plugin.get("ipam").and_then(kind);
        kind(plugin).as_deref() == Some("twill") || ipam.as_deref() == Some("twill-ipam")
    });
    Some(Network { plugin: plugins.first().and_then(kind)?, file, is_ours })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const OURS: &str = r#"{"name": "pods", "plugins": [{"type": "twill"}, {"type": "portmap"}]}"#;
    const OTHERS: &str = r#"{"name": "pods", "plugins": [{"type": "calico"}]}"#;
    const CHAINED: &str = r#"{"type": "macvlan", "ipam": {"type": "twill-ipam"}}"#;

    fn look(files: &[(&str, &str)]) -> (HostOutcome, String) {
        look_where(files, false)
    }

    fn look_where(files: &[(&str, &str)], in_pod: bool) -> (HostOutcome, String) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let check = runtime_configuration(dir.path(), in_pod);
        let text = format!("{} | {}", check.detail, check.remedy);
        (check.outcome, text.replace(&dir.path().display().to_string(), "DIR"))
    }

    #[test]
    fn the_first_network_by_name_counts() {
        for files in [
            &[("05-twill.conflist", OURS), ("10-calico.conflist", OTHERS)][..],
            &[("05-net.conf", CHAINED)],
            // What no runtime reads.
            &[("00-calico.conflist.bak", OTHERS), ("05-twill.conflist", OURS)],
            &[
                ("00-broken.conflist", "{"),
                ("01-empty.conflist", r#"{"plugins": []}"#),
                ("05-twill.conflist", OURS),
            ],
        ] {
            let (outcome, text) = look(files);
            assert_eq!(outcome, HostOutcome::Ok, "{files:?}: {text}");
        }
        let (outcome, text) = look(&[("05-twill.conflist", OURS), ("00-calico.conflist", OTHERS)]);
        assert_eq!(outcome, HostOutcome::Failed);
        expect![[r#"the runtime takes DIR/00-calico.conflist, a network of the plugin calico, so new pods are not Twill's | remove DIR/00-calico.conflist, or rename 05-twill.conflist to sort before it"#]]
            .assert_eq(&text);
        for files in [&[][..], &[("10-calico.conflist", OTHERS)]] {
            let (outcome, text) = look(files);
            assert_eq!(outcome, HostOutcome::Failed);
            assert!(text.contains("install conf/cni/05-twill.conflist into DIR"), "{text}");
        }
        let absent = runtime_configuration(Path::new("/nonexistent/net.d"), false);
        assert!(absent.outcome == HostOutcome::Failed && absent.detail.contains("No such file"));
    }

    /// There nobody has the repository, and the installer would write a file again that was renamed.
    #[test]
    fn in_a_pod_the_remedy_is_about_the_daemon_set() {
        let (outcome, text) = look_where(&[("05-twill.conflist", OURS)], true);
        assert_eq!(outcome, HostOutcome::Ok, "{text}");
        for files in [&[][..], &[("10-calico.conflist", OTHERS)]] {
            let (outcome, text) = look_where(files, true);
            assert_eq!(outcome, HostOutcome::Failed);
            assert!(text.contains("daemonset/twill-node") && !text.contains("conf/cni"), "{text}");
        }
        let both = [("05-twill.conflist", OURS), ("00-calico.conflist", OTHERS)];
        let (_, text) = look_where(&both, true);
        assert!(
            text.ends_with(
                "| remove DIR/00-calico.conflist from the node, and what brings it there"
            ),
            "{text}"
        );
    }

    #[test]
    fn what_failed_is_told_with_what_to_do() {
        let check = |name: &str, outcome, remedy: &str| HostCheck {
            name: name.to_owned(),
            outcome,
            detail: format!("about {name}"),
            remedy: remedy.to_owned(),
        };
        let mut checked = NodeChecked {
            checks: vec![
                check("forwarding", HostOutcome::Failed, "set it to 1"),
                check("mtu", HostOutcome::Warning, "restart them"),
                check("nexthop-objects", HostOutcome::Ok, ""),
            ],
        };
        expect![[r#"
            CHECK             RESULT    FOUND
            forwarding        FAILED    about forwarding
            mtu               warning   about mtu
            nexthop-objects   ok        about nexthop-objects

            To do
            - forwarding: set it to 1
            - mtu: restart them
        "#]]
        .assert_eq(&table(&checked));
        assert_eq!(result(&checked).unwrap_err().to_string(), "one check failed");
        // A warning is no failure.
        checked.checks.remove(0);
        result(&checked).unwrap();
    }
}
