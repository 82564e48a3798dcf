use std::{cell::RefCell, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{
        self, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
        Visitor, value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use super::{
    near::nearest,
    tree::{Content, Entry, Tree, field, indexed},
};

/// Why a tree is not a value of the type asked for, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReadError {
    /// The field; `None` for the whole value.
    pub(crate) path: Option<String>,
    /// What stands there.
    pub(crate) value: Option<String>,
    /// What is wrong, and what would be right.
    pub(crate) message: String,
}

/// A field that the type does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unknown {
    /// Where it stands.
    pub(crate) path: String,
    /// What would be right.
    pub(crate) message: String,
}

/// Reads a typed value out of a tree. Fields that the type does not have are told to `unknown`.
pub(crate) fn read<'de, T: Deserialize<'de>>(
    tree: &'de Tree,
    unknown: &mut Vec<Unknown>,
) -> Result<T, ReadError> {
    let found = RefCell::new(Vec::new());
    let result = T::deserialize(Reader { tree, path: String::new(), unknown: &found });
    unknown.append(&mut found.into_inner());
    result
}

/// A value of a list or mapping; an error that does not know its place yet gets this one.
fn descend<'de, S: DeserializeSeed<'de>>(
    seed: S,
    tree: &'de Tree,
    path: String,
    unknown: &RefCell<Vec<Unknown>>,
) -> Result<S::Value, ReadError> {
    seed.deserialize(Reader { tree, path: path.clone(), unknown }).map_err(|error| {
        match error.path {
            Some(_) => error,
            None => ReadError { path: Some(path), value: tree.show(), ..error },
        }
    })
}

struct Reader<'a, 'de> {
    tree: &'de Tree,
    path: String,
    unknown: &'a RefCell<Vec<Unknown>>,
}

