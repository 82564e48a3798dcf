//! YAML (and with it JSON) to typed values, with the place of everything.
//!
//! serde alone forgets where a value stood, and stops knowing field names at the first unknown
//! one. So a document is read into a [`tree::Tree`] that remembers lines, and the typed value is
//! read out of the tree by a deserializer that knows the path, the line and, in a struct, all the
//! fields there are.

mod near;
mod read;
mod split;
mod tree;

pub(crate) use near::nearest;
pub(crate) use read::read;
pub(crate) use split::{Document, split};
pub(crate) use tree::{Content, Places, Tree};
