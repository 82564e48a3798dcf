use std::sync::Arc;

use super::slab::Id;
use crate::wire::{Packed, PathAttributes};

/// So many are remembered at a time.
const MOST: usize = 64;

/// Attributes that were unpacked in one walk over many paths: paths that stand together mostly have the
/// same source. It must not outlive a change of the sources.
#[derive(Debug)]
pub(crate) struct Unpacked(Vec<Option<(Id, Arc<PathAttributes>)>>);

impl Default for Unpacked {
    fn default() -> Self {
        Self(vec![None; MOST])
    }
}

impl Unpacked {
    /// The attributes of a source, which are these.
    pub(super) fn get(&mut self, source: Id, packed: &Packed) -> Option<Arc<PathAttributes>> {
        let slot = self.0.get_mut(source.index() % MOST)?;
        match slot {
            Some((known, attributes)) if *known == source => Some(Arc::clone(attributes)),
            _ => {
                let attributes = Arc::new(packed.unpack()?);
                *slot = Some((source, Arc::clone(&attributes)));
                Some(attributes)
            }
        }
    }
}
