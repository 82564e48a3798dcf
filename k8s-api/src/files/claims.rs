use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use twill_types::{Block, Dedication};

use super::{CLAIMS, FileError, manifest_names, read_text};
use crate::{
    API_VERSION, AffinityState, AffinityType, BlockAffinity, BlockAffinitySpec, Delegation, Kind,
    Metadata, Problem, Resource, Severity, load::read_own,
};

/// That a node owns a block. Its file `claims/<claim name>.yaml` is a BlockAffinity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The block.
    pub block: Block,
    /// The node that owns it.
    pub node: String,
    /// The pool it was taken from.
    pub pool: String,
    /// The network of another main plugin that it is set aside for.
    pub dedication: Option<Dedication>,
    /// Parts of it that other nodes have.
    pub delegations: Vec<Delegation>,
    /// What tells it from an earlier claim of the same block.
    pub uid: String,
    /// When it was made, RFC 3339.
    pub created: String,
}

impl Claim {
    /// The manifest that states it.
    pub fn to_manifest(&self) -> BlockAffinity {
        BlockAffinity {
            api_version: API_VERSION.to_owned(),
            kind: Kind::BlockAffinity.manifest_name().to_owned(),
            metadata: Metadata {
                name: self.block.claim_name(),
                uid: Some(self.uid.clone()),
                creation_timestamp: Some(self.created.clone()),
                ..Metadata::default()
            },
            spec: BlockAffinitySpec {
                state: AffinityState::Confirmed,
                node: self.node.clone(),
                affinity_type: Some(AffinityType::Host),
                cidr: self.block,
                pool: Some(self.pool.clone()),
                dedication: self.dedication.clone(),
                delegations: self.delegations.clone(),
                deleted: false,
            },
            status: None,
        }
    }

    /// The text of its file.
    pub fn to_yaml(&self) -> Result<String, FileError> {
        Ok(Resource::BlockAffinity(self.to_manifest()).to_yaml()?)
    }

    /// Its file below the datastore's directory.
    pub fn file_name(block: Block) -> String {
        format!("{}.yaml", block.claim_name())
    }

    /// Reads a manifest, YAML or JSON, or says what is wrong with it.
    pub fn from_text(text: &str) -> Result<Self, String> {
        read_own::<BlockAffinity>(text).and_then(Self::from_manifest)
    }

    fn from_manifest(manifest: BlockAffinity) -> Result<Self, String> {
        let name = manifest.spec.cidr.claim_name();
        if manifest.metadata.name != name {
            return Err(format!("spec.cidr is the block {name}, but metadata.name is another"));
        }
        Ok(Self {
            block: manifest.spec.cidr,
            node: manifest.spec.node,
            pool: manifest.spec.pool.ok_or("spec.pool is missing")?,
            dedication: manifest.spec.dedication,
            delegations: manifest.spec.delegations,
            uid: manifest.metadata.uid.ok_or("metadata.uid is missing")?,
            created: manifest.metadata.creation_timestamp.unwrap_or_default(),
        })
    }
}

/// All claims of a datastore.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claims {
    /// Those that can be read, by block.
    pub claims: BTreeMap<Block, Claim>,
    /// Those that are there and cannot be read. Whose they are is not known.
    pub damaged: BTreeSet<Block>,
    /// What is wrong with the others; their blocks are nobody's and cannot be claimed.
    pub problems: Vec<Problem>,
}

/// Reads the claim of a block out of `<directory>/claims/`; `None` when nobody claims it.
pub fn read_claim(directory: &Path, block: Block) -> Result<Option<Claim>, FileError> {
    let path = directory.join(CLAIMS).join(Claim::file_name(block));
    let text = match read_text(&path) {
        Ok(text) => text,
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    Claim::from_text(&text)
        .and_then(|claim| {
            if claim.block == block { Ok(claim) } else { Err(format!("claims {}", claim.block)) }
        })
        .map(Some)
        .map_err(|message| FileError::Damaged { path, message })
}

/// Reads all claims in `<directory>/claims/`, which need not exist.
pub fn read_claims(directory: &Path) -> Result<Claims, FileError> {
    let mut all = Claims::default();
    for file in claim_files(directory)? {
        let path = directory.join(CLAIMS).join(&file);
        let complain = |message: String| {
            Problem::of_file(Severity::Error, path.display().to_string(), message)
        };
        match claim_block(&file) {
            None => all.problems.push(complain(
                "is not named like a claim, such as 0a0a0040-26.yaml; remove it".to_owned(),
            )),
            Some(block) => match read_claim(directory, block) {
                // Released since it was listed.
                Ok(None) => {}
                Ok(Some(claim)) => drop(all.claims.insert(block, claim)),
                Err(error) => {
                    all.damaged.insert(block);
                    all.problems.push(complain(error.to_string()));
                }
            },
        }
    }
    Ok(all)
}

/// The files in `<directory>/claims/`, which need not exist.
fn claim_files(directory: &Path) -> Result<Vec<String>, FileError> {
    match manifest_names(&directory.join(CLAIMS)) {
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        other => other,
    }
}

/// The block that a claim's file name stands for.
pub fn claim_block(file_name: &str) -> Option<Block> {
    Block::from_claim_name(file_name.strip_suffix(".yaml")?).ok()
}

/// The blocks that have a claim, whether it can be read or not: their names are enough.
pub fn claimed_blocks(directory: &Path) -> Result<Vec<Block>, FileError> {
    Ok(claim_files(directory)?.iter().filter_map(|file| claim_block(file)).collect())
}
