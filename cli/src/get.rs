//! `twillctl get`.

use std::{io::Write, path::Path};

use anyhow::bail;
use serde_json::json;
use twill_k8s_api::{
    API_VERSION, ConditionStatus, Kind, Resource, Severity, columns,
    files::{Statuses, load_directory, read_claims, read_statuses, with_status},
    row,
};

use crate::{
    args::GetArgs,
    output::{GetFormat, json, yaml},
    table::plain,
};

pub(crate) fn run(
    directory: &Path,
    arguments: &GetArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let GetArgs { kind, names, output } = arguments;
    let all = resources(directory, *kind, err)?;
    let statuses = read_statuses(directory)?;
    let wanted =
        |resource: &&Resource| names.is_empty() || names.iter().any(|name| name == resource.name());
    let found: Vec<&Resource> = all.iter().filter(wanted).collect();
    print(*kind, &found, &statuses, *output, names.len() == 1, out)?;

    let missing: Vec<&str> = names
        .iter()
        .filter(|name| found.iter().all(|resource| resource.name() != *name))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        let known: Vec<&str> = all.iter().map(Resource::name).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        bail!("no {kind} {} in {}; there: {known}", missing.join(", "), directory.display());
    }
    if found.is_empty() {
        writeln!(err, "No {kind} in {}.", directory.display())?;
    }
    Ok(())
}

/// All resources of a kind. What cannot be read is told, since it would be missed in the list.
fn resources(directory: &Path, kind: Kind, err: &mut dyn Write) -> anyhow::Result<Vec<Resource>> {
    let (all, problems) = if kind == Kind::BlockAffinity {
        let claims = read_claims(directory)?;
        let all = claims.claims.values().map(|c| Resource::BlockAffinity(c.to_manifest()));
        (all.collect(), claims.problems)
    } else {
        let catalog = load_directory(directory)?;
        let all = catalog.resources.into_values().map(|resource| resource.value);
        (all.filter(|resource| resource.kind() == Some(kind)).collect(), catalog.problems)
    };
    let of_kind = |object: &twill_k8s_api::ObjectId| object.kind == kind.singular();
    for problem in problems.iter().filter(|problem| {
        problem.severity == Severity::Error && problem.object.as_ref().is_none_or(of_kind)
    }) {
        writeln!(err, "{problem}")?;
    }
    Ok(all)
}

fn print(
    kind: Kind,
    found: &[&Resource],
    statuses: &Statuses,
    format: GetFormat,
    single: bool,
    out: &mut dyn Write,
) -> anyhow::Result<()> {
    let manifests = || {
        let mut items =
            found.iter().map(|r| with_status(r, statuses)).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, serde_json::Error>(match items.pop() {
            Some(only) if single && items.is_empty() => only,
            last => {
                items.extend(last);
                let version = if kind.is_core() { "v1" } else { API_VERSION };
                json!({ "apiVersion": version, "kind": format!("{kind}List"), "items": items })
            }
        })
    };
    match format {
        GetFormat::Json => json(out, &manifests()?)?,
        GetFormat::Yaml => yaml(out, &manifests()?)?,
        GetFormat::Name => {
            for resource in found {
                writeln!(out, "{}/{}", resource.kind_name(), resource.name())?;
            }
        }
        GetFormat::Table | GetFormat::Wide if found.is_empty() => {}
        GetFormat::Table => table(kind, found, None, out)?,
        GetFormat::Wide => table(kind, found, Some(statuses), out)?,
    }
    Ok(())
}

/// With `statuses` it is the wide table, which ends with what nodes say.
fn table(
    kind: Kind,
    found: &[&Resource],
    statuses: Option<&Statuses>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let wide = statuses.is_some();
    let mut header = columns(kind, wide).to_vec();
    header.extend(wide.then_some("CONDITIONS"));
    let cells = |resource: &&Resource| {
        let mut cells = row(resource, wide);
        cells.extend(statuses.map(|statuses| conditions(resource, statuses)));
        cells
    };
    out.write_all(plain(&header, found.iter().map(cells).collect()).as_bytes())
}

