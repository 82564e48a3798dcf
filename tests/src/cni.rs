//! A container runtime's side of CNI: plugins are executed as libcni does it.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    path::PathBuf,
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{netns::Namespace, process::output_with_input};

/// What a plugin reported on its standard output when it failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniError {
    /// `code`.
    pub code: u64,
    /// `msg`.
    pub message: String,
    /// `details`.
    pub details: String,
}

impl fmt::Display for CniError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "code {}: {}", self.code, self.message)?;
        if !self.details.is_empty() {
            write!(f, " ({})", self.details)?;
        }
        Ok(())
    }
}

impl std::error::Error for CniError {}

/// One container's place in one network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_NETNS`; empty where the runtime no longer has it.
    pub netns: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
    /// Pairs of `CNI_ARGS`.
    pub args: Vec<(String, String)>,
}

impl Attachment {
    /// As containerd attaches a pod's sandbox: `eth0`, and the pod's name in `CNI_ARGS`.
    pub fn pod(namespace: &str, name: &str, container_id: &str, netns: &str) -> Self {
        let args = [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", namespace),
            ("K8S_POD_NAME", name),
            ("K8S_POD_INFRA_CONTAINER_ID", container_id),
            ("K8S_POD_UID", "1c7fd2a5-8c3a-4a8f-9d4e-2f8f6f0c9a11"),
        ];
        Self {
            container_id: container_id.to_owned(),
            netns: netns.to_owned(),
            ifname: "eth0".to_owned(),
            args: args.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    /// The variables that a plugin is called with.
    pub fn environment(&self, command: &str, path: &[PathBuf]) -> Vec<(String, String)> {
        let args: Vec<_> = self.args.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let dirs: Vec<_> = path.iter().map(|dir| dir.display().to_string()).collect();
        [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", self.container_id.clone()),
            ("CNI_NETNS", self.netns.clone()),
            ("CNI_IFNAME", self.ifname.clone()),
            ("CNI_ARGS", args.join(";")),
            ("CNI_PATH", dirs.join(":")),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec()
    }
}

/// One call of one plugin: its environment, and the configuration for its standard input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// The variables.
    pub environment: Vec<(String, String)>,
    /// The network configuration.
    pub netconf: Value,
}

impl Invocation {
    /// The text for standard input.
    pub fn stdin(&self) -> String {
        self.netconf.to_string()
    }
}

/// A network configuration list and where its plugins are: what a runtime has on a node.
#[derive(Debug)]
pub struct Runtime {
    conflist: Value,
    path: Vec<PathBuf>,
    /// libcni's result cache: what DEL and CHECK get as `prevResult`.
    results: Mutex<BTreeMap<(String, String), Value>>,
}

impl Runtime {
    /// For a conflist (`cniVersion`, `name`, `plugins`).
    pub fn new(conflist: Value, path: Vec<PathBuf>) -> Self {
        Self { conflist, path, results: Mutex::default() }
    }

    /// The same runtime with another network configuration; the results stay.
    pub fn set_conflist(&mut self, conflist: Value) {
        self.conflist = conflist;
    }

    /// Gives up a call after so many seconds (`timeoutSeconds` of the first plugin); answers the
    /// configuration as it was before.
    pub fn set_timeout(&mut self, seconds: u64) -> Value {
        let before = self.conflist.clone();
        self.conflist["plugins"][0]["timeoutSeconds"] = json!(seconds);
        before
    }

    /// The network configuration list.
    pub fn conflist(&self) -> &Value {
        &self.conflist
    }

    /// The version it calls plugins with: the highest of `cniVersion` and `cniVersions` that it
    /// knows, which is all of them.
    pub fn version(&self) -> &str {
        let listed = self.conflist["cniVersions"].as_array().into_iter().flatten();
        let versions = listed.chain([&self.conflist["cniVersion"]]).filter_map(Value::as_str);
        versions.max().unwrap_or("0.1.0")
    }

    /// ADD of every plugin in turn; the last result, or the failing plugin's [`CniError`].
    pub fn add(&self, host: &Namespace, attachment: &Attachment) -> Result<Value> {
        let mut result = None;
        for plugin in self.plugins()? {
            result = Some(self.call_plugin(host, "ADD", attachment, plugin, result.as_ref())?);
        }
        let result = result.context("the network configuration has no plugins")?;
        ensure!(
            result["cniVersion"] == self.version(),
            "the result is not of version {}: {result}",
            self.version()
        );
        self.cache().insert(key(attachment), result.clone());
        Ok(result)
    }

    /// DEL of every plugin in reverse order.
    pub fn del(&self, host: &Namespace, attachment: &Attachment) -> Result<()> {
        let result = self.cache().get(&key(attachment)).cloned();
        for plugin in self.plugins()?.iter().rev() {
            self.call_plugin(host, "DEL", attachment, plugin, result.as_ref())?;
        }
        self.cache().remove(&key(attachment));
        Ok(())
    }

    /// CHECK of every plugin in turn.
    pub fn check(&self, host: &Namespace, attachment: &Attachment) -> Result<()> {
        let result = self.cache().get(&key(attachment)).cloned();
        for plugin in self.plugins()? {
            self.call_plugin(host, "CHECK", attachment, plugin, result.as_ref())?;
        }
        Ok(())
    }

    /// GC of every plugin, with these attachments to be kept.
    pub fn gc(&self, host: &Namespace, valid: &[&Attachment]) -> Result<()> {
        self.plugins()?.iter().try_for_each(|plugin| {
            self.call_without_attachment(host, "GC", &with_valid(plugin, valid))
        })
    }

    /// STATUS of every plugin.
    pub fn status(&self, host: &Namespace) -> Result<()> {
        self.plugins()?
            .iter()
            .try_for_each(|plugin| self.call_without_attachment(host, "STATUS", plugin))
    }

    /// A verb that is about the network as a whole.
    fn call_without_attachment(
        &self,
        host: &Namespace,
        command: &str,
        plugin: &Value,
    ) -> Result<()> {
        let (kind, _) = self.netconf(plugin)?;
        let call = self.invocation_without_attachment(command, plugin)?;
        let output = self.execute(host, kind, &call.environment, call.stdin().as_bytes())?;
        parse(command, kind, &output).map(drop)
    }

    fn invocation_without_attachment(&self, command: &str, plugin: &Value) -> Result<Invocation> {
        let (_, netconf) = self.netconf(plugin)?;
        let path: Vec<_> = self.path.iter().map(|dir| dir.display().to_string()).collect();
        let environment = [("CNI_COMMAND", command.to_owned()), ("CNI_PATH", path.join(":"))]
            .map(|(key, value)| (key.to_owned(), value))
            .to_vec();
        Ok(Invocation { environment, netconf })
    }

    /// What the first plugin of the list is called with for a GC that keeps these attachments.
    pub fn first_gc(&self, valid: &[&Attachment]) -> Result<Invocation> {
        let plugin = self.plugins()?.first().context("the list of plugins is empty")?;
        self.invocation_without_attachment("GC", &with_valid(plugin, valid))
    }

    /// Callers that panicked have left nothing half done in it.
    fn cache(&self) -> MutexGuard<'_, BTreeMap<(String, String), Value>> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugins(&self) -> Result<&Vec<Value>> {
        self.conflist["plugins"].as_array().context("the network configuration has no plugins")
    }

    /// A plugin's program, and what it finds on standard input.
    fn netconf<'a>(&self, plugin: &'a Value) -> Result<(&'a str, Value)> {
        let mut netconf = plugin.clone();
        netconf["name"] = self.conflist["name"].clone();
        netconf["cniVersion"] = json!(self.version());
        Ok((plugin["type"].as_str().context("a plugin has no type")?, netconf))
    }

