use std::{
    os::unix::fs::{PermissionsExt, symlink},
    process::Command,
};

use twill_types::{Block, Dedication};

use super::*;
use crate::{Condition, Loc, Resource, Severity, load_manifests};

fn pool(name: &str, cidr: &str) -> String {
    format!(
        "apiVersion: projectcalico.org/v3\nkind: IPPool # {name}\nmetadata:\n  name: {name}\nspec:\n  \
         cidr: {cidr}\n"
    )
}

fn loc(text: &str) -> Loc<Resource> {
    let loaded = load_manifests(text, "stdin");
    assert_eq!(loaded.problems, []);
    loaded.resources.into_iter().next().unwrap()
}

fn id(name: &str) -> ObjectId {
    ObjectId { kind: "ippool".into(), namespace: None, name: name.into() }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != LOCK)
        .collect();
    names.sort();
    names
}

#[test]
fn applies_keep_the_text_and_are_idempotent() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("made");
    let text = format!("---\n{}", pool("a", "10.0.0.0/16"));
    let path = dir.join("ippool.a.yaml");
    assert_eq!(apply_manifest(&dir, &loc(&text)).unwrap(), Applied::Created(path.clone()));
    assert_eq!(fs::read_to_string(&path).unwrap(), pool("a", "10.0.0.0/16"));
    assert_eq!(apply_manifest(&dir, &loc(&text)).unwrap(), Applied::Unchanged(path.clone()));
    let changed = pool("a", "10.1.0.0/16");
    assert_eq!(apply_manifest(&dir, &loc(&changed)).unwrap(), Applied::Configured(path.clone()));
    assert_eq!(fs::read_to_string(&path).unwrap(), changed);
    assert_eq!(find_manifest(&dir, &id("a")).unwrap(), Some(path.clone()));
    assert_eq!(remove_manifest(&dir, &id("a")).unwrap(), Some(path));
    assert_eq!(remove_manifest(&dir, &id("a")).unwrap(), None);
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn documents_of_a_users_file_are_replaced_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pools.yml");
    let (a, b, c) = (pool("a", "10.0.0.0/16"), pool("b", "10.1.0.0/16"), pool("c", "10.2.0.0/16"));
    let broken = "kind: [\n";
    fs::write(&file, format!("# ours\n---\n{a}...\n{b}--- # last\n{c}---\n{broken}")).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let new = pool("b", "10.9.0.0/16").replace("kind", "# changed\nkind");
    let applied = apply_manifest(dir.path(), &loc(&new)).unwrap();
    assert_eq!(applied, Applied::Configured(file.clone()));
    assert_eq!(
        fs::read_to_string(&file).unwrap(),
        format!("# ours\n---\n{a}...\n---\n{new}--- # last\n{c}---\n{broken}")
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    for name in ["a", "b"] {
        assert_eq!(remove_manifest(dir.path(), &id(name)).unwrap(), Some(file.clone()));
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("--- # last\n{c}---\n{broken}"));
    assert_eq!(names(dir.path()), ["pools.yml"]);
}

#[test]
fn a_json_file_stays_json() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.json");
    let json = loc(&pool("a", "10.0.0.0/16")).value.to_json().unwrap();
    fs::write(&file, json).unwrap();
    apply_manifest(dir.path(), &loc(&pool("a", "10.1.0.0/16"))).unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["spec"]["cidr"], "10.1.0.0/16");
}

#[test]
fn items_of_lists_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let item = loc(&pool("a", "10.0.0.0/16")).value.to_json().unwrap();
    let other = item.replace("\"a\"", "\"b\"");
    let list =
        format!("{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{item}, {other}]}}");
    fs::write(dir.path().join("list.yaml"), &list).unwrap();
    let error = apply_manifest(dir.path(), &loc(&pool("a", "10.1.0.0/16"))).unwrap_err();
    assert!(error.to_string().contains("ippool a is an item of a List in "), "{error}");
    assert_eq!(fs::read_to_string(dir.path().join("list.yaml")).unwrap(), list);
    // From a list into the directory: each item gets a file of its own.
    let dir = tempfile::tempdir().unwrap();
    for resource in load_manifests(&list, "stdin").resources {
        apply_manifest(dir.path(), &resource).unwrap();
    }
    assert_eq!(names(dir.path()), ["ippool.a.yaml", "ippool.b.yaml"]);
    assert_eq!(load_directory(dir.path()).unwrap().problems, []);
}

