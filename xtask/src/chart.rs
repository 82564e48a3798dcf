//! The Helm chart `conf/helm/twill`: the parts of the manifest, with values in the places where installations
//! differ. `values.yaml`, and what the chart has beside the manifest, are written by hand.

use std::path::Path;

use anyhow::{Context, ensure};

use crate::install;

const DIRECTORY: &str = "conf/helm/twill";

/// The namespace in the parts. A release has its own.
const NAMESPACE: &str = "twill-system";
/// It is made with the release, by `helm install --create-namespace`.
const NAMESPACE_PART: &str = "conf/rbac/namespace.yaml";

const MADE: &str = "{{- /* Made by `cargo xtask install` out of conf/; do not edit. */}}\n";

/// What is written in a part, and what is in its place in the chart. What is not there is a mistake.
type Changes = &'static [(&'static str, &'static str)];

/// Of daemons and controller.
const PODS: Changes = &[
    (
        "image: localhost/twill:VERSION",
        "image: \"{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}\"",
    ),
    ("imagePullPolicy: IfNotPresent", "imagePullPolicy: {{ .Values.image.pullPolicy }}"),
    (
        "      priorityClassName:",
        "      {{- with .Values.imagePullSecrets }}\n      imagePullSecrets: {{ toJson . }}\n      \
         {{- end }}\n      priorityClassName:",
    ),
    (
        "          env:\n",
        "          env:\n            {{- with .Values.apiServer }}{{ if .host }}\n            \
         - {name: KUBERNETES_SERVICE_HOST, value: {{ .host | quote }}}\n            \
         - {name: KUBERNETES_SERVICE_PORT, value: {{ .port | quote }}}\n            \
         {{- end }}{{ end }}\n",
    ),
];

const DAEMON_SET: Changes = &[
    // Whoever changes the configuration wants it to count, and here that of the network, too.
    (
        "    metadata:\n      labels:",
        "    metadata:\n      annotations: {checksum/config: \
         {{ list .Values.config .Values.cni | toJson | sha256sum | quote }}}\n      labels:",
    ),
    (
        "updateStrategy:\n    type: RollingUpdate\n    rollingUpdate: {maxUnavailable: 1}",
        "updateStrategy: {{ toJson .Values.node.updateStrategy }}",
    ),
    SELINUX,
    (
        "add: [NET_ADMIN, NET_BIND_SERVICE]",
        "add: {{ toJson (required (include \"twill.unset\" \"node.capabilities\") .Values.node.capabilities) }}",
    ),
    // It asks the API server, too.
    (
        "command: [/usr/bin/twilld, --role, install]\n",
        "command: [/usr/bin/twilld, --role, install]\n          \
         {{- with .Values.apiServer }}{{ if .host }}\n          env:\n            \
         - {name: KUBERNETES_SERVICE_HOST, value: {{ .host | quote }}}\n            \
         - {name: KUBERNETES_SERVICE_PORT, value: {{ .port | quote }}}\n          \
         {{- end }}{{ end }}\n",
    ),
    (
        "nodeSelector: {kubernetes.io/os: linux}",
        "nodeSelector: {{ toJson .Values.node.nodeSelector }}",
    ),
    ("tolerations: [{operator: Exists}]", "tolerations: {{ toJson .Values.node.tolerations }}"),
    (
        "resources:\n            requests: {cpu: 50m, memory: 64Mi}",
        "resources: {{ toJson .Values.node.resources }}",
    ),
    ("port: 9190,", "port: {{ include \"twill.port\" .Values.config.metrics.listen }},"),
    (
        "containerPort: 9190}",
        "containerPort: {{ include \"twill.port\" .Values.config.metrics.listen }}}",
    ),
    BIN_DIR,
    CONF_DIR,
];

const BIN_DIR: (&str, &str) = ("{path: /opt/cni/bin,", "{path: {{ .Values.cni.binDir | quote }},");
const CONF_DIR: (&str, &str) =
    ("{path: /etc/cni/net.d,", "{path: {{ .Values.cni.confDir | quote }},");

