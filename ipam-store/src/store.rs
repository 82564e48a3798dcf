use std::collections::BTreeMap;

use crate::StoreError;

/// One write of a batch: `None` deletes the key.
pub type Write = (Vec<u8>, Option<Vec<u8>>);

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Keys and values that survive a crash.
pub trait Store: Send {
    /// Everything, in the order of keys.
    ///
    /// # Errors
    /// An entry that cannot be read makes the whole fail: it is never left out.
    fn load(&mut self) -> Result<Vec<Entry>, StoreError>;

    /// Writes all of a batch or nothing. When it returns, the batch survives a crash of this
    /// process; and of the machine, where the store is not on a tmpfs.
    ///
    /// # Errors
    /// Nothing of the batch is to be relied on; load again before the next one.
    fn commit(&mut self, batch: &[Write]) -> Result<(), StoreError>;

    /// Drops what is held open, and opens it again: errors of the library are sticky.
    ///
    /// # Errors
    /// As when it was first opened.
    fn reopen(&mut self) -> Result<(), StoreError>;

    /// Whether a commit waits for a disk.
    fn waits_for_disk(&self) -> bool {
        false
    }
}

/// A store in memory, for those who need the service without a disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStore(BTreeMap<Vec<u8>, Vec<u8>>);

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Vec<Entry>, StoreError> {
        Ok(self.0.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn commit(&mut self, batch: &[Write]) -> Result<(), StoreError> {
        for (key, value) in batch {
            match value {
                Some(value) => self.0.insert(key.clone(), value.clone()),
                None => self.0.remove(key),
            };
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}
