use clap::Parser;
use expect_test::{Expect, expect};

const MANIFESTS: &str = "\
# why it is there
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: app-pool, labels: {a: b}}
spec: {cidr: 10.10.0.0/20, blockSize: 26}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
spec: {blocks: [10.10.0.64/26]}
";

/// Runs command lines on the same files, and shows what each prints, and the files after it.
fn check(lines: &[&[&str]], expected: &Expect) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.yaml");
    std::fs::write(&file, MANIFESTS).unwrap();
    let directory = dir.path().to_str().unwrap();
    let mut text = String::new();
    for line in lines {
        let line = [&["twillctl", "--resources", directory], *line].concat();
        let cli = crate::Cli::try_parse_from(line).unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let result = crate::run(&cli, &mut out, &mut err);
        text += &String::from_utf8([out, err].concat()).unwrap();
        if let Err(error) = result {
            text += &format!("failed: {error:#}\n");
        }
    }
    let files = std::fs::read_to_string(&file).unwrap_or_default();
    let files = if files == MANIFESTS { "(as it was)\n".to_owned() } else { files };
    expected.assert_eq(&format!("{text}===\n{files}").replace(directory, "DIR"));
}

#[test]
fn a_patch_changes_what_it_names() {
    check(
        &[
            &["patch", "ippool", "app-pool", "-p", r#"{"spec": {"disabled": true}}"#],
            &["patch", "ippool", "app-pool", "-p", "spec: {disabled: true}"],
            &[
                "patch",
                "node",
                "node1",
                "--type",
                "json",
                "-p",
                r#"[{"op": "add", "path": "/metadata/annotations", "value": {"projectcalico.org/ASNumber": "64512"}}]"#,
            ],
        ],
        &expect![[r#"
            IPPool/app-pool patched
            IPPool/app-pool unchanged
            Node/node1 patched
            ===
            apiVersion: projectcalico.org/v3
            kind: IPPool
            metadata:
              name: app-pool
              labels:
                a: b
            spec:
              cidr: 10.10.0.0/20
              blockSize: 26
              disabled: true
            ---
            apiVersion: v1
            kind: Node
            metadata:
              name: node1
              annotations:
                projectcalico.org/ASNumber: "64512"
            spec:
              blocks:
              - 10.10.0.64/26
        "#]],
    );
}

#[test]
fn what_would_be_wrong_is_not_written() {
    check(
        &[
            &["patch", "ippool", "app-pool", "-p", r#"{"spec": {"blockSize": 33}}"#],
            &["patch", "ippool", "app-pool", "-p", r#"{"metadata": {"name": "b"}}"#],
            &["patch", "ippool", "app-pool", "-p", "[1]"],
            &["patch", "ippool", "app-pool", "-p", "{"],
            &["patch", "ippool", "app-pool", "--type", "json", "-p", r#"{"spec": {}}"#],
            &[
                "patch",
                "ippool",
                "app-pool",
                "--type",
                "json",
                "-p",
                r#"[{"op": "remove", "path": "/spec/nothing"}]"#,
            ],
            &["patch", "ippool", "nopool", "-p", "{}"],
            &["patch", "ippool", "app-pool", "--dry-run", "-p", "spec: {disabled: true}"],
        ],
        &expect![[r#"
            error: IPPool/app-pool: spec.blockSize: 33: a block of an IPv4 pool is /20 to /32
            failed: nothing was changed, because of the error above
            failed: a patch cannot change which object it is (metadata.name)
            failed: a merge patch has the fields that are to change, such as {"spec": {"disabled": true}}
            failed: the patch is neither JSON nor YAML: error: line 1 column 1: unclosed bracket '{'
             --> <input>:1:1
              |
            1 | {
              | ^ unclosed bracket '{'
            failed: a JSON patch is a list of operations, such as [{"op": "replace", "path": "/spec/disabled", "value": true}]: invalid type: map, expected a sequence
            failed: the patch does not fit the object: operation '/0' failed at path '/spec/nothing': path is invalid
            failed: there is no IPPool/nopool in DIR
            IPPool/app-pool patched (dry run)
            ===
            (as it was)
        "#]],
    );
}

#[test]
fn labels_are_set_and_taken_off() {
    check(
        &[
            &["label", "node", "node1", "rack=rack1", "env=prod"],
            &["label", "node", "node1", "rack=rack1"],
            &["label", "node", "node1", "env-"],
            &["label", "ippool", "app-pool", "a=c"],
            &["label", "ippool", "app-pool", "a=c", "--overwrite"],
            &["label", "ippool", "app-pool", "a", "--remove"],
            &["label", "ippool", "app-pool", "a", "--remove"],
            &["label", "ippool", "app-pool", "b"],
            &["label", "ippool", "app-pool", "b=c", "--remove"],
        ],
        &expect![[r#"
            Node/node1 labelled
            Node/node1 unchanged
            Node/node1 labelled
            failed: IPPool/app-pool was not labelled: label a is b already; say --overwrite to make it c
            IPPool/app-pool labelled
            IPPool/app-pool labelled
            failed: IPPool/app-pool was not labelled: there is no label a to take off
            failed: IPPool/app-pool was not labelled: b has no value; write b=VALUE, or b- to take it off
            failed: IPPool/app-pool was not labelled: --remove takes the names of labels alone: b
            ===
            apiVersion: projectcalico.org/v3
            kind: IPPool
            metadata:
              name: app-pool
            spec:
              cidr: 10.10.0.0/20
              blockSize: 26
            ---
            apiVersion: v1
            kind: Node
            metadata:
              name: node1
              labels:
                rack: rack1
            spec:
              blocks:
              - 10.10.0.64/26
        "#]],
    );
}
