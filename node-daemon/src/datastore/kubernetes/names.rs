//! Claims of a cluster in few words: which blocks, and whose.
//!
//! What a server keeps about an object (who wrote which field when) is longer than its name, so a list of
//! 40,000 has tens of megabytes even without their specs. As a table, which is what kubectl asks for, it
//! has about four. It is not read in pages: the API server makes none of what it has in memory (a limit has no effect at resourceVersion 0),
//! and a page that it reads from its storage costs it more than the whole out of memory.

use kube::{
    Resource,
    api::ListParams,
    core::{DynamicObject, Request},
};
use serde::Deserialize;
use serde_json::Value;
use twill_types::{Block, Family};

use super::{
    access::{Access, ApiError},
    labels,
    subject::BLOCK_AFFINITIES,
};

/// How new a list has to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    /// As the API server has it in memory. It may be behind by a moment.
    Any,
    /// With everything that was written before it was asked for.
    Newest,
}

/// Which claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// All that there are.
    All,
    /// Those that may share addresses with a block of this family and prefix length although they have other
    /// names: where all pools have blocks of one size, none, however many claims there are.
    OfOtherSizes(Family, u8),
}

impl Which {
    /// The label selector; a claim without these labels is always meant, as its size is not known.
    fn selector(self) -> Option<String> {
        let Self::OfOtherSizes(family, length) = self else { return None };
        let [own, other] = match family {
            Family::V4 => [labels::key(Family::V4), labels::key(Family::V6)],
            Family::V6 => [labels::key(Family::V6), labels::key(Family::V4)],
        };
        Some(format!("{own}!={length},!{other}"))
    }
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) block: Block,
    pub(super) node: String,
    pub(super) pool: String,
}

/// A table, as the API server makes it out of the definition's columns.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    column_definitions: Vec<Column>,
    rows: Vec<Row>,
}

#[derive(Debug, Deserialize)]
struct Column {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Row {
    cells: Vec<Value>,
}

/// Lists claims.
pub(super) fn list(access: &Access, which: Which, age: Age) -> Result<Vec<Listed>, ApiError> {
    let what = "blockaffinities";
    let request = request(which, age).map_err(|source| ApiError::Request {
        verb: "list",
        what: what.to_owned(),
        source,
    })?;
    let client = access.client();
    let table = access.ask("list", what, client.request::<Table>(request))?;
    Ok(read(&table))
}

fn request(
    which: Which,
    age: Age,
) -> Result<axum::http::Request<Vec<u8>>, Box<dyn std::error::Error + Send + Sync>> {
    const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let path = DynamicObject::url_path(&BLOCK_AFFINITIES.resource(), None);
    let mut params = match age {
        Age::Any => ListParams::default().match_any(),
        Age::Newest => ListParams::default(),
    };
    params.label_selector = which.selector();
    let mut request = Request::new(path).list(&params)?;
    // The rows without the objects that they are made of.
    *request.uri_mut() = format!("{}&includeObject=None", request.uri()).parse()?;
    request.headers_mut().insert("accept", TABLE.parse()?);
    Ok(request)
}

/// Whatever has the name of a claim counts as one.
fn read(table: &Table) -> Vec<Listed> {
    let column = |name: &str| table.column_definitions.iter().position(|found| found.name == name);
    let (name, node, pool) = (column("Name"), column("Node"), column("Pool"));
    let text = |row: &Row, column: Option<usize>| {
        column.and_then(|column| row.cells.get(column)?.as_str()).unwrap_or_default().to_owned()
    };
    let claim = |row: &Row| {
        let block = Block::from_claim_name(&text(row, name)).ok()?;
        Some(Listed { block, node: text(row, node), pool: text(row, pool) })
    };
    table.rows.iter().filter_map(claim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_asked_for_as_a_table_without_objects() {
        let cached = request(Which::All, Age::Any).unwrap();
        let path = "/apis/projectcalico.org/v3/blockaffinities?";
        assert!(cached.uri().to_string().starts_with(path), "{}", cached.uri());
        assert!(cached.uri().to_string().contains("resourceVersion=0"), "{}", cached.uri());
        assert!(cached.uri().to_string().ends_with("includeObject=None"), "{}", cached.uri());
        let newest = request(Which::All, Age::Newest).unwrap();
        assert!(!newest.uri().to_string().contains("resourceVersion"), "{}", newest.uri());
        assert!(newest.headers()["accept"].to_str().unwrap().contains("as=Table"));
        assert!(!newest.uri().to_string().contains("labelSelector"), "{}", newest.uri());
    }

    #[test]
    fn claims_of_the_same_size_are_not_listed_where_others_are_looked_for() {
        let selector = |block: &str| {
            let block: Block = block.parse().unwrap();
            let prefix = block.prefix();
            Which::OfOtherSizes(prefix.family(), prefix.length()).selector().unwrap()
        };
        let [v4, v6] = ["ipv4", "ipv6"].map(|f| format!("twill.projectcalico.org/{f}-block-size"));
        assert_eq!(selector("10.0.0.0/26"), format!("{v4}!=26,!{v6}"));
        assert_eq!(selector("fd00::/122"), format!("{v6}!=122,!{v4}"));
        let request = request(Which::OfOtherSizes(Family::V4, 26), Age::Any).unwrap();
        assert!(request.uri().to_string().contains("labelSelector=twill"), "{}", request.uri());
    }

    #[test]
    fn rows_are_read_by_the_names_of_columns() {
        let table = serde_json::from_value(serde_json::json!({
            "columnDefinitions": [{"name": "Name"}, {"name": "CIDR"}, {"name": "Node"},
                                  {"name": "Pool"}, {"name": "Age"}],
            "rows": [
                {"cells": ["0a000000-26", "10.0.0.0/26", "node1", "a", "1d"], "object": null},
                {"cells": ["somebodys-own", "10.0.0.64/26", "node1", "a", "1d"]},
                {"cells": ["0a000080-26", "10.0.0.128/26", "node2", null, "1d"]},
            ],
        }))
        .unwrap();
        let found = read(&table);
        let names: Vec<_> = found.iter().map(|c| (c.block.to_string(), c.node.as_str())).collect();
        let expected = [("10.0.0.0/26".to_owned(), "node1"), ("10.0.0.128/26".to_owned(), "node2")];
        assert_eq!(names, expected);
        assert_eq!((found[0].pool.as_str(), found[1].pool.as_str()), ("a", ""));
    }
}