#[test]
fn a_taken_file_name_gets_a_second_document() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ippool.a.yaml");
    fs::write(&file, pool("z", "10.0.0.0/16").trim_end()).unwrap();
    apply_manifest(dir.path(), &loc(&pool("a", "10.1.0.0/16"))).unwrap();
    let expected = format!("{}---\n{}", pool("z", "10.0.0.0/16"), pool("a", "10.1.0.0/16"));
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
}

#[test]
fn links_stay_links() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let real = elsewhere.path().join("real.yaml");
    fs::write(&real, pool("a", "10.0.0.0/16")).unwrap();
    symlink(&real, dir.path().join("link.yaml")).unwrap();
    apply_manifest(dir.path(), &loc(&pool("a", "10.1.0.0/16"))).unwrap();
    assert_eq!(fs::read_to_string(&real).unwrap(), pool("a", "10.1.0.0/16"));
    assert!(fs::symlink_metadata(dir.path().join("link.yaml")).unwrap().is_symlink());
}

#[test]
fn a_new_file_with_a_secret_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: bgp}\nstringData: {tor: a}\n";
    apply_manifest(dir.path(), &loc(secret)).unwrap();
    apply_manifest(dir.path(), &loc(&pool("a", "10.0.0.0/16"))).unwrap();
    let mode =
        |name: &str| fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("secret.bgp.yaml"), 0o600);
    assert_eq!(mode("ippool.a.yaml"), 0o644);
    // Who has opened it to a group wanted that.
    fs::set_permissions(dir.path().join("secret.bgp.yaml"), Permissions::from_mode(0o640)).unwrap();
    apply_manifest(dir.path(), &loc(&secret.replace("tor: a", "tor: b"))).unwrap();
    assert_eq!(mode("secret.bgp.yaml"), 0o640);
}

#[test]
fn objects_of_other_kinds_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let text = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: deny\n  \
                namespace: dev\nspec:\n  podSelector: {}\n";
    let loaded = load_manifests(text, "stdin");
    apply_manifest(dir.path(), &loaded.resources[0]).unwrap();
    assert_eq!(names(dir.path()), ["networkpolicy.networking.k8s.io.dev.deny.yaml"]);
    let catalog = load_directory(dir.path()).unwrap();
    assert_eq!(catalog.problems.len(), 1);
    assert_eq!(catalog.problems[0].severity, Severity::Note);
}

#[test]
fn the_first_file_has_an_object() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("b.yaml"), pool("a", "10.1.0.0/16")).unwrap();
    fs::write(dir.path().join("a.yaml"), format!("\n{}", pool("a", "10.0.0.0/16"))).unwrap();
    fs::write(dir.path().join(".hidden.yaml"), "x: [").unwrap();
    fs::write(dir.path().join("notes.txt"), "x: [").unwrap();
    let catalog = load_directory(dir.path()).unwrap();
    let a = dir.path().join("a.yaml").display().to_string();
    assert_eq!(catalog.resources[&id("a")].file, a);
    let b = dir.path().join("b.yaml").display().to_string();
    let expected = format!(
        "error: {b}:1: metadata.name: ippool a is also in {a}:2, and that one is used; remove one \
         of them"
    );
    assert_eq!(catalog.problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
}

