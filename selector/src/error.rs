use crate::{MAX_DEPTH, MAX_LABEL};

/// Why a text is no selector, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("selector `{text}`, character {position}: {kind}")]
pub struct SelectorError {
    /// The whole text.
    pub text: String,
    /// Where the trouble starts, in characters from 1; one past the end when something is missing
    /// there.
    pub position: usize,
    /// What it is.
    pub kind: SelectorErrorKind,
}

/// What is wrong with a selector, each with what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorErrorKind {
    /// A string without its end.
    #[error(
        "the string has no closing {0}; add it (there are no escapes: use the other kind of quotes around a quote)"
    )]
    UnterminatedString(char),
    /// `=`, `&` or `|` alone.
    #[error("`{0}` alone is no operator; write `{0}{0}`")]
    HalfOperator(char),
    /// A character that nothing starts with.
    #[error(
        "{0:?} has no meaning here; labels are made of A-Z a-z 0-9 _ . / -, values stand in quotes, and blanks are spaces and tabs"
    )]
    Character(char),
    /// A label name of more than [`MAX_LABEL`] bytes.
    #[error("the label name is {0} characters long; at most {MAX_LABEL} are allowed")]
    LabelTooLong(usize),
    /// `has(` that goes on badly.
    #[error("`has(` must go on with one label name and `)`, such as has(rack)")]
    Has,
    /// `all(` or `global(` with something inside.
    #[error("`{0}(` takes nothing inside; write {0}()")]
    Call(&'static str),
    /// A label with no comparison behind it.
    #[error(
        "label `{0}` must be followed by ==, !=, in, not in, contains, starts with or ends with; to ask whether it exists write has({0})"
    )]
    NoOperator(String),
    /// A value without quotes.
    #[error("a value stands in quotes; write \"{0}\"")]
    Unquoted(String),
    /// Anything else where a string has to be.
    #[error("expected a value in quotes, found {0}")]
    ExpectedString(String),
    /// `in` without its set.
    #[error("expected a set such as {{\"a\", \"b\"}}, found {0}")]
    ExpectedSet(String),
    /// A set that is not continued or closed.
    #[error("expected `,` or `}}` in the set, found {0}")]
    InSet(String),
    /// A comparison was due.
    #[error("expected a comparison such as rack == \"rack1\", has(rack), all() or `(`, found {0}")]
    ExpectedTerm(String),
    /// A group without its end.
    #[error("expected `)`, `&&` or `||`, found {0}")]
    Unclosed(String),
    /// Something behind a complete selector.
    #[error(
        "the selector is complete before this, but {0} follows; join comparisons with && or ||"
    )]
    Trailing(String),
    /// More nesting than [`MAX_DEPTH`].
    #[error("groups nest deeper than {MAX_DEPTH}; write it flatter")]
    TooDeep,
}
