use std::{collections::BTreeMap, io, path::Path};

use serde::{Deserialize, Serialize};
use twill_types::{Block, Dedication};

use super::{
    FileError, STATUS, failed, make_directory, read_text, remove_file, replace_file,
    status::entries,
};

/// The name says no kind, so that it is never taken for what is said about an object.
const FILE: &str = "ipam.json";

/// How full the blocks of one node are, as it says itself: the file `status/<node>/ipam.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFill {
    /// The node.
    pub node: String,
    /// Since when the numbers are these, RFC 3339.
    pub since: String,
    /// Its blocks, in order.
    pub blocks: Vec<BlockFill>,
}

/// How full one block is. The five numbers make up its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BlockFill {
    /// The block.
    // Only nodes write it, so no rule is looked at for each.
    #[cfg_attr(feature = "schema", schemars(with = "String", length(min = 1, max = 43)))]
    pub block: Block,
    /// Its pool.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub pool: String,
    /// How many addresses it has.
    pub size: u32,
    /// Addresses in use.
    pub used: u32,
    /// Addresses that can be given out now.
    pub free: u32,
    /// Addresses that were in use until lately.
    pub cooling: u32,
    /// Addresses that nobody gets.
    pub reserved: u32,
    /// Addresses in parts that other nodes have.
    #[serde(default)]
    pub lent: u32,
    /// The network of another main plugin that it is set aside for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Dedication>"))]
    pub dedication: Option<Dedication>,
}

/// Writes what a node says of its blocks.
pub fn write_fill(directory: &Path, fill: &NodeFill) -> Result<(), FileError> {
    let directory = directory.join(STATUS).join(&fill.node);
    make_directory(&directory)?;
    let path = directory.join(FILE);
    let mut text = serde_json::to_string_pretty(fill)
        .map_err(io::Error::from)
        .map_err(failed("write", &path))?;
    text.push('\n');
    replace_file(&path, text.as_bytes())
}

/// What a node says of its blocks; `None` if it says nothing, or nothing that can be read: it writes
/// that again.
pub fn read_fill(directory: &Path, node: &str) -> Option<NodeFill> {
    let text = read_text(&directory.join(STATUS).join(node).join(FILE)).ok()?;
    serde_json::from_str(&text).ok().filter(|fill: &NodeFill| fill.node == node)
}

/// Removes what a node says of its blocks; tells whether it said anything.
pub fn remove_fill(directory: &Path, node: &str) -> Result<bool, FileError> {
    remove_file(&directory.join(STATUS).join(node).join(FILE))
}

/// What all nodes say of their blocks, by node.
pub fn read_fills(directory: &Path) -> Result<BTreeMap<String, NodeFill>, FileError> {
    let nodes = entries(&directory.join(STATUS))?;
    let names = nodes.iter().filter_map(|path| path.file_name()?.to_str());
    let fill = |name: &str| Some((name.to_owned(), read_fill(directory, name)?));
    Ok(names.filter_map(fill).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::read_statuses;

    #[test]
    fn what_nodes_say_of_their_blocks_is_no_condition() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(read_fills(root.path()).unwrap().len(), 0);
        let block = BlockFill {
            block: "10.10.0.64/26".parse().unwrap(),
            pool: "a".into(),
            size: 64,
            used: 3,
            free: 58,
            cooling: 2,
            reserved: 1,
            lent: 0,
            dedication: None,
        };
        let since = "2026-11-24T12:00:00Z".to_owned();
        let fill = NodeFill { node: "node1".into(), since, blocks: vec![block] };
        write_fill(root.path(), &fill).unwrap();
        write_fill(root.path(), &fill).unwrap();
        assert_eq!(read_fill(root.path(), "node1").unwrap(), fill);
        assert_eq!(read_fills(root.path()).unwrap()["node1"], fill);
        assert_eq!(read_statuses(root.path()).unwrap().len(), 0);
        // A copy under the name of another node is not what that one says.
        std::fs::create_dir(root.path().join("status/node2")).unwrap();
        let files = ["status/node1/ipam.json", "status/node2/ipam.json"];
        std::fs::copy(root.path().join(files[0]), root.path().join(files[1])).unwrap();
        std::fs::write(root.path().join(files[0]), "{").unwrap();
        assert_eq!(read_fills(root.path()).unwrap().len(), 0);
        assert!(remove_fill(root.path(), "node1").unwrap());
        assert!(!remove_fill(root.path(), "node1").unwrap());
    }
}
