use std::fmt;

/// Whether a finding fails the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Severity {
    Note,
    Error,
}

/// One thing that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Relative to the workspace.
    pub(crate) file: String,
    /// From 1; 1 where the whole file is meant.
    pub(crate) line: usize,
    pub(crate) severity: Severity,
    pub(crate) what: String,
    pub(crate) remedy: String,
}

impl Finding {
    pub(crate) fn error(
        file: impl Into<String>,
        line: usize,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            file: file.into(),
            line,
            severity: Severity::Error,
            what: what.into(),
            remedy: remedy.into(),
        }
    }

    /// The same, as something that does not fail the run.
    pub(crate) fn into_note(self) -> Self {
        Self { severity: Severity::Note, ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Note => "note",
            Severity::Error => "error",
        };
        write!(f, "{}:{}: {severity}: {}; {}", self.file, self.line, self.what, self.remedy)
    }
}
