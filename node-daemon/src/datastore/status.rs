use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use twill_k8s_api::{
    Condition, ConditionStatus, ObjectId, Severity,
    files::{FileError, Status, read_statuses, remove_status, write_status},
};

use super::Snapshot;

/// Writes what this node makes of each object into `status/<node>/`, never into a user's file:
/// whether it is accepted, and which of its fields have no effect. `twillctl get` shows it.
/// `said` is what other tasks have to say.
pub(crate) fn report(
    directory: &Path,
    node: &str,
    snapshot: &Snapshot,
    said: BTreeMap<ObjectId, Vec<Condition>>,
) -> Result<(), FileError> {
    let mut wanted = conditions(snapshot);
    for (object, conditions) in said {
        wanted.entry(object).or_default().extend(conditions);
    }
    for (object, conditions) in &wanted {
        let status = Status {
            object: object.clone(),
            node: node.to_owned(),
            conditions: conditions.clone(),
        };
        write_status(directory, &status)?;
    }
    let known: BTreeSet<ObjectId> = read_statuses(directory)?
        .into_iter()
        .filter(|(_, nodes)| nodes.contains_key(node))
        .map(|(object, _)| object)
        .collect();
    for object in known.iter().filter(|object| !wanted.contains_key(object)) {
        remove_status(directory, node, object)?;
    }
    Ok(())
}

/// What reading has found about each object.
pub(crate) fn conditions(snapshot: &Snapshot) -> BTreeMap<ObjectId, Vec<Condition>> {
    let mut all: BTreeMap<ObjectId, Vec<Condition>> = BTreeMap::new();
    for problem in snapshot.problems() {
        if let (Some(object), Severity::Error) = (&problem.object, problem.severity) {
            all.entry(object.clone()).or_default().push(Condition {
                kind: "Accepted".to_owned(),
                status: ConditionStatus::False,
                reason: "Invalid".to_owned(),
                message: problem.to_string(),
            });
        }
    }
    for (id, found) in &snapshot.catalog.resources {
        let conditions = all.entry(id.clone()).or_default();
        if conditions.is_empty() {
            conditions.push(Condition::holds("Accepted", "Valid", ""));
        }
        for unsupported in found.value.unsupported() {
            let message = format!("{}: {}", unsupported.field, unsupported.effect);
            conditions.push(Condition::holds("Unsupported", "NotImplemented", message));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::{super::file::Files, *};

    #[test]
    fn says_what_is_wrong_and_forgets_what_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.yaml");
        let manifest = |spec: &str| {
            format!(
                "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {{name: a}}\nspec: {spec}\n"
            )
        };
        let said = |files: &mut Files| {
            let snapshot = Snapshot::new(files.reload(root.path()).unwrap());
            report(root.path(), "node1", &snapshot, BTreeMap::new()).unwrap();
            let statuses = read_statuses(root.path()).unwrap();
            let of = |nodes: &BTreeMap<String, Vec<Condition>>| nodes["node1"].clone();
            statuses.values().next().map(of).unwrap_or_default()
        };
        let mut files = Files::default();
        std::fs::write(&path, manifest("{cidr: 10.0.0.0/16}")).unwrap();
        let kinds = |conditions: Vec<Condition>| -> Vec<(String, ConditionStatus)> {
            conditions.into_iter().map(|condition| (condition.kind, condition.status)).collect()
        };
        let accepted = |status| ("Accepted".to_owned(), status);
        assert_eq!(kinds(said(&mut files)), [accepted(ConditionStatus::True)]);

        std::fs::write(&path, manifest("{cidr: 10.0.0.0/16, ipipMode: Always}")).unwrap();
        let conditions = said(&mut files);
        assert!(conditions[1].message.contains("spec.ipipMode"), "{conditions:?}");

        std::fs::write(&path, manifest("{cidr: 10.0.0.0/16, blockSize: 99}")).unwrap();
        let conditions = said(&mut files);
        assert_eq!(conditions[0].status, ConditionStatus::False);
        assert!(conditions[0].message.contains("99"), "{conditions:?}");

        std::fs::remove_file(&path).unwrap();
        assert_eq!(said(&mut files), []);
    }
}
