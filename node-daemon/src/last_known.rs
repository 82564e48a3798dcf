//! Copies of what was last known, in `stateDir`: a daemon that starts while nobody can be asked goes on by
//! them, as the one before did.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::warn;
use twill_k8s_api::files::{FileError, make_private_directory, replace_private_file};
use twill_types::error_chain;

/// A copy of one thing, for one node.
#[derive(Debug)]
pub(crate) struct LastKnown {
    path: PathBuf,
    node: String,
    /// What it is a copy of, for the log.
    what: &'static str,
    /// The version of what is in it.
    format: u32,
}

/// What a file has in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<T> {
    /// There is no file.
    Nothing,
    /// It is another node's, of another version, or damaged, which is told in the log.
    Useless,
    /// What was written last.
    Copy(T),
}

/// What each copy begins with.
#[derive(Deserialize)]
struct Head {
    format: u32,
    node: String,
}

#[derive(Serialize)]
struct Written<'a, T> {
    format: u32,
    node: &'a str,
    #[serde(flatten)]
    copy: &'a T,
}

impl LastKnown {
    pub(crate) fn new(
        (state_dir, file): (&Path, &str),
        what: &'static str,
        format: u32,
        node: &str,
    ) -> Self {
        Self { path: state_dir.join(file), node: node.to_owned(), what, format }
    }

    /// The file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the process before has left.
    ///
    /// # Errors
    ///
    /// It cannot be read, and may be what is wanted.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<Found<T>, FileError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(source) => return Err(self.failed("read", source)),
        };
        let (path, what) = (self.path.display(), self.what);
        // The rest of another version may be anything.
        let copy = serde_json::from_slice(&text).and_then(|head: Head| {
            let is_ours = head.format == self.format && head.node == self.node;
            if !is_ours {
                let Head { format, node } = head;
                warn!(%path, format, node, "the copy of {what} is of no use here");
            }
            is_ours.then(|| serde_json::from_slice(&text)).transpose()
        });
        Ok(match copy {
            Ok(Some(copy)) => Found::Copy(copy),
            Ok(None) => Found::Useless,
            Err(error) => {
                warn!(%path, %error, "the copy of {what} is damaged");
                Found::Useless
            }
        })
    }

    /// The same where it is of use and not needed: one that cannot be read is none.
    pub(crate) fn find<T: DeserializeOwned>(&self) -> Option<T> {
        match self.read() {
            Ok(Found::Copy(copy)) => Some(copy),
            Ok(Found::Nothing | Found::Useless) => None,
            Err(error) => {
                let (error, what) = (error_chain(&error), self.what);
                warn!(error, "the copy of {what} is not used");
                None
            }
        }
    }

    /// What the file would be with this in it, an object of JSON.
    pub(crate) fn text(&self, copy: &impl Serialize) -> Result<Vec<u8>, FileError> {
        serde_json::to_vec(&Written { format: self.format, node: &self.node, copy })
            .map_err(|source| self.failed("write", source.into()))
    }

    /// Replaces the file as a whole, for nobody else to read; durable when it returns.
    pub(crate) fn replace(&self, text: &[u8]) -> Result<(), FileError> {
        if let Some(directory) = self.path.parent() {
            make_private_directory(directory)?;
        }
        replace_private_file(&self.path, text)
    }

    /// Both.
    pub(crate) fn write(&self, copy: &impl Serialize) -> Result<(), FileError> {
        self.replace(&self.text(copy)?)
    }

    fn failed(&self, action: &'static str, source: io::Error) -> FileError {
        FileError::Io { action, path: self.path.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Thing {
        some_names: Vec<String>,
    }

    #[test]
    fn what_was_written_is_read_back_by_its_own_node_alone() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("state");
        let path = directory.join("things.json");
        let things =
            |format, node| LastKnown::new((&directory, "things.json"), "things", format, node);
        let own = things(2, "node1");
        let read = |of: &LastKnown| of.read::<Thing>().unwrap();
        assert_eq!(read(&own), Found::Nothing);
        assert_eq!(own.find::<Thing>(), None);

        let thing = || Thing { some_names: vec!["a".to_owned()] };
        own.write(&thing()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, r#"{"format":2,"node":"node1","someNames":["a"]}"#);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&own), Found::Copy(thing()));
        assert_eq!(own.find(), Some(thing()));
        assert_eq!(read(&things(2, "node2")), Found::Useless, "of another node");
        assert_eq!(read(&things(3, "node1")), Found::Useless, "of another format");

        for (what, damaged) in [
            ("torn", &text[..text.len() / 2]),
            ("empty", ""),
            ("two of them", &format!("{text}{text}")),
            ("nobody's", r#"{"someNames":["a"]}"#),
            ("without what is wanted", r#"{"format":2,"node":"node1"}"#),
        ] {
            fs::write(&path, damaged).unwrap();
            assert_eq!(read(&own), Found::Useless, "{what}");
            assert_eq!(own.find::<Thing>(), None, "{what}");
        }
        own.write(&thing()).unwrap();
        assert_eq!(read(&own), Found::Copy(thing()), "it was replaced");
    }

    #[test]
    fn one_that_cannot_be_read_is_not_one_that_is_not_there() {
        let root = tempfile::tempdir().unwrap();
        // Also root cannot read that.
        fs::create_dir(root.path().join("things.json")).unwrap();
        let things = LastKnown::new((root.path(), "things.json"), "things", 1, "node1");
        let error = things.read::<Thing>().unwrap_err();
        assert!(matches!(error, FileError::Io { action: "read", .. }), "{error:?}");
        assert_eq!(things.find::<Thing>(), None);
    }
}