/// Of pods that write to the host.
const SELINUX: (&str, &str) = (
    "        seccompProfile: {type: RuntimeDefault}\n",
    "        seccompProfile: {type: RuntimeDefault}\n        \
     {{- with .Values.node.seLinuxOptions }}\n        seLinuxOptions: {{ toJson . }}\n        \
     {{- end }}\n",
);

/// It comes where the daemons were, and with their image.
const UNINSTALL: Changes = &[
    (
        concat!("image: localhost/twill:", env!("CARGO_PKG_VERSION")),
        "image: \"{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}\"",
    ),
    ("imagePullPolicy: IfNotPresent", "imagePullPolicy: {{ .Values.image.pullPolicy }}"),
    (
        "      priorityClassName:",
        "      {{- with .Values.imagePullSecrets }}\n      imagePullSecrets: {{ toJson . }}\n      \
         {{- end }}\n      priorityClassName:",
    ),
    (
        "nodeSelector: {kubernetes.io/os: linux}",
        "nodeSelector: {{ toJson .Values.node.nodeSelector }}",
    ),
    ("tolerations: [{operator: Exists}]", "tolerations: {{ toJson .Values.node.tolerations }}"),
    ("--role, uninstall", "--role, uninstall{{ if .Values.uninstallForce }}, --force{{ end }}"),
    SELINUX,
    BIN_DIR,
    CONF_DIR,
];

/// Of the network configuration: what is plain there is a value here.
const CONFLIST: Changes = &[
    (
        "[\"1.0.0\", \"1.1.0\"]",
        "[{{ range $at, $version := required (include \"twill.unset\" \"cni.versions\") .Values.cni.versions }}\
     {{ if $at }}, {{ end }}{{ $version | quote }}{{ end }}]",
    ),
    ("\"mtu\": 0,", "\"mtu\": {{ .Values.cni.mtu | int }},"),
    (
        "\"assignIPv4\": true",
        "\"assignIPv4\": {{ required (include \"twill.unset\" \"cni.assignIPv4\") .Values.cni.assignIPv4 }}",
    ),
    (
        "\"assignIPv6\": false",
        "\"assignIPv6\": {{ required (include \"twill.unset\" \"cni.assignIPv6\") .Values.cni.assignIPv6 }}",
    ),
    (
        "        }\n      ]\n",
        "        }\n        {{- range .Values.cni.chained }},\n        {{ toJson . }}\n        \
         {{- end }}\n      ]\n",
    ),
];

const CONTROLLER: Changes = &[
    (
        "    metadata:\n      labels:",
        "    metadata:\n      annotations: {checksum/config: \
         {{ toJson .Values.config | sha256sum | quote }}}\n      labels:",
    ),
    ("replicas: 1", "replicas: {{ .Values.controller.replicas }}"),
    (
        "nodeSelector: {kubernetes.io/os: linux}",
        "nodeSelector: {{ toJson .Values.controller.nodeSelector }}",
    ),
    (
        "resources:\n            requests: {cpu: 10m, memory: 32Mi}",
        "resources: {{ toJson .Values.controller.resources }}",
    ),
    ("port: 9191,", "port: {{ include \"twill.port\" .Values.config.controller.listen }},"),
    (
        "containerPort: 9191}",
        "containerPort: {{ include \"twill.port\" .Values.config.controller.listen }}}",
    ),
];

/// The files of the chart that are made, as they have to be: path and text.
pub(crate) fn files(root: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let part = |path: &str| install::read(root, path);
    let daemons = change(part(install::DAEMON_SET)?, &[PODS, DAEMON_SET])?;
    let controller = change(controller_part(&part(install::CONTROLLER)?)?, &[PODS, CONTROLLER])?;
    let uninstall = change(uninstall_part(&part(install::UNINSTALL)?), &[UNINSTALL])?;
    let made = [
        ("crds.yaml", crds(root)?),
        ("rbac.yaml", rbac(root)?),
        ("configmap.yaml", config_map(root)?),
        ("daemonset.yaml", only_if("not .Values.uninstall", &daemons)),
        (
            "controller.yaml",
            only_if("and .Values.controller.enabled (not .Values.uninstall)", &controller),
        ),
        ("uninstall.yaml", only_if(".Values.uninstall", &uninstall)),
    ];
    let mut files = vec![(format!("{DIRECTORY}/Chart.yaml"), about())];
    for (name, text) in made {
        let text = text.replace(NAMESPACE, "{{ .Release.Namespace }}");
        files.push((format!("{DIRECTORY}/templates/{name}"), format!("{MADE}{text}")));
    }
    Ok(files)
}

