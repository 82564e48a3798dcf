use std::fmt;

use serde::Serialize;

use crate::ObjectId;

/// How bad a [`Problem`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; everything is used as it stands.
    Note,
    /// Something in it has no effect; the rest is used.
    Warning,
    /// The object (or the whole document) is not used.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something about a manifest that its owner should know. Its text is one line:
/// `error: pools.yaml:7: spec.blockSize: 33: an IPv4 pool takes 20 to 32`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// The file, as the reader named it.
    pub file: String,
    /// The line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The object it is about, as far as that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectId>,
    /// The field, such as `spec.blockSize`; empty for the whole document.
    pub path: String,
    /// The value that stands there, when it is short enough to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl Problem {
    /// A problem of a whole file.
    pub fn of_file(
        severity: Severity,
        file: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            file: file.into(),
            line: None,
            object: None,
            path: String::new(),
            value: None,
            message: message.into(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.severity, self.file)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.path.is_empty() {
            write!(f, ": {}", self.path)?;
        }
        // Messages of parsers quote the value themselves; a short one may be in any text by chance.
        let quoted = |value: &str| {
            self.message.contains(&format!("`{value}`"))
                || value.len() > 3 && self.message.contains(value)
        };
        if let Some(value) = self.value.as_deref().filter(|value| !quoted(value)) {
            write!(f, ": {value}")?;
        }
        write!(f, ": {}", self.message)
    }
}