    fn call_plugin(
        &self,
        host: &Namespace,
        command: &str,
        attachment: &Attachment,
        plugin: &Value,
        result: Option<&Value>,
    ) -> Result<Value> {
        let kind = plugin["type"].as_str().context("a plugin has no type")?;
        let call = self.invocation(command, attachment, plugin, result)?;
        let output = self.execute(host, kind, &call.environment, call.stdin().as_bytes())?;
        parse(command, kind, &output)
    }

    /// What the first plugin of the list is called with; DEL and CHECK with the result of the last
    /// ADD.
    pub fn first_call(&self, command: &str, attachment: &Attachment) -> Result<Invocation> {
        let plugin = self.plugins()?.first().context("the list of plugins is empty")?;
        let result = match command {
            "ADD" => None,
            _ => self.cache().get(&key(attachment)).cloned(),
        };
        self.invocation(command, attachment, plugin, result.as_ref())
    }

    fn invocation(
        &self,
        command: &str,
        attachment: &Attachment,
        plugin: &Value,
        result: Option<&Value>,
    ) -> Result<Invocation> {
        let (_, mut netconf) = self.netconf(plugin)?;
        if let Some(result) = result {
            netconf["prevResult"] = result.clone();
        }
        Ok(Invocation { environment: attachment.environment(command, &self.path), netconf })
    }