/// A template that writes nothing unless a condition holds.
fn only_if(condition: &str, text: &str) -> String {
    format!("{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n")
}

/// Without what the file says of kubectl.
fn uninstall_part(text: &str) -> String {
    text.split_inclusive('\n').skip_while(|line| line.starts_with('#')).collect()
}

/// `Chart.yaml`: the chart has the version of what it installs.
fn about() -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "# Made by `cargo xtask install`; do not edit.\napiVersion: v2\nname: twill\n\
         description: A CNI for routed networks, with block IPAM and BGP\ntype: application\n\
         version: {version}\nappVersion: \"{version}\"\nkubeVersion: \">=1.32.0-0\"\n"
    )
}

/// Makes the changes. Each has to change something.
fn change(mut text: String, changes: &[Changes]) -> anyhow::Result<String> {
    for (from, to) in changes.iter().copied().flatten() {
        ensure!(text.contains(from), "no part has {from:?} for the Helm chart to replace");
        text = text.replace(from, to);
    }
    Ok(text)
}

/// The controller's Deployment with its tolerations, which are several lines, as one value.
fn controller_part(text: &str) -> anyhow::Result<String> {
    const KEY: &str = "      tolerations:\n";
    let (before, rest) = text.split_once(KEY).context("the controller has no tolerations")?;
    let after = rest.split_inclusive('\n').skip_while(|line| line.starts_with("        - "));
    let value = "      tolerations: {{ toJson .Values.controller.tolerations }}\n";
    Ok([before, value].into_iter().chain(after).collect())
}

/// The definitions as templates, so that an upgrade changes them, and none that is somebody else's is taken
/// over. Objects go with their definition, so that one stays.
fn crds(root: &Path) -> anyhow::Result<String> {
    let mut text = String::from("{{- if .Values.crds.install }}\n");
    for part in install::parts(root, "conf/crds")? {
        let definition = plain(root, &part)?;
        let (before, after) = definition.split_once("metadata:\n").context("no metadata")?;
        let keep = "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n";
        install::document(&mut text, &[before, keep, after].concat());
    }
    Ok(text + "{{- end }}\n")
}

fn rbac(root: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    for part in install::parts(root, "conf/rbac")? {
        if part != NAMESPACE_PART {
            install::document(&mut text, &plain(root, &part)?);
        }
    }
    Ok(text)
}

fn config_map(root: &Path) -> anyhow::Result<String> {
    let [daemon, conflist] = install::CONFIGURATION;
    plain(root, conflist)?;
    let text = install::config_map(root)?;
    let written = install::indented(&install::read(root, daemon)?);
    ensure!(text.contains(&written), "{daemon} is not in the ConfigMap");
    let text = text.replace(&written, "    {{- toYaml .Values.config | nindent 4 }}\n");
    change(text, &[CONFLIST])
}

/// A part that Helm leaves as it is.
fn plain(root: &Path, part: &str) -> anyhow::Result<String> {
    let text = install::read(root, part)?;
    ensure!(
        !text.contains("{{"),
        "{part}: Helm takes {{{{ for a template; write it in another way"
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_changes_nothing_is_a_mistake() {
        assert_eq!(change("a: 1\n".to_owned(), &[&[("a: 1", "a: 2")]]).unwrap(), "a: 2\n");
        let error = change("a: 1\n".to_owned(), &[&[("b: 1", "b: 2")]]).unwrap_err();
        assert!(error.to_string().contains("\"b: 1\""), "{error}");
    }

    #[test]
    fn tolerations_of_several_lines_become_one_value() {
        let part =
            "      x: 1\n      tolerations:\n        - {a: 1}\n        - {b: 1}\n      y: 1\n";
        let wanted = "      x: 1\n      tolerations: {{ toJson .Values.controller.tolerations }}\n      y: 1\n";
        assert_eq!(controller_part(part).unwrap(), wanted);
    }
}
