use std::path::Path;

use expect_test::{Expect, expect};
use twill_k8s_api::Resource;

use super::Verb;
use crate::{args::WriteArgs, resources::Files};

const POOL: &str = "# why it is there\napiVersion: projectcalico.org/v3\nkind: IPPool\n\
                    metadata:\n  name: app-pool\nspec:\n  cidr: 10.10.0.0/20\n  blockSize: 26\n";

struct Datastore {
    dir: tempfile::TempDir,
}

impl Datastore {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    /// Applies a manifest, and compares what was printed.
    fn apply(&self, manifest: &str, expected: &Expect) {
        let input = self.path("input");
        std::fs::create_dir_all(&input).unwrap();
        std::fs::write(input.join("a.yaml"), manifest).unwrap();
        self.apply_from(&input, expected);
    }

    fn apply_from(&self, source: &Path, expected: &Expect) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let directory = self.path("resources");
        let arguments =
            WriteArgs { filename: vec![source.to_owned()], dry_run: false, force_conflicts: false };
        let files = Files::new(directory);
        let result = super::run(&files, Verb::Apply, &arguments, &mut out, &mut err);
        let mut text = String::from_utf8([out, err].concat()).unwrap();
        if let Err(error) = result {
            text += &format!("failed: {error:#}\n");
        }
        expected.assert_eq(&text.replace(self.dir.path().to_str().unwrap(), "DIR"));
    }

    /// Has node1 claim a block of app-pool.
    fn claim(&self) {
        let claim = twill_k8s_api::files::Claim {
            block: "10.10.0.64/26".parse().unwrap(),
            node: "node1".into(),
            pool: "app-pool".into(),
            dedication: None,
            delegations: Vec::new(),
            uid: "1".into(),
            created: "2026-11-24T12:00:00Z".into(),
        };
        let claims = self.path("resources/claims");
        std::fs::create_dir(&claims).unwrap();
        std::fs::write(claims.join("0a0a0040-26.yaml"), claim.to_yaml().unwrap()).unwrap();
    }

    /// Every file of the datastore with its content.
    fn content(&self) -> Vec<(String, String)> {
        let Ok(entries) = std::fs::read_dir(self.path("resources")) else {
            return Vec::new();
        };
        let mut files: Vec<_> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
            .map(|path| {
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, std::fs::read_to_string(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }
}

#[test]
fn created_unchanged_configured() {
    let store = Datastore::new();
    store.apply(
        POOL,
        &expect![[r#"
        IPPool/app-pool created
    "#]],
    );
    assert_eq!(store.content(), [("ippool.app-pool.yaml".to_owned(), POOL.to_owned())]);
    store.apply(
        POOL,
        &expect![[r#"
        IPPool/app-pool unchanged
    "#]],
    );
    let changed = POOL.replace("blockSize: 26", "blockSize: 27");
    store.apply(
        &changed,
        &expect![[r#"
        IPPool/app-pool configured
    "#]],
    );
    assert_eq!(store.content(), [("ippool.app-pool.yaml".to_owned(), changed)]);
}

#[test]
fn one_error_keeps_everything_out() {
    let store = Datastore::new();
    store.apply(&format!("{POOL}---\n{POOL}"), &expect![[r#"
        error: DIR/input/a.yaml:11: metadata.name: ippool app-pool is also in DIR/input/a.yaml:2, and that one is used; remove one of them
        failed: nothing was done, because of the error above
    "#]]);
    store.apply(
        &format!("{POOL}---\n{}", POOL.replace("app-pool", "b").replace("26", "99")),
        &expect![[r#"
            error: DIR/input/a.yaml:17: spec.blockSize: 99: a block of an IPv4 pool is /20 to /32
            failed: nothing was done, because of the error above
        "#]],
    );
    store.apply(
        "",
        &expect![[r#"
        failed: no manifest in DIR/input
    "#]],
    );
    store.apply_from(
        &store.path("nothing"),
        &expect![[r#"
        failed: cannot read DIR/nothing: No such file or directory (os error 2)
    "#]],
    );
    assert_eq!(store.content(), []);
}

#[test]
fn objects_are_written_in_the_order_of_their_documents() {
    let store = Datastore::new();
    let list = "apiVersion: v1\nkind: List\nitems:\n\
                - {apiVersion: v1, kind: Node, metadata: {name: n}}\n\
                - {apiVersion: v1, kind: ConfigMap, metadata: {name: c, namespace: a}}\n";
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    store.apply(
        &format!(
            "{}---\n{namespace}---\n{list}---\n{POOL}",
            POOL.replace("app-pool", "b").replace("10.10.", "10.20.")
        ),
        &expect![[r#"
            IPPool/b created
            Namespace/a created
            Node/n created
            ConfigMap/c created
            IPPool/app-pool created
            note: DIR/input/a.yaml:18: kind: kind ConfigMap is not used by Twill (yet); the object is kept and has no effect
        "#]],
    );
}

/// On Kubernetes they are two; files have one of a name, and would lose the other.
#[test]
fn secrets_of_two_namespaces_are_two_on_kubernetes() {
    let secret = |namespace: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: bgp, namespace: {namespace}}}\n\
             stringData: {{tor: s3cret}}\n---\n"
        )
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secrets.yaml");
    std::fs::write(&file, secret("one") + &secret("two")).unwrap();
    let check = |identity| {
        let sources = [file.clone()];
        crate::input::read(&sources, identity, &mut Vec::new()).map(|read| read.len())
    };
    assert_eq!(check(Resource::id_in_cluster).unwrap(), 2);
    check(Resource::id).unwrap_err();
    std::fs::write(&file, secret("one") + &secret("one")).unwrap();
    check(Resource::id_in_cluster).unwrap_err();
}

#[test]
fn what_has_no_effect_is_told() {
    let store = Datastore::new();
    store.apply(
        &format!("{POOL}  ipipMode: Always\n  blocksize: 3\n"),
        &expect![[r#"
            IPPool/app-pool created
            warning: DIR/input/a.yaml:10: spec.blocksize: 3: unknown field; did you mean `blockSize`? It has no effect now
            warning: DIR/input/a.yaml:2: app-pool: spec.ipipMode: no tunnel is made; pods are reached by plain routes
        "#]],
    );
    assert_eq!(store.content().len(), 1);
}

#[test]
fn a_claimed_pool_keeps_its_shape() {
    let store = Datastore::new();
    store.apply(
        POOL,
        &expect![[r#"
        IPPool/app-pool created
    "#]],
    );
    store.claim();
    store.apply(
        &POOL.replace("blockSize: 26", "blockSize: 27"),
        &expect![[r#"
            error: DIR/input/a.yaml:2: IPPool/app-pool: cidr and blockSize cannot change while nodes hold blocks of it (now 1); make a new pool, and set `disabled: true` on this one
            failed: nothing was done, because of the error above
        "#]],
    );
    store.apply(
        &format!("{POOL}  disabled: true\n"),
        &expect![[r#"
        IPPool/app-pool configured
    "#]],
    );
}

/// Runs `twillctl` on the datastore, and compares what it printed.
fn command(store: &Datastore, arguments: &[&str], expected: &Expect) {
    use clap::Parser;
    let directory = store.path("resources");
    let line = [&["twillctl", "--resources", directory.to_str().unwrap()], arguments].concat();
    let cli = crate::Cli::try_parse_from(line).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let result = crate::run(&cli, &mut out, &mut err);
    let mut text = String::from_utf8([out, err].concat()).unwrap();
    if let Err(error) = result {
        text += &format!("failed: {error:#}\n");
    }
    expected.assert_eq(&text.replace(store.dir.path().to_str().unwrap(), "DIR"));
}

fn two_pools() -> String {
    let other = POOL.replace("app-pool", "b").replace("10.10.", "10.20.");
    format!("{POOL}---\n{other}")
}

#[test]
fn an_object_that_fails_keeps_no_other_back() {
    let store = Datastore::new();
    let input = store.path("input.yaml");
    let input = input.to_str().unwrap();
    std::fs::write(input, POOL).unwrap();
    command(
        &store,
        &["create", "-f", input],
        &expect![[r#"
        IPPool/app-pool created
    "#]],
    );
    std::fs::write(input, two_pools()).unwrap();
    command(
        &store,
        &["create", "-f", input, "--dry-run"],
        &expect![[r#"
        IPPool/b created (dry run)
        error: DIR/input.yaml:2: IPPool/app-pool: it is there already; `twillctl apply` or `replace` changes it
        failed: 1 of 2 objects failed; the others are as they should be
    "#]],
    );
    assert_eq!(store.content().len(), 1);
    command(
        &store,
        &["create", "-f", input],
        &expect![[r#"
        IPPool/b created
        error: DIR/input.yaml:2: IPPool/app-pool: it is there already; `twillctl apply` or `replace` changes it
        failed: 1 of 2 objects failed; the others are as they should be
    "#]],
    );
    command(
        &store,
        &["create", "-f", input],
        &expect![[r#"
            error: DIR/input.yaml:2: IPPool/app-pool: it is there already; `twillctl apply` or `replace` changes it
            error: DIR/input.yaml:11: IPPool/b: it is there already; `twillctl apply` or `replace` changes it
            failed: all 2 objects failed
        "#]],
    );
    assert_eq!(store.content().len(), 2);
}

#[test]
fn replace_needs_something_to_replace() {
    let store = Datastore::new();
    let input = store.path("input.yaml");
    let input = input.to_str().unwrap();
    std::fs::write(input, POOL).unwrap();
    command(
        &store,
        &["replace", "-f", input],
        &expect![[r#"
        error: DIR/input.yaml:2: IPPool/app-pool: there is no IPPool/app-pool in DIR/resources
        failed: nothing was done, because of the error above
    "#]],
    );
    assert_eq!(store.content(), []);
    command(
        &store,
        &["create", "-f", input],
        &expect![[r#"
        IPPool/app-pool created
    "#]],
    );
    std::fs::write(input, format!("{POOL}  disabled: true\n")).unwrap();
    command(
        &store,
        &["replace", "-f", input],
        &expect![[r#"
        IPPool/app-pool replaced
    "#]],
    );
    command(
        &store,
        &["replace", "-f", input],
        &expect![[r#"
        IPPool/app-pool unchanged
    "#]],
    );
}

#[test]
fn delete_by_name_and_by_manifest() {
    let store = Datastore::new();
    let input = store.path("input.yaml");
    let input = input.to_str().unwrap();
    std::fs::write(input, two_pools()).unwrap();
    command(
        &store,
        &["create", "-f", input],
        &expect![[r#"
        IPPool/app-pool created
        IPPool/b created
    "#]],
    );
    command(
        &store,
        &["delete", "pool", "b", "--dry-run"],
        &expect![[r#"
        IPPool/b deleted (dry run)
    "#]],
    );
    command(
        &store,
        &["delete", "pool", "b", "c"],
        &expect![[r#"
        IPPool/b deleted
        error: IPPool/c: there is no IPPool/c in DIR/resources
        failed: 1 of 2 objects failed; the others are as they should be
    "#]],
    );
    command(
        &store,
        &["delete", "-f", input],
        &expect![[r#"
        IPPool/app-pool deleted
        error: DIR/input.yaml:11: IPPool/b: there is no IPPool/b in DIR/resources
        failed: 1 of 2 objects failed; the others are as they should be
    "#]],
    );
    command(&store, &["delete", "-f", input, "--skip-not-exists"], &expect![]);
    command(
        &store,
        &["create", "-f", input],
        &expect![[r#"
        IPPool/app-pool created
        IPPool/b created
    "#]],
    );
    command(
        &store,
        &["delete", "IPPool/b", "Node/n", "IPPool/app-pool", "--skip-not-exists"],
        &expect![[r#"
        IPPool/b deleted
        IPPool/app-pool deleted
    "#]],
    );
    assert_eq!(store.content(), []);
}

#[test]
fn a_pool_that_is_in_use_stays() {
    let store = Datastore::new();
    let input = store.path("input.yaml");
    std::fs::write(&input, POOL).unwrap();
    command(
        &store,
        &["create", "-f", input.to_str().unwrap()],
        &expect![[r#"
        IPPool/app-pool created
    "#]],
    );
    store.claim();
    command(
        &store,
        &["delete", "ippool", "app-pool"],
        &expect![[r#"
        error: IPPool/app-pool: nodes hold blocks of it (now 1); set `disabled: true` on it, and delete it when its pods are gone
        failed: nothing was done, because of the error above
    "#]],
    );
    command(
        &store,
        &["delete", "blockaffinity", "0a0a0040-26"],
        &expect![[r#"
            error: BlockAffinity/0a0a0040-26: claims are made by the daemons, and given back by `twillctl ipam release --node`
            failed: nothing was done, because of the error above
        "#]],
    );
    assert_eq!(store.content().len(), 1);
}

#[test]
fn validate_asks_no_datastore() {
    let store = Datastore::new();
    let input = store.path("input.yaml");
    let line = ["--datastore", "kubernetes", "--kubeconfig", "/nowhere", "validate", "-f"];
    let check = |text: &str, expected: &Expect| {
        use clap::Parser;
        std::fs::write(&input, text).unwrap();
        let line = [&["twillctl"], &line[..], &[input.to_str().unwrap()]].concat();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let result = crate::run(&crate::Cli::try_parse_from(line).unwrap(), &mut out, &mut err);
        let mut text = String::from_utf8([out, err].concat()).unwrap();
        if let Err(error) = result {
            text += &format!("failed: {error:#}\n");
        }
        expected.assert_eq(&text.replace(store.dir.path().to_str().unwrap(), "DIR"));
    };
    check(
        &two_pools(),
        &expect![[r#"
        IPPool/app-pool is valid
        IPPool/b is valid
    "#]],
    );
    check(
        &two_pools().replace("cidr: 10.20.0.0/20", "cidr: 10.20.0.1/20"),
        &expect![[r#"
        IPPool/app-pool is valid
        error: DIR/input.yaml:16: spec.cidr: 10.20.0.1/20 has host bits set; write 10.20.0.0/20
        failed: there is one error
    "#]],
    );
    check(
        "",
        &expect![[r#"
        failed: no manifest in DIR/input.yaml
    "#]],
    );
}
