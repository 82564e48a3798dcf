use std::{collections::BTreeSet, fmt};

use crate::Labels;

/// A selector as a tree. Groups have at least two operands, and a negation never holds another
/// one, so that equal meaning by these rules is equal value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    All,
    Global,
    Has(String),
    Compare { label: String, comparison: Comparison, value: String },
    In { label: String, negated: bool, values: BTreeSet<String> },
    Not(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
}

/// How one value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Comparison {
    Eq,
    Ne,
    Contains,
    StartsWith,
    EndsWith,
}

impl Expr {
    /// A group, or its only operand.
    pub(crate) fn group(mut operands: Vec<Self>, join: fn(Vec<Self>) -> Self) -> Self {
        match operands.pop() {
            Some(only) if operands.is_empty() => only,
            Some(last) => {
                operands.push(last);
                join(operands)
            }
            None => Self::All,
        }
    }

    pub(crate) fn negate(self) -> Self {
        match self {
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    /// How deep parentheses nest in the canonical form.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::And(operands) | Self::Or(operands) => {
                1 + operands.iter().map(Self::depth).max().unwrap_or(0)
            }
            Self::Not(inner) => inner.depth(),
            Self::All | Self::Global | Self::Has(_) | Self::Compare { .. } | Self::In { .. } => 0,
        }
    }

    pub(crate) fn is_global(&self) -> bool {
        match self {
            Self::Global => true,
            Self::Not(inner) => inner.is_global(),
            Self::And(operands) | Self::Or(operands) => operands.iter().any(Self::is_global),
            Self::All | Self::Has(_) | Self::Compare { .. } | Self::In { .. } => false,
        }
    }

    pub(crate) fn matches(&self, labels: &impl Labels) -> bool {
        match self {
            Self::All | Self::Global => true,
            Self::Has(label) => labels.label(label).is_some(),
            Self::Compare { label, comparison, value } => {
                comparison.holds(labels.label(label), value)
            }
            Self::In { label, negated, values } => {
                labels.label(label).is_some_and(|actual| values.contains(actual)) != *negated
            }
            Self::Not(inner) => !inner.matches(labels),
            Self::And(operands) => operands.iter().all(|operand| operand.matches(labels)),
            Self::Or(operands) => operands.iter().any(|operand| operand.matches(labels)),
        }
    }
}

impl Comparison {
    /// `actual` is `None` when the label is missing.
    fn holds(self, actual: Option<&str>, value: &str) -> bool {
        match self {
            Self::Eq => actual == Some(value),
            Self::Ne => actual != Some(value),
            Self::Contains => actual.is_some_and(|actual| actual.contains(value)),
            Self::StartsWith => actual.is_some_and(|actual| actual.starts_with(value)),
            Self::EndsWith => actual.is_some_and(|actual| actual.ends_with(value)),
        }
    }

    fn symbol(self) -> &'static str {
        match self {
            Self::Eq => "==",
            Self::Ne => "!=",
            Self::Contains => "contains",
            Self::StartsWith => "starts with",
            Self::EndsWith => "ends with",
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all()"),
            Self::Global => f.write_str("global()"),
            Self::Has(label) => write!(f, "has({label})"),
            Self::Compare { label, comparison, value } => {
                write!(f, "{label} {} {}", comparison.symbol(), Quoted(value))
            }
            Self::In { label, negated, values } => {
                write!(f, "{label} {} {{", if *negated { "not in" } else { "in" })?;
                join(f, values.iter().map(|value| Quoted(value)), ", ")?;
                f.write_str("}")
            }
            Self::Not(inner) => write!(f, "!{inner}"),
            Self::And(operands) => group(f, operands, " && "),
            Self::Or(operands) => group(f, operands, " || "),
        }
    }
}

fn group(f: &mut fmt::Formatter<'_>, operands: &[Expr], operator: &str) -> fmt::Result {
    f.write_str("(")?;
    join(f, operands, operator)?;
    f.write_str(")")
}

fn join<T: fmt::Display>(
    f: &mut fmt::Formatter<'_>,
    items: impl IntoIterator<Item = T>,
    separator: &str,
) -> fmt::Result {
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            f.write_str(separator)?;
        }
        item.fmt(f)?;
    }
    Ok(())
}

/// A value in the quotes that it does not hold itself; it cannot hold both kinds, having been
/// written in one of them without escapes.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quote = if self.0.contains('"') { '\'' } else { '"' };
        write!(f, "{quote}{}{quote}", self.0)
    }
}
