//! One JSON object of the configuration, read key by key. Everything that is wrong is collected,
//! so that one failed call tells the user all of it.

use std::{fmt, path::PathBuf};

use serde_json::{Map, Value};
use twill_types::{Prefix, PrefixError};

/// Something wrong in the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The field, as `ipam.pools[0].cidr`.
    pub(crate) path: String,
    value: Value,
    pub(crate) kind: ProblemKind,
}

/// How wrong it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ProblemKind {
    /// The value cannot be used; what could.
    Wrong(String),
    /// The value is legal and asks for what this plugin does not do; what could stand there.
    Unsupported(String),
    /// No such key: ignored, as the specification wants; the key that was probably meant.
    Unknown(Option<&'static str>),
}

impl Problem {
    pub(crate) fn wrong(
        path: impl Into<String>,
        value: impl Into<Value>,
        right: impl Into<String>,
    ) -> Self {
        let kind = ProblemKind::Wrong(right.into());
        Self { path: path.into(), value: value.into(), kind }
    }

    pub(crate) fn unsupported(path: &str, value: impl Into<Value>, right: &str) -> Self {
        let kind = ProblemKind::Unsupported(right.to_owned());
        Self { path: path.to_owned(), value: value.into(), kind }
    }

    /// Whether an ADD can go on in spite of it.
    pub(crate) fn is_warning(&self) -> bool {
        matches!(self.kind, ProblemKind::Unknown(_))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, value, kind } = self;
        match kind {
            ProblemKind::Wrong(right) if value.is_null() => {
                write!(f, "{path} is missing; write {right}")
            }
            ProblemKind::Wrong(right) => write!(f, "{path} is {value}; write {right}"),
            ProblemKind::Unsupported(right) => {
                write!(f, "{path} is {value}, which is not supported; write {right}")
            }
            ProblemKind::Unknown(Some(meant)) => {
                write!(f, "{path} is no key of this plugin and is ignored; did you mean {meant}?")
            }
            ProblemKind::Unknown(None) => {
                write!(f, "{path} is no key of this plugin and is ignored; remove it")
            }
        }
    }
}

/// One object. Keys come as the spellings that are accepted, ours first.
pub(crate) struct Section<'a, 'p> {
    path: &'a str,
    map: &'a Map<String, Value>,
    problems: &'p mut Vec<Problem>,
}

