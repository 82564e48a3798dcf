//! One file per family of kinds: fields, defaults, rules.

pub(crate) mod bgp_configuration;
pub(crate) mod bgp_filter;
pub(crate) mod bgp_peer;
pub(crate) mod ip_pool;
pub(crate) mod ipam;
pub(crate) mod node;
pub(crate) mod node_status;
pub(crate) mod restart_time;
pub(crate) mod secret;

use twill_selector::Selector;

use crate::{Severity, Unsupported};

/// The port of BGP (RFC 4271 section 8.2.1).
pub(crate) const BGP_PORT: u16 = 179;

/// What a kind knows about itself beyond its types.
pub(crate) trait Rules {
    /// Checks what no single field can tell.
    fn check(&self, report: &mut Report);

    /// Fields that are set and have no effect.
    fn unsupported(&self) -> Vec<Unsupported>;
}

/// Collects what the rules find.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
}

/// A broken rule.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) severity: Severity,
    pub(crate) path: String,
    pub(crate) message: String,
}

impl Report {
    pub(crate) fn error(&mut self, path: &str, message: impl Into<String>) {
        self.push(Severity::Error, path, message.into());
    }

    pub(crate) fn warning(&mut self, path: &str, message: impl Into<String>) {
        self.push(Severity::Warning, path, message.into());
    }

    fn push(&mut self, severity: Severity, path: &str, message: String) {
        self.findings.push(Finding { severity, path: path.to_owned(), message });
    }

    /// A list that takes so many entries, each of which costs something wherever it is used.
    pub(crate) fn at_most(&mut self, path: &str, most: usize, entries: usize, remedy: &str) {
        if entries > most {
            self.error(path, format!("has {entries} entries, and {most} are the most; {remedy}"));
        }
    }

    /// Two fields of which at most one may be set.
    pub(crate) fn exclusive(&mut self, (a, a_set): (&str, bool), (b, b_set): (&str, bool)) {
        if a_set && b_set {
            self.error(b, format!("{b} and {a} exclude each other; remove one of them"));
        }
    }

    /// The rules that hold for every selector of labels.
    pub(crate) fn selector(&mut self, path: &str, selector: Option<&Selector>) {
        const LONGEST: usize = 1024;
        let Some(selector) = selector else { return };
        if selector.as_written().len() > LONGEST {
            self.error(path, format!("a selector has at most {LONGEST} characters"));
        }
        if selector.is_global() {
            self.error(path, "global() selects nothing here; write all() for everything");
        }
    }
}

/// Collects fields that are set and have no effect.
pub(crate) struct Effects(Vec<Unsupported>);

impl Effects {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn when(mut self, set: bool, field: &str, effect: &str) -> Self {
        if set {
            self.0.push(Unsupported { field: field.to_owned(), effect: effect.to_owned() });
        }
        self
    }

    pub(crate) fn done(self) -> Vec<Unsupported> {
        self.0
    }
}
