use twill_types::Prefix;

use super::LearnedRoute;

/// One change of a learned route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FibChange {
    /// The route is made, or takes the place of the one that we have for its prefix, without a gap.
    Replace(LearnedRoute),
    /// Our route for the prefix is removed.
    Delete(Prefix),
}

impl FibChange {
    /// The prefix that it is about.
    pub const fn prefix(&self) -> Prefix {
        match self {
            Self::Replace(route) => route.prefix,
            Self::Delete(prefix) => *prefix,
        }
    }
}