impl<'a, 'p> Section<'a, 'p> {
    /// Begins to read an object, and notes the keys that are not in `known`.
    pub(crate) fn new(
        path: &'a str,
        map: &'a Map<String, Value>,
        known: &'static [&'static str],
        problems: &'p mut Vec<Problem>,
    ) -> Self {
        let section = Self { path, map, problems };
        for (key, value) in map {
            if !known.contains(&key.as_str()) && !key.starts_with("cni.dev/") {
                let kind = ProblemKind::Unknown(similar(key, known));
                let path = section.path_of(key);
                section.problems.push(Problem { path, value: value.clone(), kind });
            }
        }
        section
    }

    /// Begins to read an object that has keys of others.
    pub(crate) fn unchecked(
        path: &'a str,
        map: &'a Map<String, Value>,
        problems: &'p mut Vec<Problem>,
    ) -> Self {
        Self { path, map, problems }
    }

    pub(crate) fn problems(&mut self) -> &mut Vec<Problem> {
        self.problems
    }

    pub(crate) fn problem(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    fn path_of(&self, key: &str) -> String {
        match self.path {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    /// The value under one of the spellings, if `read` can use it.
    pub(crate) fn read<T>(
        &mut self,
        keys: &[&str],
        right: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Option<T> {
        let found = keys.iter().filter_map(|key| Some((*key, self.map.get(*key)?)));
        let mut found = found.filter(|(_, value)| !value.is_null());
        let (key, value) = found.next()?;
        if let Some((other, second)) = found.next() {
            let right = format!("it once; {} is there too, with {second}", self.path_of(other));
            self.problems.push(Problem::wrong(self.path_of(key), value.clone(), right));
        }
        let read = read(value);
        if read.is_none() {
            self.problems.push(Problem::wrong(self.path_of(key), value.clone(), right));
        }
        read
    }

    pub(crate) fn string(&mut self, keys: &[&str]) -> Option<String> {
        self.read(keys, "a text in quotes", |value| value.as_str().map(str::to_owned))
    }

    pub(crate) fn path(&mut self, keys: &[&str]) -> Option<PathBuf> {
        self.read(keys, "an absolute path", |value| {
            Some(PathBuf::from(value.as_str()?)).filter(|path| path.is_absolute())
        })
    }

    /// A prefix, which has to be there.
    pub(crate) fn prefix(&mut self, key: &str, example: &str) -> Option<Prefix> {
        let path = self.path_of(key);
        let Some(text) = self.string(&[key]) else {
            if self.map.get(key).is_none_or(Value::is_null) {
                let right = format!("a prefix, such as {example}");
                self.problem(Problem::wrong(path, Value::Null, right));
            }
            return None;
        };
        match text.parse::<Prefix>() {
            Ok(prefix) => Some(prefix),
            Err(error) => {
                let right = match error {
                    PrefixError::HostBits { masked, .. } => masked.to_string(),
                    PrefixError::Syntax(_) => format!("address/length, such as {example}"),
                    PrefixError::Length { family, .. } => {
                        format!("a length of 0 to {}", family.bits())
                    }
                };
                self.problem(Problem::wrong(path, text, right));
                None
            }
        }
    }

    /// A bool, also in the quotes that Calico's configurations have.
    pub(crate) fn flag(&mut self, keys: &[&str]) -> Option<bool> {
        self.read(keys, "true or false", |value| match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
            _ => None,
        })
    }

    pub(crate) fn number(
        &mut self,
        keys: &[&str],
        right: &str,
        fits: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        self.read(keys, right, |value| value.as_u64().filter(|number| fits(*number)))
    }

    /// One of some words, in any case.
    pub(crate) fn choice<T: Copy>(&mut self, keys: &[&str], choices: &[(&str, T)]) -> Option<T> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        self.read(keys, &format!("one of {}", names.join(", ")), |value| {
            let text = value.as_str()?;
            choices.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, it)| *it)
        })
    }

    pub(crate) fn object(&mut self, keys: &[&str]) -> Option<&'a Map<String, Value>> {
        self.read(keys, "an object in braces", Value::as_object)
    }

    pub(crate) fn strings(&mut self, keys: &[&str]) -> Vec<String> {
        let right = "a list of texts, such as [\"app-pool\"]";
        let list = self.read(keys, right, |value| {
            value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        });
        list.unwrap_or_default()
    }

    pub(crate) fn objects(&mut self, keys: &[&str]) -> Vec<&'a Map<String, Value>> {
        let right = "a list of objects, such as [{\"cidr\": \"10.10.0.0/24\"}]";
        let list = self
            .read(keys, right, |value| value.as_array()?.iter().map(Value::as_object).collect());
        list.unwrap_or_default()
    }
}

/// The known key that somebody meant who wrote `key`: another spelling of it, or at most two
/// letters away.
fn similar(key: &str, known: &'static [&'static str]) -> Option<&'static str> {
    /// Longer than any key, with room for other spellings: the comparison takes as long as the key is.
    const LONGEST: usize = 64;
    if key.len() > LONGEST {
        return None;
    }
    let key = plain(key);
    known
        .iter()
        .map(|candidate| (distance(&key, &plain(candidate)), *candidate))
        .filter(|(distance, candidate)| *distance <= 2 && *distance * 2 < candidate.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn plain(key: &str) -> Vec<char> {
    key.chars().filter(|c| c.is_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect()
}

/// Insertions, deletions and replacements from one to the other (Levenshtein).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(left != right);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meant_keys_are_found() {
        let known = &["mtu", "runDir", "logLevel", "assignIPv4", "ipv4Pools", "type"];
        for (key, meant) in [
            ("log_level", Some("logLevel")),
            ("rundir", Some("runDir")),
            ("assignIpv4", Some("assignIPv4")),
            ("ipv4Pool", Some("ipv4Pools")),
            ("mut", None),
            ("MTU", Some("mtu")),
            ("mtus", Some("mtu")),
            ("bridge", None),
        ] {
            assert_eq!(similar(key, known), meant, "{key}");
        }
        assert_eq!(similar(&format!("mtu{}", "_".repeat(100)), known), None, "no key is so long");
    }
}