#[test]
fn what_is_no_text_file_is_a_problem() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("a.yaml")).unwrap();
    let pipe = dir.path().join("b.yaml");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::write(dir.path().join("c.yaml"), b"a: \xff").unwrap();
    symlink("/nowhere", dir.path().join("d.yaml")).unwrap();
    File::create(dir.path().join("e.yaml")).unwrap().set_len(LARGEST + 1).unwrap();
    let problems = load_directory(dir.path()).unwrap().problems;
    for (problem, expected) in problems.iter().zip([
        "not a regular file",
        "not a regular file",
        "not UTF-8 text (first at byte 3)",
        "cannot be read: No such file",
        "larger than 8388608 bytes",
    ]) {
        assert!(problem.to_string().contains(expected), "{problem}");
    }
    assert_eq!(problems.len(), 5);
    assert_eq!(load_directory(&dir.path().join("none")).unwrap(), Catalog::default());
}

#[test]
fn leftovers_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join(".tmp-1-0"), "half").unwrap();
    apply_manifest(dir.path(), &loc(&pool("a", "10.0.0.0/16"))).unwrap();
    assert_eq!(names(dir.path()), ["ippool.a.yaml"]);
}

#[test]
fn claims_read_back() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read_claims(dir.path()).unwrap(), Claims::default());
    let block: Block = "10.10.0.64/26".parse().unwrap();
    let claim = Claim {
        block,
        node: "node1".into(),
        pool: "app-pool".into(),
        dedication: Some(Dedication { network: "lan".into(), advertise: false }),
        delegations: Vec::new(),
        uid: "u".into(),
        created: "2026-01-01T00:00:00Z".into(),
    };
    let claims = dir.path().join(CLAIMS);
    make_directory(&claims).unwrap();
    let path = claims.join(Claim::file_name(block));
    assert!(create_file(&path, claim.to_yaml().unwrap().as_bytes()).unwrap());
    assert!(!create_file(&path, b"another").unwrap());
    assert_eq!(read_claim(dir.path(), block).unwrap().as_ref(), Some(&claim));
    fs::write(claims.join("0a0a0080-26.yaml"), claim.to_yaml().unwrap()).unwrap();
    fs::write(claims.join("0a0a00c0-26.yaml"), "").unwrap();
    fs::write(claims.join("what.yaml"), "").unwrap();
    let all = read_claims(dir.path()).unwrap();
    assert_eq!(all.claims.into_values().collect::<Vec<_>>(), [claim]);
    assert_eq!(all.problems.len(), 3, "{:#?}", all.problems);
    assert_eq!(claimed_blocks(dir.path()).unwrap().len(), 3);
    assert_eq!(names(&claims).len(), 4);
}

#[test]
fn statuses_are_written_once_and_merged() {
    let dir = tempfile::tempdir().unwrap();
    let resource = loc(&pool("a", "10.0.0.0/16")).value;
    let status = |node: &str, message: &str| Status {
        object: resource.id(),
        node: node.into(),
        conditions: vec![Condition::holds("Unsupported", "NotImplemented", message)],
    };
    assert!(write_status(dir.path(), &status("n1", "x")).unwrap());
    assert!(!write_status(dir.path(), &status("n1", "x")).unwrap());
    assert!(write_status(dir.path(), &status("n1", "y")).unwrap());
    assert!(write_status(dir.path(), &status("n2", "z")).unwrap());
    assert_eq!(names(&dir.path().join("status/n1")), ["ippool.a.json"]);
    let statuses = read_statuses(dir.path()).unwrap();
    let manifest = with_status(&resource, &statuses).unwrap();
    assert_eq!(manifest["status"]["nodes"][0]["conditions"][0]["message"], "y");
    assert_eq!(manifest["status"]["nodes"][1]["name"], "n2");
    assert!(remove_status(dir.path(), "n1", &resource.id()).unwrap());
    assert!(!remove_status(dir.path(), "n1", &resource.id()).unwrap());
    fs::write(dir.path().join("status/n2/broken.json"), "{").unwrap();
    assert_eq!(read_statuses(dir.path()).unwrap()[&resource.id()].len(), 1);
}

#[test]
fn others_cannot_open_a_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(LOCK);
    let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
    drop(DirectoryLock::acquire(dir.path()).unwrap());
    assert_eq!(mode(), 0o600);
    fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
    drop(DirectoryLock::acquire(dir.path()).unwrap());
    assert_eq!(mode(), 0o660);
}
