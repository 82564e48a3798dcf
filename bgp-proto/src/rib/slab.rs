use std::num::NonZeroU32;

/// The name of an entry, its place counted from 1: four octets where a pointer would have eight, also
/// where there may be none, and without its fate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id(NonZeroU32);

impl Id {
    /// As a place in a list that runs parallel to the slab.
    pub(super) const fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Entries that keep their name until they are removed; names are used again.
#[derive(Debug)]
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<Id>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> Id {
        if let Some(id) = self.free.pop()
            && let Some(entry) = self.entries.get_mut(id.index())
        {
            *entry = Some(value);
            return id;
        }
        self.entries.push(Some(value));
        // 4 billion entries would take more memory than there is. After a push there is one.
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        Id(NonZeroU32::new(number).unwrap_or(NonZeroU32::MAX))
    }

    pub(super) fn get(&self, id: Id) -> Option<&T> {
        self.entries.get(id.index())?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        self.entries.get_mut(id.index())?.as_mut()
    }

    /// Removes an entry. The memory of a slab that is empty then is given back.
    pub(super) fn remove(&mut self, id: Id) -> Option<T> {
        let removed = self.entries.get_mut(id.index())?.take()?;
        self.free.push(id);
        if self.free.len() == self.entries.len() {
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
            self.entries.len() - self.free.len()
        }
    }
}