impl<'de> Reader<'_, 'de> {
    fn unexpected(&self) -> Unexpected<'de> {
        match &self.tree.content {
            Content::Null => Unexpected::Unit,
            Content::Bool(value) => Unexpected::Bool(*value),
            Content::Unsigned(value) => Unexpected::Unsigned(*value),
            Content::Signed(value) => Unexpected::Signed(*value),
            Content::Float(value) => Unexpected::Float(*value),
            Content::Text(value) => Unexpected::Str(value),
            Content::List(_) => Unexpected::Seq,
            Content::Map(_) => Unexpected::Map,
        }
    }

    fn note_unknown(&self, entries: &[Entry], fields: &'static [&'static str]) {
        for entry in entries.iter().filter(|entry| !fields.contains(&entry.key.as_str())) {
            let message = match nearest(&entry.key, fields.iter().copied()) {
                Some(near) => format!("unknown field; did you mean `{near}`? It has no effect now"),
                None => format!("unknown field, without effect; known here: {}", fields.join(", ")),
            };
            self.unknown
                .borrow_mut()
                .push(Unknown { path: field(&self.path, &entry.key), message });
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'_, 'de> {
    type Error = ReadError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match &self.tree.content {
            Content::Null => visitor.visit_unit(),
            Content::Bool(value) => visitor.visit_bool(*value),
            Content::Unsigned(value) => visitor.visit_u64(*value),
            Content::Signed(value) => visitor.visit_i64(*value),
            Content::Float(value) => visitor.visit_f64(*value),
            Content::Text(value) => visitor.visit_borrowed_str(value),
            Content::List(items) => {
                visitor.visit_seq(Items { reader: self, items: items.iter(), index: 0 })
            }
            Content::Map(entries) => visitor.visit_map(Fields {
                entries: entries.iter(),
                known: None,
                value: None,
                reader: self,
            }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        match self.tree.content {
            Content::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.tree.content {
            Content::Map(entries) => {
                self.note_unknown(entries, fields);
                let entries = entries.iter();
                visitor.visit_map(Fields {
                    reader: self,
                    entries,
                    known: Some(fields),
                    value: None,
                })
            }
            _ => Err(de::Error::custom(format_args!(
                "expected a mapping with the fields {}",
                fields.join(", ")
            ))),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ReadError> {
        match &self.tree.content {
            Content::Text(text) if variants.contains(&text.as_str()) => {
                let text: StrDeserializer<'_, ReadError> = text.as_str().into_deserializer();
                visitor.visit_enum(text)
            }
            Content::Text(text) => Err(de::Error::unknown_variant(text, variants)),
            _ => {
                let expected = format!("one of {}", variants.join(", "));
                Err(de::Error::invalid_type(self.unexpected(), &expected.as_str()))
            }
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ReadError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier
    }
}

struct Items<'a, 'de> {
    reader: Reader<'a, 'de>,
    items: std::slice::Iter<'de, Tree>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = ReadError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ReadError> {
        let Some(tree) = self.items.next() else {
            return Ok(None);
        };
        let path = indexed(&self.reader.path, self.index);
        self.index += 1;
        descend(seed, tree, path, self.reader.unknown).map(Some)
    }
}

struct Fields<'a, 'de> {
    reader: Reader<'a, 'de>,
    entries: std::slice::Iter<'de, Entry>,
    /// In a struct: the fields it has; others have been told already and are passed over.
    known: Option<&'static [&'static str]>,
    value: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Fields<'_, 'de> {
    type Error = ReadError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, ReadError> {
        let known = self.known;
        self.value = self
            .entries
            .find(|entry| known.is_none_or(|known| known.contains(&entry.key.as_str())));
        self.value
            .map(|entry| {
                let key: StrDeserializer<'_, ReadError> = entry.key.as_str().into_deserializer();
                seed.deserialize(key)
            })
            .transpose()
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ReadError> {
        let entry = self.value.take().ok_or_else(|| de::Error::custom("value before key"))?;
        let path = field(&self.reader.path, &entry.key);
        descend(seed, &entry.value, path, self.reader.unknown)
    }
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ReadError {}

impl de::Error for ReadError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { path: None, value: None, message: message.to_string() }
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = in_words(&expected.to_string());
        let scalar = match found {
            Unexpected::Bool(value) => Some(value.to_string()),
            Unexpected::Unsigned(value) => Some(value.to_string()),
            Unexpected::Signed(value) => Some(value.to_string()),
            Unexpected::Float(value) => Some(value.to_string()),
            _ => None,
        };
        match scalar {
            Some(value) if expected == "a text" => {
                Self::custom(format_args!("expected a text; put it in quotes: \"{value}\""))
            }
            _ => Self::custom(format_args!("expected {expected}, found {}", named(found))),
        }
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::custom(format_args!("expected {}", in_words(&expected.to_string())))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let all = expected.join(", ");
        match nearest(variant, expected.iter().copied()) {
            Some(near) => Self::custom(format_args!("did you mean {near}? Allowed are: {all}")),
            None => Self::custom(format_args!("allowed are: {all}")),
        }
    }

    fn missing_field(name: &'static str) -> Self {
        Self::custom(format_args!("field `{name}` is missing; add it"))
    }
}

/// serde's words for a type, in a user's.
fn in_words(expected: &str) -> String {
    match expected {
        "u8" => format!("a whole number from 0 to {}", u8::MAX),
        "u16" => format!("a whole number from 0 to {}", u16::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "u64" | "i64" => "a whole number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" => "a text".to_owned(),
        "a sequence" => "a list (lines that start with `- `)".to_owned(),
        "a map" => "a mapping (key: value)".to_owned(),
        other => other.to_owned(),
    }
}

fn named(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Unit => "nothing".to_owned(),
        Unexpected::Bool(_) => "a true or false".to_owned(),
        Unexpected::Unsigned(_) | Unexpected::Signed(_) => "a number".to_owned(),
        Unexpected::Float(_) => "a decimal fraction".to_owned(),
        Unexpected::Str(_) => "a text".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}