/// `Unsupported (node1)`, of what holds.
fn conditions(resource: &Resource, statuses: &Statuses) -> String {
    let nodes = statuses.get(&resource.id()).into_iter().flatten();
    let holding = nodes.flat_map(|(node, conditions)| {
        conditions
            .iter()
            .filter(|condition| condition.status == ConditionStatus::True)
            .map(move |condition| format!("{} ({node})", condition.kind))
    });
    let all: Vec<String> = holding.collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    const MANIFESTS: &str = r#"
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: app-pool}
spec: {cidr: 10.10.0.0/20, blockSize: 26, nodeSelector: env == "prod"}
---
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: old-pool}
spec: {cidr: 10.20.0.0/24, disabled: true}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: broken}
spec: {peerIP: nowhere, asNumber: 64513}
"#;

    fn check(arguments: &[&str], expected: &Expect) {
        use clap::Parser;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("all.yaml"), MANIFESTS).unwrap();
        let directory = dir.path().to_str().unwrap();
        let arguments = [&["twillctl", "--resources", directory, "get"], arguments].concat();
        let cli = crate::Cli::try_parse_from(arguments).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let result = crate::run(&cli, &mut out, &mut err);
        let mut text = String::from_utf8([out, err].concat()).unwrap();
        if let Err(error) = result {
            text += &format!("failed: {error:#}\n");
        }
        expected.assert_eq(&text.replace(directory, "DIR"));
    }

    #[test]
    fn tables() {
        check(
            &["ippools"],
            &expect![[r#"
            NAME       CIDR           SELECTOR
            app-pool   10.10.0.0/20   env == "prod"
            old-pool   10.20.0.0/24   all()
        "#]],
        );
        check(
            &["pool", "old-pool", "-o", "wide"],
            &expect![[r#"
            NAME       CIDR           NAT     IPIPMODE   VXLANMODE   DISABLED   DISABLEBGPEXPORT   SELECTOR   ASSIGNMENTMODE   CONDITIONS
            old-pool   10.20.0.0/24   false   Never      Never       true       false              all()      Automatic        -
        "#]],
        );
        check(
            &["ippool", "-o", "name"],
            &expect![[r#"
            IPPool/app-pool
            IPPool/old-pool
        "#]],
        );
    }

    #[test]
    fn manifests() {
        check(
            &["ippool", "app-pool", "-o", "yaml"],
            &expect![[r#"
            apiVersion: projectcalico.org/v3
            kind: IPPool
            metadata:
              name: app-pool
            spec:
              blockSize: 26
              cidr: 10.10.0.0/20
              nodeSelector: env == "prod"
        "#]],
        );
        check(
            &["ippool", "-o", "json"],
            &expect![[r#"
            {
              "apiVersion": "projectcalico.org/v3",
              "items": [
                {
                  "apiVersion": "projectcalico.org/v3",
                  "kind": "IPPool",
                  "metadata": {
                    "name": "app-pool"
                  },
                  "spec": {
                    "blockSize": 26,
                    "cidr": "10.10.0.0/20",
                    "nodeSelector": "env == \"prod\""
                  }
                },
                {
                  "apiVersion": "projectcalico.org/v3",
                  "kind": "IPPool",
                  "metadata": {
                    "name": "old-pool"
                  },
                  "spec": {
                    "cidr": "10.20.0.0/24",
                    "disabled": true
                  }
                }
              ],
              "kind": "IPPoolList"
            }
        "#]],
        );
    }

    #[test]
    fn what_is_missing_or_broken_is_told() {
        check(
            &["ippool", "app-pool", "nopool"],
            &expect![[r#"
            NAME       CIDR           SELECTOR
            app-pool   10.10.0.0/20   env == "prod"
            failed: no IPPool nopool in DIR; there: app-pool, old-pool
        "#]],
        );
        check(
            &["bgppeer"],
            &expect![[r#"
            error: DIR/all.yaml:15: spec.peerIP: `nowhere` is not a peer's address; write 192.0.2.1, 192.0.2.1:1179, 2001:db8::1 or [2001:db8::1]:1179
            No BGPPeer in DIR.
        "#]],
        );
        check(
            &["node"],
            &expect![[r#"
            No Node in DIR.
        "#]],
        );
    }
}
