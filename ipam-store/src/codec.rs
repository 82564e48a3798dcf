//! How blocks and records stand in the store.
//!
//! One tree. The first byte of a key says what it is, and numbers are big-endian, so that entries
//! of a kind are together and in order. A value is a schema byte, a CRC-32 over key and value, and
//! JSON: a value that ends up under another key is found out, too.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};
use twill_ipam::{Allocator, BlockState, Change, Record};
use twill_types::Block;

use crate::{Entry, StoreError, Write};

const SCHEMA: u8 = 1;

const META: u8 = b'm';
const BLOCK: u8 = b'b';
const RECORD: u8 = b'r';

/// What belongs to the store as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Meta {
    /// The boot in which it was written: namespaces, and with them allocations, end with it.
    pub(crate) boot_id: String,
    /// Number of the last assignment.
    pub(crate) sequence: u64,
}

/// A record, with the boot that its namespace belongs to.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredRecord<'a> {
    boot_id: Cow<'a, str>,
    #[serde(flatten)]
    record: Cow<'a, Record>,
}

/// What a store holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) meta: Meta,
    pub(crate) blocks: Vec<BlockState>,
    pub(crate) records: Vec<Record>,
}

fn push_address(address: IpAddr, key: &mut Vec<u8>) {
    match address {
        IpAddr::V4(v4) => {
            key.push(4);
            key.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            key.push(6);
            key.extend_from_slice(&v6.octets());
        }
    }
}

fn block_key(block: Block) -> Vec<u8> {
    let mut key = vec![BLOCK];
    push_address(block.prefix().address(), &mut key);
    key.push(block.prefix().length());
    key
}

fn record_key(address: IpAddr) -> Vec<u8> {
    let mut key = vec![RECORD];
    push_address(address, &mut key);
    key
}

fn seal<T: Serialize>(key: &[u8], value: &T) -> Result<Vec<u8>, StoreError> {
    let body = serde_json::to_vec(value).map_err(StoreError::Encode)?;
    let mut sealed = vec![SCHEMA];
    sealed.extend_from_slice(&checksum(key, &body).to_be_bytes());
    sealed.extend_from_slice(&body);
    Ok(sealed)
}

fn checksum(key: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(body);
    hasher.finalize()
}

fn unseal<T: for<'de> Deserialize<'de>>(key: &[u8], sealed: &[u8]) -> Result<T, StoreError> {
    let corrupt = |why: String| StoreError::Corrupt { key: key.escape_ascii().to_string(), why };
    let Some(([schema, crc @ ..], body)) = sealed.split_first_chunk::<5>() else {
        return Err(corrupt("it is too short".to_owned()));
    };
    if *schema != SCHEMA {
        return Err(corrupt(format!("its schema is {schema}, and this version reads {SCHEMA}")));
    }
    if u32::from_be_bytes(*crc) != checksum(key, body) {
        return Err(corrupt("its checksum does not match".to_owned()));
    }
    serde_json::from_slice(body).map_err(|error| corrupt(error.to_string()))
}

/// The write of the meta entry.
pub(crate) fn write_meta(meta: &Meta) -> Result<Write, StoreError> {
    let key = vec![META];
    let value = seal(&key, meta)?;
    Ok((key, Some(value)))
}

/// The writes of changes that are stored together. `after` is the allocator with all of them
/// applied: what several of them touch is written once.
pub(crate) fn writes(
    changes: &[Change],
    after: &Allocator,
    boot_id: &str,
) -> Result<Vec<Write>, StoreError> {
    let mut batch = Vec::new();
    let mut blocks = BTreeMap::new();
    let mut is_numbered = false;
    for change in changes {
        match change {
            Change::Assign(record) => {
                is_numbered = true;
                let stored =
                    StoredRecord { boot_id: Cow::Borrowed(boot_id), record: Cow::Borrowed(record) };
                for address in &record.addresses {
                    let key = record_key(*address);
                    let value = seal(&key, &stored)?;
                    batch.push((key, Some(value)));
                }
            }
            Change::Release(record) => {
                batch.extend(record.addresses.iter().map(|address| (record_key(*address), None)));
            }
            Change::RemoveBlock(block) => batch.push((block_key(*block), None)),
            Change::Block(..) => {}
        }
        blocks.extend(after.touched(change).into_iter().map(|state| (state.block, state)));
    }
    if is_numbered {
        let boot_id = boot_id.to_owned();
        batch.push(write_meta(&Meta { boot_id, sequence: after.sequence() })?);
    }
    // Behind the removals: one that was removed and is there again stays.
    for (block, state) in blocks {
        let key = block_key(block);
        let value = seal(&key, state)?;
        batch.push((key, Some(value)));
    }
    Ok(batch)
}

/// Reads everything, and checks that blocks and records agree: a rollback of one without the
/// other leaves every checksum right.
pub(crate) fn read(entries: &[Entry], boot_id: &str) -> Result<Contents, StoreError> {
    let mut contents = Contents::default();
    for (key, value) in entries {
        match key.first() {
            Some(&META) => contents.meta = unseal(key, value)?,
            Some(&BLOCK) => contents.blocks.push(unseal(key, value)?),
            Some(&RECORD) => {
                let stored: StoredRecord<'_> = unseal(key, value)?;
                let first = stored.record.addresses.first().map(|address| record_key(*address));
                // The namespaces of another boot are gone. A record of two families has an entry
                // for each address; the first one counts.
                if stored.boot_id == boot_id && first.as_ref() == Some(key) {
                    contents.records.push(stored.record.into_owned());
                }
            }
            _ => {
                return Err(StoreError::Corrupt {
                    key: key.escape_ascii().to_string(),
                    why: "it is of no kind that this version writes".to_owned(),
                });
            }
        }
    }
    // It is written first, and never removed. Without it the rest would be taken for another boot's.
    if contents.meta.boot_id.is_empty() && !entries.is_empty() {
        return Err(StoreError::Corrupt {
            key: char::from(META).to_string(),
            why: "it is missing, and others are there".to_owned(),
        });
    }
    if !contents.meta.boot_id.is_empty() && contents.meta.boot_id != boot_id {
        // Every namespace of that boot is gone. The blocks come again from the claims.
        contents.blocks.clear();
        return Ok(contents);
    }
    check(&contents)?;
    Ok(contents)
}

fn check(contents: &Contents) -> Result<(), StoreError> {
    for state in &contents.blocks {
        let inside = contents
            .records
            .iter()
            .flat_map(|record| &record.addresses)
            .filter(|address| state.block.prefix().contains(**address));
        let mut count = 0;
        for address in inside {
            count += 1;
            if !state.block.offset_of(*address).is_some_and(|offset| state.is_used(offset)) {
                return Err(StoreError::Corrupt {
                    key: state.block.to_string(),
                    why: format!("it has {address} as free, and a record has it as in use"),
                });
            }
        }
        if count != usize::from(state.used()) {
            return Err(StoreError::Corrupt {
                key: state.block.to_string(),
                why: format!("it counts {} in use, and {count} have a record", state.used()),
            });
        }
    }
    Ok(())
}
