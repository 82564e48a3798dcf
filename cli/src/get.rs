//! `twillctl get`.

use std::{collections::BTreeMap, io::Write};

use anyhow::bail;
use serde_json::{Value, json};
use twill_k8s_api::{
    API_VERSION, Condition, ConditionStatus, Kind, ObjectId, Severity, columns, files::Statuses,
    row,
};

use crate::{
    args::{GetArgs, Named},
    output::{GetFormat, json, yaml},
    resources::{Item, Resources},
    table::plain,
};

/// What there is of what was asked for.
struct Found<'a> {
    asked: &'a Named,
    items: Vec<Item>,
}

pub(crate) fn run(
    resources: &dyn Resources,
    arguments: &GetArgs,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> anyhow::Result<()> {
    let asked = &arguments.objects.0.0;
    let mut all = Vec::new();
    for asked in asked {
        let listing = resources.list(asked.kind, &asked.names)?;
        // What cannot be read would be missed in the list.
        let of_kind = |object: &ObjectId| object.kind == asked.kind.singular();
        for problem in listing.problems.iter().filter(|problem| {
            problem.severity == Severity::Error && problem.object.as_ref().is_none_or(of_kind)
        }) {
            writeln!(err, "{problem}")?;
        }
        all.push(Found { asked, items: listing.items });
    }
    match arguments.output {
        GetFormat::Json => json(out, &manifests(&all))?,
        GetFormat::Yaml => yaml(out, &manifests(&all))?,
        GetFormat::Name => {
            for item in all.iter().flat_map(|found| &found.items) {
                writeln!(out, "{}/{}", item.kind(), item.name())?;
            }
        }
        GetFormat::Table => tables(&all, None, out)?,
        GetFormat::Wide if all.iter().all(|found| found.items.is_empty()) => {}
        GetFormat::Wide => tables(&all, Some(&resources.statuses()?), out)?,
    }
    let missing = all.iter().filter_map(|found| missing(resources, found).transpose());
    let missing = missing.collect::<anyhow::Result<Vec<_>>>()?;
    if !missing.is_empty() {
        bail!("{}", missing.join("; "));
    }
    for Found { asked, .. } in all.iter().filter(|found| found.items.is_empty()) {
        writeln!(err, "No {} in {}.", asked.kind, resources.place())?;
    }
    Ok(())
}

/// The names that nothing has.
fn missing(resources: &dyn Resources, found: &Found<'_>) -> anyhow::Result<Option<String>> {
    let Named { kind, names } = found.asked;
    let missing: Vec<&str> = names
        .iter()
        .filter(|name| found.items.iter().all(|item| item.name() != *name))
        .map(String::as_str)
        .collect();
    if missing.is_empty() {
        return Ok(None);
    }
    let (place, there) = (resources.place(), known(resources, *kind)?);
    Ok(Some(format!("no {kind} {} in {place}{there}", missing.join(", "))))
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
fn manifests(all: &[Found<'_>]) -> Value {
    if let [Found { asked: Named { names, .. }, items }] = all
        && let ([_], [only]) = (&names[..], &items[..])
    {
        return only.manifest.clone();
    }
    let items = all.iter().flat_map(|found| &found.items).map(|item| &item.manifest);
    let items: Vec<&Value> = items.collect();
    let (version, kind) = match all {
        [Found { asked: Named { kind, .. }, .. }] if !kind.is_core() => {
            (API_VERSION, format!("{kind}List"))
        }
        [Found { asked: Named { kind, .. }, .. }] => ("v1", format!("{kind}List")),
        _ => ("v1", "List".to_owned()),
    };
    json!({ "apiVersion": version, "kind": kind, "items": items })
}

/// One table of each kind of which there is anything.
fn tables(
    all: &[Found<'_>],
    statuses: Option<&Statuses>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let all = all.iter().filter(|found| !found.items.is_empty());
    for (number, Found { asked, items }) in all.enumerate() {
        if number > 0 {
            writeln!(out)?;
        }
        table(asked.kind, items, statuses, out)?;
    }
    Ok(())
}

/// With `statuses` it is the wide table, which ends with what nodes and the controller say.
fn table(
    kind: Kind,
    found: &[Item],
    statuses: Option<&Statuses>,
    out: &mut dyn Write,
) -> std::io::Result<()> {
    let wide = statuses.is_some();
    let names = columns(kind, wide);
    let mut header = names.to_vec();
    header.extend(wide.then_some("CONDITIONS"));
    let cells = |item: &Item| {
        let mut cells = match &item.resource {
            Some(resource) => row(resource, wide),
            // What is wrong with it was told.
            None => {
                let unknown = std::iter::repeat_n("?".to_owned(), names.len().saturating_sub(1));
                std::iter::once(item.name().to_owned()).chain(unknown).collect()
            }
        };
        cells.extend(statuses.map(|statuses| {
            let name = item.name().to_owned();
            let id = ObjectId { kind: kind.singular().to_owned(), namespace: None, name };
            conditions(statuses.get(&id), &gathered(kind, item))
        }));
        cells
    };
    out.write_all(plain(&header, found.iter().map(cells).collect()).as_bytes())
}

/// What the controller has written into an object of ours. Those of Kubernetes' own kinds are others'.
fn gathered(kind: Kind, item: &Item) -> Vec<Condition> {
    let all = item.manifest["status"]["conditions"].as_array().filter(|_| !kind.is_core());
    let read = |condition: &Value| serde_json::from_value(condition.clone()).ok();
    all.into_iter().flatten().filter_map(read).collect()
}

/// More nodes than these are counted.
const NAMED: usize = 3;

/// A condition in short, and the nodes that say it.
struct Saying<'a> {
    text: String,
    condition: &'a Condition,
    nodes: Vec<&'a str>,
}

/// `Accepted=False Invalid (node1, node2), Allocatable=False Overlaps, Accepted (1000 nodes)`: bad news first, and
/// nothing of what would be bad news and is not so. What nobody is named for, the controller says.
fn conditions(said: Option<&BTreeMap<String, Vec<Condition>>>, gathered: &[Condition]) -> String {
    let mut sayings: Vec<Saying<'_>> = Vec::new();
    for (node, conditions) in said.into_iter().flatten() {
        for (condition, text) in conditions.iter().filter_map(in_short) {
            match sayings.iter_mut().find(|saying| saying.text == text) {
                Some(saying) => saying.nodes.push(node),
                None => sayings.push(Saying { text, condition, nodes: vec![node] }),
            }
        }
    }
    for condition in gathered {
        // It knows which nodes speak of the object as it was.
        sayings.retain(|Saying { condition: said, .. }| {
            said.kind != condition.kind || !said.is_bad() || condition.is_bad()
        });
        let said = sayings.iter().map(|saying| saying.condition);
        let mut same = said.filter(|c| (&c.kind, c.status) == (&condition.kind, condition.status));
        if let (Some((condition, text)), None) = (in_short(condition), same.next()) {
            sayings.push(Saying { text, condition, nodes: Vec::new() });
        }
    }
    sayings.sort_by_key(|saying| match saying.condition.status {
        _ if saying.condition.is_bad() => 0,
        ConditionStatus::Unknown => 1,
        ConditionStatus::True | ConditionStatus::False => 2,
    });
    let one = |Saying { text, nodes, .. }: &Saying<'_>| match nodes.len() {
        0 => text.clone(),
        count if count > NAMED => format!("{text} ({count} nodes)"),
        _ => format!("{text} ({})", nodes.join(", ")),
    };
    let all: Vec<String> = sayings.iter().map(one).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

/// With status and reason, unless it is good news; those that do not hold are not worth a word.
fn in_short(condition: &Condition) -> Option<(&Condition, String)> {
    let Condition { kind, reason, status, .. } = condition;
    let text = match status {
        ConditionStatus::Unknown => format!("{kind}=Unknown {reason}"),
        ConditionStatus::False if condition.is_bad() => format!("{kind}=False {reason}"),
        ConditionStatus::True if condition.is_bad() => format!("{kind}=True {reason}"),
        ConditionStatus::True => kind.clone(),
        ConditionStatus::False => return None,
    };
    Some((condition, text))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

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
    fn what_many_nodes_say_is_counted_and_what_is_bad_comes_first() {
        let holds = |kind, reason| Condition::holds(kind, reason, "");
        let fails = |kind, reason| Condition::fails(kind, reason, "");
        let mut said = BTreeMap::new();
        for number in 1..=4 {
            let mut conditions = vec![holds("Accepted", "Valid")];
            conditions.extend((number < 3).then(|| holds("Unsupported", "NotImplemented")));
            said.insert(format!("node{number}"), conditions);
        }
        let all =
            |said: &BTreeMap<_, _>, gathered: &[Condition]| super::conditions(Some(said), gathered);
        let text = "Unsupported=True NotImplemented (node1, node2), Accepted (4 nodes)";
        assert_eq!(all(&said, &[]), text);
        said.insert("node5".to_owned(), vec![fails("Accepted", "Invalid")]);
        said.insert("node6".to_owned(), vec![fails("PasswordFound", "SecretNotFound")]);
        said.retain(|node, _| node.as_str() > "node3");
        let text = "Accepted=False Invalid (node5), PasswordFound=False SecretNotFound (node6), \
                    Accepted (node4)";
        assert_eq!(all(&said, &[]), text);

        // What the controller says itself has no nodes, and what they say already is said once.
        let gathered = [
            holds("AddressPressure", "NearlyFull"),
            fails("Accepted", "Invalid"),
            holds("Allocatable", "Usable"),
            fails("Conflicted", "None"),
        ];
        let text = "Accepted=False Invalid (node5), PasswordFound=False SecretNotFound (node6), \
                    AddressPressure=True NearlyFull, Accepted (node4), Allocatable";
        assert_eq!(all(&said, &gathered), text);
        // A node that has not looked again is not counted by it.
        let text = "PasswordFound=False SecretNotFound (node6), Accepted (node4)";
        assert_eq!(all(&said, &[holds("Accepted", "Accepted")]), text);
        let nobody =
            Condition { status: ConditionStatus::Unknown, ..fails("Accepted", "NoReports") };
        assert_eq!(super::conditions(None, &[nobody]), "Accepted=Unknown NoReports");
        assert_eq!(super::conditions(None, &[]), "-");
    }

    #[test]
    fn an_object_that_is_refused_has_its_conditions() {
        let condition = json!({"type": "Accepted", "status": "False", "reason": "Invalid", "message": "",
            "lastTransitionTime": "2026-11-24T12:00:00Z"});
        let manifest = json!({"metadata": {"name": "a"}, "status": {"conditions": [condition, 7]}});
        let item = Item { resource: None, manifest };
        let show = |kind| {
            let mut out = Vec::new();
            super::table(kind, std::slice::from_ref(&item), Some(&Statuses::new()), &mut out)
                .unwrap();
            String::from_utf8(out).unwrap()
        };
        expect![[r#"
            NAME   LOGSEVERITY   MESHENABLED   ASNUMBER   CONDITIONS
            a      ?             ?             ?          Accepted=False Invalid
        "#]]
        .assert_eq(&show(Kind::BgpConfiguration));
        // Kubernetes says of a Node that MemoryPressure is False.
        assert!(show(Kind::Node).ends_with("?      -\n"), "{}", show(Kind::Node));
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
    fn names_can_be_given_back() {
        check(
            &["IPPool/old-pool", "IPPool/app-pool", "-o", "name"],
            &expect![[r#"
                IPPool/app-pool
                IPPool/old-pool
            "#]],
        );
        check(
            &["IPPool/old-pool", "BGPPeer/nopeer", "Node/n"],
            &expect![[r#"
            NAME       CIDR           SELECTOR
            old-pool   10.20.0.0/24   all()
            error: DIR/all.yaml:15: spec.peerIP: `nowhere` is not a peer's address; write 192.0.2.1, 192.0.2.1:1179, 2001:db8::1 or [2001:db8::1]:1179
            failed: no BGPPeer nopeer in DIR; there: none; no Node n in DIR; there: none
        "#]],
        );
        check(
            &["IPPool/old-pool", "BGPPeer/nopeer", "-o", "yaml"],
            &expect![[r#"
            apiVersion: v1
            items:
            - apiVersion: projectcalico.org/v3
              kind: IPPool
              metadata:
                name: old-pool
              spec:
                cidr: 10.20.0.0/24
                disabled: true
            kind: List
            error: DIR/all.yaml:15: spec.peerIP: `nowhere` is not a peer's address; write 192.0.2.1, 192.0.2.1:1179, 2001:db8::1 or [2001:db8::1]:1179
            failed: no BGPPeer nopeer in DIR; there: none
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
