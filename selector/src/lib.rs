//! Calico's label selectors: parse, match, canonical form.
//!
//! ```text
//! selector   = [ or ]                            ; nothing, or only blanks, is all()
//! or         = and *( "||" and )
//! and        = term *( "&&" term )
//! term       = *"!" ( "has(" label ")" / "all()" / "global()" / "(" or ")" / comparison )
//! comparison = label ( "==" / "!=" / "contains" / "starts with" / "ends with" ) string
//!            / label ( "in" / "not in" ) "{" [ string *( "," string ) [ "," ] ] "}"
//! label      = 1*512( letter / digit / "_" / "." / "/" / "-" )
//! string     = DQUOTE *( any but DQUOTE ) DQUOTE / "'" *( any but "'" ) "'"   ; no escapes
//! ```
//!
//! Blanks are space and tab, nothing else. Promise: no text makes [`Selector::parse`] panic or
//! overflow the stack, and parsing a canonical form gives the same selector again. Nothing here
//! knows what is labelled.

mod error;
mod expr;
mod id;
mod parse;
mod token;

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use error::{SelectorError, SelectorErrorKind};
use expr::Expr;

/// How deep groups may nest, in parentheses or in the canonical form.
pub const MAX_DEPTH: usize = 64;

/// The longest label name, in bytes.
pub const MAX_LABEL: usize = 512;

/// Something that has labels.
pub trait Labels {
    /// The value of a label, `None` when it is missing.
    fn label(&self, name: &str) -> Option<&str>;
}

impl Labels for BTreeMap<String, String> {
    fn label(&self, name: &str) -> Option<&str> {
        self.get(name).map(String::as_str)
    }
}

/// A parsed selector. Two are equal when their canonical forms are, however they were written.
#[derive(Clone)]
pub struct Selector {
    text: String,
    expr: Expr,
}

impl Selector {
    /// Reads a selector.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    ///
    /// use twill_selector::Selector;
    ///
    /// let labels = BTreeMap::from([("rack".to_owned(), "rack1".to_owned())]);
    /// assert!(Selector::parse(r#"rack == "rack1" && !has(env)"#)?.matches(&labels));
    /// // A label that is missing differs from every value.
    /// assert!(Selector::parse("env != 'prod'")?.matches(&labels));
    /// # Ok::<(), twill_selector::SelectorError>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        Ok(Self { expr: parse::parse(text)?, text: text.to_owned() })
    }

    /// The selector that matches everything, `all()`.
    pub fn all() -> Self {
        Self { text: Expr::All.to_string(), expr: Expr::All }
    }

    /// Whether these labels are selected. A missing label makes `!=` and `not in` true and every
    /// other comparison false; `global()` selects like `all()`, see [`Selector::is_global`].
    pub fn matches(&self, labels: &impl Labels) -> bool {
        self.expr.matches(labels)
    }

    /// Whether `global()` stands anywhere in it. That word means "resources without a namespace",
    /// which a set of labels cannot tell: places that select by labels alone refuse it.
    pub fn is_global(&self) -> bool {
        self.expr.is_global()
    }

    /// The text it was read from, for showing to the person who wrote it.
    pub fn as_written(&self) -> &str {
        &self.text
    }

    /// A short name that equal selectors share: `s:` and the URL-safe base64 of the SHA-224 of
    /// `s:` with the canonical form, 40 characters.
    pub fn unique_id(&self) -> String {
        id::unique_id(&self.to_string())
    }
}

/// The canonical form: one space around operators, sets sorted and without repetition, every group
/// of `&&` or `||` in parentheses, double quotes unless the value holds one.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expr.fmt(f)
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Selector({self})")
    }
}

impl PartialEq for Selector {
    fn eq(&self, other: &Self) -> bool {
        self.expr == other.expr
    }
}

impl Eq for Selector {}

impl Default for Selector {
    fn default() -> Self {
        Self::all()
    }
}

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        Self::parse(text)
    }
}

impl Serialize for Selector {
    /// As written, so that a resource is given back the way its owner knows it.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
