use std::path::Path;

use expect_test::{Expect, expect};

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
        let result = super::run(&directory, &[source.to_owned()], &mut out, &mut err);
        let mut text = String::from_utf8([out, err].concat()).unwrap();
        if let Err(error) = result {
            text += &format!("failed: {error:#}\n");
        }
        expected.assert_eq(&text.replace(self.dir.path().to_str().unwrap(), "DIR"));
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
        failed: nothing was applied, because of the error above
    "#]]);
    store.apply(
        &format!("{POOL}---\n{}", POOL.replace("app-pool", "b").replace("26", "99")),
        &expect![[r#"
            error: DIR/input/a.yaml:17: spec.blockSize: 99: a block of an IPv4 pool is /20 to /32
            failed: nothing was applied, because of the error above
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
fn what_has_no_effect_is_told() {
    let store = Datastore::new();
    store.apply(
        &format!("{POOL}  natOutgoing: true\n  blocksize: 3\n"),
        &expect![[r#"
            IPPool/app-pool created
            warning: DIR/input/a.yaml:10: spec.blocksize: 3: unknown field; did you mean `blockSize`? It has no effect now
            warning: DIR/input/a.yaml:2: app-pool: spec.natOutgoing: connections that leave the pools keep the pod's address
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
    let claim = twill_k8s_api::files::Claim {
        block: "10.10.0.64/26".parse().unwrap(),
        node: "node1".into(),
        pool: "app-pool".into(),
        dedication: None,
        delegations: Vec::new(),
        uid: "1".into(),
        created: "2026-11-24T12:00:00Z".into(),
    };
    let claims = store.path("resources/claims");
    std::fs::create_dir(&claims).unwrap();
    std::fs::write(claims.join("0a0a0040-26.yaml"), claim.to_yaml().unwrap()).unwrap();
    store.apply(
        &POOL.replace("blockSize: 26", "blockSize: 27"),
        &expect![[r#"
            error: DIR/input/a.yaml:2: IPPool app-pool cannot change cidr or blockSize while nodes hold blocks of it (now 1); make a new pool, and set `disabled: true` on this one
            failed: nothing was applied, because of the error above
        "#]],
    );
    store.apply(
        &format!("{POOL}  disabled: true\n"),
        &expect![[r#"
        IPPool/app-pool configured
    "#]],
    );
}