    /// One execution with exactly this environment and input, for calls that no sane runtime
    /// would make.
    pub fn execute(
        &self,
        host: &Namespace,
        plugin: &str,
        environment: &[(String, String)],
        stdin: &[u8],
    ) -> Result<Output> {
        let mut files = self.path.iter().map(|dir| dir.join(plugin));
        let file = files
            .find(|file| file.is_file())
            .with_context(|| format!("failed to find plugin {plugin:?} in {:?}", self.path))?;
        let mut command = Command::new(file);
        command.envs(environment.iter().map(|(key, value)| (key, value)));
        host.enter(|| output_with_input(&mut command, stdin))?
    }
}

/// A plugin's configuration with the attachments that a GC keeps, in both spellings as libcni has them.
fn with_valid(plugin: &Value, valid: &[&Attachment]) -> Value {
    let listed = |a: &&Attachment| json!({"containerID": a.container_id, "ifname": a.ifname});
    let valid: Vec<Value> = valid.iter().map(listed).collect();
    let mut plugin = plugin.clone();
    plugin["cni.dev/valid-attachments"] = json!(valid);
    plugin["cni.dev/attachments"] = json!(valid);
    plugin
}

fn key(attachment: &Attachment) -> (String, String) {
    (attachment.container_id.clone(), attachment.ifname.clone())
}

/// What libcni makes of a plugin's end: a result, nothing, or a [`CniError`].
pub fn parse(command: &str, plugin: &str, output: &Output) -> Result<Value> {
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        if command == "ADD" || command == "VERSION" {
            return serde_json::from_str(&stdout)
                .with_context(|| format!("{plugin} {command} printed no JSON: {stdout}{stderr}"));
        }
        ensure!(stdout.is_empty(), "{plugin} {command} printed something: {stdout}");
        return Ok(Value::Null);
    }
    let Ok(error) = serde_json::from_str::<Value>(&stdout) else {
        bail!("{plugin} {command}: {} without an error object: {stdout}{stderr}", output.status);
    };
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    let code = error["code"].as_u64().with_context(|| format!("an error without code: {error}"))?;
    Err(CniError { code, message: text("msg"), details: text("details") }.into())
}

/// The addresses of a result.
pub fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().with_context(|| format!("no ips in {result}"))?;
    let address = |ip: &Value| {
        let text = ip["address"].as_str().and_then(|text| text.split('/').next());
        text.and_then(|text| text.parse().ok()).with_context(|| format!("no address in {ip}"))
    };
    ips.iter().map(address).collect()
}
