use anyhow::{Context, bail};
use serde_json::json;
use twill_k8s_api::{
    API_VERSION, IpamConfigSpec, Kind, Loc, ObjectId, Resource,
    files::{Applied, apply_manifest, load_directory},
    load_manifests,
};

use super::{To, args::Configure};
use crate::{
    resources::{Patch, ResourceError, Target, Write},
    table::framed,
    write::said,
};

/// The name of the only one that is read.
const NAME: &str = "default";

/// What it is made of where there is none.
const NEW: &str = "apiVersion: projectcalico.org/v3\nkind: IPAMConfiguration\nmetadata:\n  name: \
                   default\nspec:\n";

/// Changes the IPAMConfiguration, or makes it.
pub(super) fn run(to: &mut To<'_>, arguments: &Configure) -> anyhow::Result<()> {
    let Some(directory) = to.resources.directory() else {
        return on_server(to, arguments);
    };
    let id = ObjectId {
        kind: Kind::IpamConfig.singular().to_owned(),
        namespace: None,
        name: NAME.to_owned(),
    };
    let old = load_directory(directory)?.resources.remove(&id);
    if let Some(Loc { text: None, file, .. }) = &old {
        bail!("IPAMConfiguration {NAME} is an item of a List in {file}; change it there by hand");
    }
    let (before, text) = match &old {
        Some(Loc { value: Resource::IpamConfig(config), text, .. }) => {
            (config.spec.clone(), text.clone().unwrap_or_default())
        }
        _ => (IpamConfigSpec::default(), NEW.to_owned()),
    };
    let after = changed(&before, arguments);
    let text = edited(&text, arguments);
    let mut loaded = load_manifests(&text, "the changed IPAMConfiguration");
    for problem in &loaded.problems {
        writeln!(to.err, "{problem}")?;
    }
    if loaded.has_errors() {
        bail!("nothing was changed, because of the error above");
    }
    let mut manifest = loaded.resources.pop().context("the changed manifest is empty")?;
    match &mut manifest.value {
        // A way of writing that the lines do not show (`spec: {..}`): written anew, without comments.
        Resource::IpamConfig(config) if config.spec != after => {
            config.spec = after.clone();
            manifest.text = None;
            let text = manifest.value.to_yaml()?;
            let again = load_manifests(&text, "the changed IPAMConfiguration");
            for problem in &again.problems {
                writeln!(to.err, "{problem}")?;
            }
            if again.has_errors() {
                bail!("nothing was changed, because of the error above");
            }
        }
        _ => {}
    }
    let done = match apply_manifest(directory, &manifest)? {
        Applied::Created(_) => "created",
        Applied::Configured(_) => "configured",
        Applied::Unchanged(_) => "unchanged",
    };
    writeln!(to.out, "{}/{NAME} {done}", manifest.value.kind_name())?;
    Ok(to.out.write_all(table(&after).as_bytes())?)
}

/// On the API server the fields are changed that are asked for, and no others.
fn on_server(to: &mut To<'_>, arguments: &Configure) -> anyhow::Result<()> {
    let target = Target::named(Kind::IpamConfig, NAME);
    let (before, is_there) = match to.resources.get(&target) {
        Ok(before) => (before, true),
        Err(ResourceError::NotFound { .. }) => {
            let kind = Kind::IpamConfig.manifest_name();
            let metadata = json!({ "name": NAME });
            let new = json!({ "apiVersion": API_VERSION, "kind": kind, "metadata": metadata });
            (new, false)
        }
        Err(error) => return Err(error.into()),
    };
    let fields = wishes(arguments).into_iter().map(|(key, value)| {
        // `true` and `7` are JSON as they stand.
        Ok((key.to_owned(), serde_json::from_str(&value)?))
    });
    let fields: serde_json::Map<_, _> = fields.collect::<Result<_, serde_json::Error>>()?;
    let patch = Patch::Merge(json!({ "spec": fields }));
    let mut loaded = to.resources.read("the changed IPAMConfiguration", &patch.apply(&before)?);
    for problem in &loaded.problems {
        writeln!(to.err, "{problem}")?;
    }
    if loaded.has_errors() {
        bail!("nothing was changed, because of the error above");
    }
    let manifest = loaded.resources.pop().context("the changed object is empty")?;
    let done = match is_there {
        true => to.resources.patch(&target, &patch, &manifest.value, Write::default())?,
        false => to.resources.create(&manifest, Write::default())?,
    };
    let done = said(&done, "configured", false);
    writeln!(to.out, "{}/{NAME} {done}", manifest.value.kind_name())?;
    match &manifest.value {
        Resource::IpamConfig(config) => Ok(to.out.write_all(table(&config.spec).as_bytes())?),
        _ => Ok(()),
    }
}

/// What is asked for, as lines of a manifest.
fn wishes(arguments: &Configure) -> Vec<(&'static str, String)> {
    let text = |value: Option<bool>| value.map(|value| value.to_string());
    let number = |value: Option<u32>| value.map(|value| value.to_string());
    [
        ("strictAffinity", text(arguments.strict_affinity)),
        ("autoAllocateBlocks", text(arguments.auto_allocate_blocks)),
        ("maxBlocksPerHost", number(arguments.max_blocks_per_host)),
        ("ipCooldownSeconds", number(arguments.ip_cooldown_seconds)),
    ]
    .into_iter()
    .filter_map(|(key, value)| Some((key, value?)))
    .collect()
}

fn changed(before: &IpamConfigSpec, arguments: &Configure) -> IpamConfigSpec {
    let before = before.clone();
    IpamConfigSpec {
        strict_affinity: arguments.strict_affinity.unwrap_or(before.strict_affinity),
        auto_allocate_blocks: arguments.auto_allocate_blocks.unwrap_or(before.auto_allocate_blocks),
        max_blocks_per_host: arguments.max_blocks_per_host.unwrap_or(before.max_blocks_per_host),
        ip_cooldown_seconds: arguments.ip_cooldown_seconds.unwrap_or(before.ip_cooldown_seconds),
        ..before
    }
}

/// The manifest with other values in its lines below `spec:`, comments included.
fn edited(text: &str, arguments: &Configure) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (key, value) in wishes(arguments) {
        let is_it = |line: &String| {
            line.starts_with(' ')
                && line.trim_start().strip_prefix(key).is_some_and(|rest| rest.starts_with(':'))
        };
        if let Some(line) = lines.iter_mut().find(|line| is_it(line)) {
            let indent = line.len() - line.trim_start().len();
            let comment = line.find(" #").map_or("", |at| &line[at..]).to_owned();
            *line = format!("{}{key}: {value}{comment}", " ".repeat(indent));
        } else if let Some(at) = lines.iter().position(|line| line.trim_end() == "spec:") {
            lines.insert(at + 1, format!("  {key}: {value}"));
        }
    }
    lines.join("\n") + "\n"
}

/// Draws a configuration as `calicoctl` does.
pub(super) fn table(config: &IpamConfigSpec) -> String {
    let limit = match config.max_blocks_per_host {
        0 => "no limit".to_owned(),
        number => number.to_string(),
    };
    let rows = [
        ("StrictAffinity", config.strict_affinity.to_string()),
        ("AutoAllocateBlocks", config.auto_allocate_blocks.to_string()),
        ("MaxBlocksPerHost", limit),
        ("IPCooldownSeconds", config.ip_cooldown_seconds.to_string()),
    ];
    let rows = rows.map(|(name, value)| vec![name.to_owned(), value]);
    framed(&["PROPERTY", "VALUE"], &["VALUE"], rows.into())
}
