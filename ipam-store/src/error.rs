use std::{io, path::PathBuf, sync::Arc};

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory cannot be made, moved or looked at.
    #[error("cannot use the store's directory {}; repair it, or set another runDir", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The database cannot be opened.
    #[error(
        "cannot open the store at {}; end the process that holds it, or repair its file system",
        path.display()
    )]
    Open {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: sled::Error,
    },
    /// What is stored is not what was written.
    #[error("the store holds a damaged entry {key}: {why}")]
    Corrupt {
        /// The key, printable.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// There was a store, and now there is nothing in it: not even which boot it is of.
    #[error(
        "the store has lost everything that was in it; a restart of twilld reads the addresses from \
         the pods' links"
    )]
    Lost,
    /// A batch could not be written.
    #[error("cannot write to the store; free some space on its file system")]
    Write(#[source] sled::Error),
    /// A batch could not be brought to the disk.
    #[error("cannot sync the store at {}; free or repair its file system", path.display())]
    Sync {
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A value could not be turned into bytes.
    #[error("cannot encode a value")]
    Encode(#[source] serde_json::Error),
    /// The library panicked.
    #[error("the storage library panicked while it {0}")]
    Panic(&'static str),
    /// The batch that this request was in could not be stored, or the one before could not and the
    /// store cannot be read since.
    #[error("the request could not be stored")]
    Batch(#[source] Arc<StoreError>),
    /// The kernel does not say which boot this is.
    #[error("cannot read /proc/sys/kernel/random/boot_id; mount /proc")]
    BootId(#[source] io::Error),
    /// The service has ended.
    #[error("the address service has stopped")]
    Stopped,
}

impl StoreError {
    /// Whether the contents are to blame, so that putting them aside helps.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt { .. } | Self::Lost | Self::Panic(_) => true,
            Self::Open { source, .. } => {
                // It is what a damaged `conf` looks like; no other version has ever written one.
                let unsupported = matches!(source, sled::Error::Unsupported(_));
                unsupported
                    || matches!(
                        source,
                        sled::Error::Corruption { .. } | sled::Error::ReportableBug(_)
                    )
            }
            Self::Directory { .. }
            | Self::Write(_)
            | Self::Sync { .. }
            | Self::Encode(_)
            | Self::Batch(_)
            | Self::BootId(_)
            | Self::Stopped => false,
        }
    }
}
