//! `twillctl get`.

use std::io::Write;

use anyhow::bail;
use serde_json::{Value, json};
use twill_k8s_api::{
    API_VERSION, ConditionStatus, Kind, ObjectId, Resource, Severity, columns, files::Statuses, row,
};

use crate::{
    args::GetArgs,
    output::{GetFormat, json, yaml},
    resources::{Item, Resources},
    table::plain,
};

pub(crate) fn run(
    resources: &dyn Resources,
    arguments: &GetArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let GetArgs { kind, names, output } = arguments;
    let listing = resources.list(*kind, names)?;
    // What cannot be read would be missed in the list.
    let of_kind = |object: &ObjectId| object.kind == kind.singular();
    for problem in listing.problems.iter().filter(|problem| {
        problem.severity == Severity::Error && problem.object.as_ref().is_none_or(of_kind)
    }) {
        writeln!(err, "{problem}")?;
    }
    let found: Vec<&Item> = listing.items.iter().collect();
    match output {
        GetFormat::Json => json(out, &manifests(*kind, &found, names.len() == 1))?,
        GetFormat::Yaml => yaml(out, &manifests(*kind, &found, names.len() == 1))?,
        GetFormat::Name => {
            for item in &found {
                writeln!(out, "{}/{}", item.kind(), item.name())?;
            }
        }
        GetFormat::Table | GetFormat::Wide if found.is_empty() => {}
        GetFormat::Table => table(*kind, &found, None, out)?,
        GetFormat::Wide => table(*kind, &found, Some(&resources.statuses()?), out)?,
    }

    let missing: Vec<&str> = names
        .iter()
        .filter(|name| found.iter().all(|item| item.name() != *name))
        .map(String::as_str)
        .collect();
    if !missing.is_empty() {
        bail!(
            "no {kind} {} in {}{}",
            missing.join(", "),
            resources.place(),
            known(resources, *kind)?
        );
    }
    if found.is_empty() {
        writeln!(err, "No {kind} in {}.", resources.place())?;
    }
    Ok(())
}

/// What there is instead. A cluster may have more than anybody wants to read.
fn known(resources: &dyn Resources, kind: Kind) -> anyhow::Result<String> {
    if resources.directory().is_none() {
        return Ok(String::new());
    }
    let all = resources.list(kind, &[])?.items;
    let names: Vec<&str> = all.iter().map(Item::name).collect();
    let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    Ok(format!("; there: {names}"))
}

/// One object if one was asked for, else a List.
fn manifests(kind: Kind, found: &[&Item], single: bool) -> Value {
    match found {
        [only] if single => only.manifest.clone(),
        items => {
            let items: Vec<&Value> = items.iter().map(|item| &item.manifest).collect();
            let version = if kind.is_core() { "v1" } else { API_VERSION };
            json!({ "apiVersion": version, "kind": format!("{kind}List"), "items": items })
        }
    }
}

/// With `statuses` it is the wide table, which ends with what nodes say.
fn table(
    kind: Kind,
    found: &[&Item],
    statuses: Option<&Statuses>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let wide = statuses.is_some();
    let mut header = columns(kind, wide).to_vec();
    header.extend(wide.then_some("CONDITIONS"));
    let cells = |item: &&Item| match &item.resource {
        Some(resource) => {
            let mut cells = row(resource, wide);
            cells.extend(statuses.map(|statuses| conditions(resource, statuses)));
            cells
        }
        // What is wrong with it was told.
        None => {
            let unknown = std::iter::repeat_n("?".to_owned(), header.len().saturating_sub(1));
            std::iter::once(item.name().to_owned()).chain(unknown).collect()
        }
    };
    out.write_all(plain(&header, found.iter().map(cells).collect()).as_bytes())
}

/// More nodes than these are counted.
const NAMED: usize = 3;

/// `Unsupported (node1, node2), Accepted (1000 nodes)`, of what holds.
fn conditions(resource: &Resource, statuses: &Statuses) -> String {
    let mut holding: Vec<(&str, Vec<&str>)> = Vec::new();
    for (node, conditions) in statuses.get(&resource.id()).into_iter().flatten() {
        for condition in conditions.iter().filter(|c| c.status == ConditionStatus::True) {
            match holding.iter_mut().find(|(kind, _)| *kind == condition.kind) {
                Some((_, nodes)) => nodes.push(node),
                None => holding.push((&condition.kind, vec![node])),
            }
        }
    }
    let all: Vec<String> = holding
        .iter()
        .map(|(kind, nodes)| match nodes.len() {
            count if count > NAMED => format!("{kind} ({count} nodes)"),
            _ => format!("{kind} ({})", nodes.join(", ")),
        })
        .collect();
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
    fn what_many_nodes_say_is_counted() {
        let loaded = twill_k8s_api::load_manifests(MANIFESTS, "");
        let pool = &loaded.resources[0].value;
        let holds = |kind| twill_k8s_api::Condition::holds(kind, "R", "");
        let mut statuses = super::Statuses::new();
        for number in 1..=4 {
            let mut said = vec![holds("Accepted")];
            said.extend((number < 3).then(|| holds("Unsupported")));
            statuses.entry(pool.id()).or_default().insert(format!("node{number}"), said);
        }
        let text = super::conditions(pool, &statuses);
        assert_eq!(text, "Accepted (4 nodes), Unsupported (node1, node2)");
        assert_eq!(super::conditions(pool, &super::Statuses::new()), "-");
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
