use std::{collections::BTreeMap, path::Path};

use twill_k8s_api::{
    Loaded, ObjectId, Problem,
    files::{Catalog, FileError, catalog, manifest_names, read_text},
    load_manifests,
};

/// The manifests of a directory, with what was last right in each file.
#[derive(Debug, Default)]
pub(super) struct Files(BTreeMap<String, Loaded>);

impl Files {
    /// Reads the directory again. A file that is broken now keeps the objects that it had when it
    /// was last right: a slip of the pen never takes a session or a pool away. Removing an object
    /// means removing it from a file that can be read, or removing the file.
    pub(super) fn reload(&mut self, directory: &Path) -> Result<Catalog, FileError> {
        let mut files = BTreeMap::new();
        for name in manifest_names(directory)? {
            let mut loaded = read(&directory.join(&name));
            if let Some(before) = self.0.remove(&name) {
                keep_last_good(&mut loaded, before);
            }
            files.insert(name, loaded);
        }
        self.0 = files;
        Ok(catalog(self.0.values()))
    }
}

fn read(path: &Path) -> Loaded {
    let name = path.display().to_string();
    match read_text(path) {
        Ok(text) => load_manifests(&text, &name),
        Err(error) => {
            Loaded { resources: Vec::new(), problems: vec![Problem::unreadable(name, &error)] }
        }
    }
}

/// Adds to what is wrong now what was last right.
pub(super) fn keep_last_good(loaded: &mut Loaded, before: Loaded) {
    if !loaded.has_errors() {
        return;
    }
    let present: Vec<ObjectId> = loaded.resources.iter().map(|found| found.value.id()).collect();
    let missing = before.resources.into_iter().filter(|old| !present.contains(&old.value.id()));
    loaded.resources.extend(missing);
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "apiVersion: projectcalico.org/v3\nkind: IPPool\n\
                        metadata: {name: a}\nspec: {cidr: 10.0.0.0/16}\n";
    const PEER: &str = "apiVersion: projectcalico.org/v3\nkind: BGPPeer\n\
                        metadata: {name: tor}\nspec: {peerIP: 192.0.2.1, asNumber: 64513}\n";

    fn names(catalog: &Catalog) -> Vec<String> {
        catalog.resources.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_broken_file_keeps_what_it_said_when_it_was_last_right() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.yaml");
        let mut files = Files::default();
        std::fs::write(&path, format!("{POOL}---\n{PEER}")).unwrap();
        let catalog = files.reload(directory.path()).unwrap();
        assert_eq!(names(&catalog), ["bgppeer tor", "ippool a"]);
        assert_eq!(catalog.problems, []);

        // One document is wrong, and the other one is changed at the same time.
        let broken = PEER.replace("64513", "many");
        let changed = POOL.replace("/16", "/17");
        std::fs::write(&path, format!("{changed}---\n{broken}")).unwrap();
        let catalog = files.reload(directory.path()).unwrap();
        assert_eq!(names(&catalog), ["bgppeer tor", "ippool a"]);
        assert_eq!(catalog.problems.len(), 1, "{:?}", catalog.problems);
        let text = format!("{:?}", catalog.resources);
        assert!(text.contains("64513") && text.contains("10.0.0.0/17"), "{text}");

        // Not even YAML, twice in a row.
        for _ in 0..2 {
            std::fs::write(&path, "{{{").unwrap();
            let catalog = files.reload(directory.path()).unwrap();
            assert_eq!(names(&catalog), ["bgppeer tor", "ippool a"]);
        }

        // Right again, with one object less: that one is gone.
        std::fs::write(&path, POOL).unwrap();
        assert_eq!(names(&files.reload(directory.path()).unwrap()), ["ippool a"]);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(names(&files.reload(directory.path()).unwrap()), [""; 0]);
    }

    #[test]
    fn only_manifests_are_read() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in
            [("a.yaml", POOL), ("b.yml", PEER), (".c.yaml", "{{{"), ("d.txt", "{{{")]
        {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        std::fs::create_dir(directory.path().join("claims")).unwrap();
        let catalog = Files::default().reload(directory.path()).unwrap();
        assert_eq!(names(&catalog), ["bgppeer tor", "ippool a"]);
        assert_eq!(catalog.problems, []);
    }
}
