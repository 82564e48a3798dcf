use std::num::NonZeroU32;

/// The name of an entry, its place counted from 1: four octets where a pointer would have eight, also
/// where there may be none, and without its fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(NonZeroU32);

impl Id {
    /// To be kept where a type for both it and another number is wanted.
    pub(super) const fn number(self) -> u32 {
        self.0.get()
    }

    /// What had this [`Id::number`].
    pub(super) fn of_number(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// As a place in a list that runs parallel to the slab.
    pub(super) const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// So many entries stand in one piece. A slab that grows does not move what it has: for a moment that
/// would take as much memory again.
const PIECE: usize = 1024;

/// Entries that keep their name until they are removed; names are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    /// All but the last have [`PIECE`] entries.
    pieces: Vec<Vec<Option<T>>>,
    free: Vec<Id>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { pieces: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// How many names were given.
    fn names(&self) -> usize {
        let last = self.pieces.last().map_or(0, Vec::len);
        self.pieces.len().saturating_sub(1) * PIECE + last
    }

    fn entry(&mut self, id: Id) -> Option<&mut Option<T>> {
        self.pieces.get_mut(id.index() / PIECE)?.get_mut(id.index() % PIECE)
    }

    pub(super) fn insert(&mut self, value: T) -> Id {
        if let Some(id) = self.free.pop()
            && let Some(entry) = self.entry(id)
        {
            *entry = Some(value);
            return id;
        }
        match self.pieces.last_mut().filter(|piece| piece.len() < PIECE) {
            Some(piece) => piece.push(Some(value)),
            None => self.pieces.push(vec![Some(value)]),
        }
        // 4 billion entries would take more memory than there is. After a push there is one.
        let number = u32::try_from(self.names()).unwrap_or(u32::MAX);
        Id(NonZeroU32::new(number).unwrap_or(NonZeroU32::MAX))
    }

    pub(super) fn get(&self, id: Id) -> Option<&T> {
        self.pieces.get(id.index() / PIECE)?.get(id.index() % PIECE)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        self.entry(id)?.as_mut()
    }

    /// Removes an entry. The memory of a slab that is empty then is given back.
    pub(super) fn remove(&mut self, id: Id) -> Option<T> {
        let removed = self.entry(id)?.take()?;
        self.free.push(id);
        if self.free.len() == self.names() {
            *self = Self::default();
        }
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    impl<T> super::Slab<T> {
        /// How many entries there are.
        pub(in crate::rib) fn len(&self) -> usize {
            self.names() - self.free.len()
        }
    }
}
