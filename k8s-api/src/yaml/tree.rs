use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::Spanned;

/// How deep values may nest: more than any Kubernetes object does, and little enough for any stack.
const DEEPEST: usize = 32;

/// A value and the line it starts on, from 1; 0 where nobody can tell.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tree {
    pub(crate) line: u32,
    pub(crate) content: Content,
}

/// A value without its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Content {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<Entry>),
}

/// A key, the line it stands on, and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: u32,
    pub(crate) value: Tree,
}

/// A text that is no YAML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SyntaxError {
    pub(crate) line: Option<u32>,
    pub(crate) message: String,
}

impl Tree {
    /// Reads one document. Lines count from the start of `text`.
    pub(crate) fn parse(text: &str) -> Result<Self, SyntaxError> {
        let options = serde_saphyr::options! {
            with_snippet: false,
            // As YAML 1.2: `n` and `off` are texts.
            strict_booleans: true,
            budget: serde_saphyr::budget! { max_depth: DEEPEST, flow_nesting_limit: DEEPEST },
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let message = error.to_string();
            match error.location() {
                None => SyntaxError { line: None, message },
                Some(place) => {
                    let tail = format!(" at line {}, column {}", place.line(), place.column());
                    let message = message.strip_suffix(&tail).unwrap_or(&message);
                    let message = format!("column {}: {message}", place.column());
                    SyntaxError { line: u32::try_from(place.line()).ok(), message }
                }
            }
        })
    }

    /// The value of a key, if this is a mapping that has it.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        match &self.content {
            Content::Map(entries) => {
                entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value)
            }
            _ => None,
        }
    }

    /// The text under a key.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Adds `lines` to every place: the document stands that far down in its file.
    pub(crate) fn shift(&mut self, lines: u32) {
        self.line += lines;
        match &mut self.content {
            Content::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Content::Map(entries) => entries.iter_mut().for_each(|entry| {
                entry.line += lines;
                entry.value.shift(lines);
            }),
            _ => {}
        }
    }

    /// Every path below this value.
    pub(crate) fn places(&self) -> Places {
        let mut places = BTreeMap::new();
        self.collect(String::new(), self.line, &mut places);
        Places(places)
    }

    fn collect(&self, path: String, line: u32, places: &mut BTreeMap<String, Place>) {
        match &self.content {
            Content::List(items) => {
                for (index, item) in items.iter().enumerate() {
                    item.collect(indexed(&path, index), item.line, places);
                }
            }
            Content::Map(entries) => {
                for entry in entries {
                    entry.value.collect(field(&path, &entry.key), entry.line, places);
                }
            }
            _ => {}
        }
        places.insert(path, Place { line, value: self.show() });
    }

    /// The value as an error shows it, when it fits into one short line.
    pub(crate) fn show(&self) -> Option<String> {
        let text = match &self.content {
            Content::Null => "null".to_owned(),
            Content::Bool(value) => value.to_string(),
            Content::Unsigned(value) => value.to_string(),
            Content::Signed(value) => value.to_string(),
            Content::Float(value) => value.to_string(),
            Content::Text(value) if value.is_empty() => "\"\"".to_owned(),
            Content::Text(value) => value.clone(),
            Content::List(_) | Content::Map(_) => return None,
        };
        (text.len() <= 200 && !text.contains('\n')).then_some(text)
    }
}

/// Line and value by path.
#[derive(Debug, Clone)]
pub(crate) struct Places(BTreeMap<String, Place>);

#[derive(Debug, Clone)]
struct Place {
    line: u32,
    value: Option<String>,
}

impl Places {
    /// The line of a path, or of the nearest thing around it that exists.
    pub(crate) fn line(&self, path: &str) -> Option<u32> {
        let mut path = path;
        loop {
            match self.0.get(path) {
                Some(place) => return (place.line > 0).then_some(place.line),
                None if path.is_empty() => return None,
                None => path = path.rfind(['.', '[']).map_or("", |end| &path[..end]),
            }
        }
    }

    /// The value of a path, when it is short enough to show.
    pub(crate) fn value(&self, path: &str) -> Option<String> {
        self.0.get(path)?.value.clone()
    }
}

/// The path of a field.
pub(crate) fn field(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// The path of a list's item.
pub(crate) fn indexed(path: &str, index: usize) -> String {
    format!("{path}[{index}]")
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value: content, referenced, .. } = Spanned::deserialize(deserializer)?;
        Ok(Self { line: u32::try_from(referenced.line()).unwrap_or(0), content })
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_none<E>(self) -> Result<Content, E> {
        Ok(Content::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Content, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Content, E> {
        Ok(Content::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Content, E> {
        Ok(Content::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Content, E> {
        Ok(u64::try_from(value).map_or(Content::Signed(value), Content::Unsigned))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Content, E> {
        Ok(Content::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Content, E> {
        Ok(Content::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Content::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Content, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let line = u32::try_from(key.referenced.line()).unwrap_or(0);
            entries.push(Entry { key: key.value, line, value: access.next_value()? });
        }
        Ok(Content::Map(entries))
    }
}
