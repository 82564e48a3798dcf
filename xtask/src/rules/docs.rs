//! Whether the documents still describe the tree.

use std::collections::BTreeSet;

use crate::{
    finding::Finding,
    metadata::Workspace,
    tree::{File, Tree},
};

const ADR_INDEX: &str = "docs/adr/README.md";

/// The pages with tables that name tests, and what such columns are called.
const PAGES_WITH_TESTS: [&str; 2] = ["docs/complaints.md", "docs/bgp.md"];
const TEST_COLUMNS: [&str; 5] = ["Test", "BIRD", "FRR", "GoBGP", "OpenBGPD"];

/// The pages that print a file of the tree for their readers, and that file.
const PRINTED: [(&str, &str); 1] = [("docs/cni.md", "conf/cni/05-twill.conflist")];

const ARCHITECTURE: &str = "ARCHITECTURE.md";

/// The section of ARCHITECTURE.md whose table has one row per crate: folder, ..., and in the
/// column of this name the members that it is built from.
const CODE_MAP: &str = "## Code map";
const DEPENDS: &str = "Built on";

pub(super) fn check(tree: &Tree, workspace: &Workspace) -> Vec<Finding> {
    let mut findings = decisions(tree);
    findings.extend(code_map(tree, workspace));
    findings.extend(named_tests(tree));
    findings.extend(printed(tree));
    findings.extend(tree.files().iter().flat_map(|file| links(tree, file)));
    findings
}

/// Every decision is listed.
fn decisions(tree: &Tree) -> Vec<Finding> {
    let index = tree.get(ADR_INDEX).map_or("", |file| &file.text);
    tree.files()
        .iter()
        .filter_map(|file| Some((file, file.path.strip_prefix("docs/adr/")?)))
        .filter(|(_, name)| name.starts_with(|c: char| c.is_ascii_digit()))
        .filter(|(_, name)| !index.contains(&format!("]({name})")))
        .map(|(file, name)| {
            let what = format!("{name} is not listed in {ADR_INDEX}");
            Finding::error(&file.path, 1, what, "add a line with a link to it")
        })
        .collect()
}

/// Each row of these pages' tables names tests that there are.
fn named_tests(tree: &Tree) -> Vec<Finding> {
    let pages = PAGES_WITH_TESTS.iter().filter_map(|page| tree.get(page));
    pages.flat_map(|page| page_tests(tree, page)).collect()
}

fn page_tests(tree: &Tree, page: &File) -> Vec<Finding> {
    let is_test = |name: &str| {
        let name = name.rsplit("::").next().unwrap_or(name);
        // One for several peers has a parameter of its own.
        let functions = [format!("fn {name}("), format!("fn {name}<")];
        let has = |file: &File| functions.iter().any(|function| file.text.contains(function));
        tree.files().iter().any(|file| file.path.ends_with(".rs") && has(file))
    };
    let mut findings = Vec::new();
    let mut columns: Option<Vec<usize>> = None;
    for (number, line) in page.lines() {
        let Some(cells) = cells(line) else {
            columns = None;
            continue;
        };
        // The first line of a table says where its tests are.
        let Some(columns) = &columns else {
            let of_tests = |(_, title): &(usize, &&str)| TEST_COLUMNS.contains(*title);
            columns = Some(cells.iter().enumerate().filter(of_tests).map(|(i, _)| i).collect());
            continue;
        };
        if columns.is_empty() || cells[0].starts_with('-') {
            continue;
        }
        let tests: BTreeSet<&str> =
            columns.iter().filter_map(|column| cells.get(*column)).flat_map(|c| names(c)).collect();
        if tests.is_empty() {
            findings.push(Finding::error(&page.path, number, "a row without a test", "name one"));
        }
        findings.extend(tests.into_iter().filter(|name| !is_test(name)).map(|name| {
            let what = format!("there is no test {name}");
            Finding::error(&page.path, number, what, "name one that there is")
        }));
    }
    findings
}

/// What a page prints of a file is the file.
fn printed(tree: &Tree) -> Vec<Finding> {
    let pages = PRINTED.iter().filter_map(|(page, path)| Some((tree.get(page)?, tree.get(path)?)));
    pages
        .filter(|(page, file)| !page.text.contains(&format!("```json\n{}```\n", file.text)))
        .map(|(page, file)| {
            let what = format!("it does not print {} as it is", file.path);
            let line = page.line_of(&file.path);
            Finding::error(&page.path, line, what, "copy the file into the block of code")
        })
        .collect()
}

/// A relative link of a Markdown file leads to a file or a folder of the tree.
fn links(tree: &Tree, file: &File) -> Vec<Finding> {
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut findings = Vec::new();
    for (number, line) in file.lines() {
        for target in line.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let path = resolve(folder, target);
            let inside = format!("{path}/");
            let exists = |f: &File| f.path == path || f.path.starts_with(&inside);
            if !tree.files().iter().any(exists) {
                let what = format!("the link to {target} leads nowhere");
                findings.push(Finding::error(&file.path, number, what, "correct or remove it"));
            }
        }
    }
    findings
}

fn resolve(folder: &str, target: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The crate table is what `cargo metadata` says.
fn code_map(tree: &Tree, workspace: &Workspace) -> Vec<Finding> {
    let Some(file) = tree.get(ARCHITECTURE) else {
        let what = "there is no map of the code";
        return vec![Finding::error(ARCHITECTURE, 1, what, "write one")];
    };
    let mut findings = Vec::new();
    let mut seen = BTreeSet::new();
    let mut column = None;
    let section = file.lines().skip_while(|(_, line)| *line != CODE_MAP).skip(1);
    for (number, line) in section.take_while(|(_, line)| !line.starts_with("## ")) {
        let Some(cells) = cells(line) else { continue };
        column = column.or_else(|| cells.iter().position(|cell| *cell == DEPENDS));
        let Some(folder) = names(cells[0]).into_iter().next() else {
            continue;
        };
        let Some(member) = workspace.members.get(folder) else {
            let what = format!("there is no crate {folder}");
            findings.push(Finding::error(ARCHITECTURE, number, what, "remove the row"));
            continue;
        };
        seen.insert(folder);
        let written = column.and_then(|column| cells.get(column)).map(|cell| names(cell));
        let real = member.internal();
        if written.as_ref() != Some(&real) {
            let remedy = format!("write {}", list(&real));
            let what = format!("{folder} is not built on what the column `{DEPENDS}` says");
            findings.push(Finding::error(ARCHITECTURE, number, what, remedy));
        }
    }
    let line = file.line_of(CODE_MAP);
    findings.extend(workspace.members.iter().filter(|(f, _)| !seen.contains(f.as_str())).map(
        |(folder, member)| {
            let what = format!("{folder} has no row under `{CODE_MAP}`");
            let remedy = format!("add `{folder}/`, built on {}", list(&member.internal()));
            Finding::error(ARCHITECTURE, line, what, remedy)
        },
    ));
    findings
}

fn cells(line: &str) -> Option<Vec<&str>> {
    Some(line.strip_prefix('|')?.trim_end().strip_suffix('|')?.split('|').map(str::trim).collect())
}

/// The names in code quotes, without the slash of a folder.
fn names(cell: &str) -> BTreeSet<&str> {
    cell.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('/')).collect()
}

fn list(names: &BTreeSet<&str>) -> String {
    match names.len() {
        0 => "–".to_owned(),
        _ => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metadata::Member,
        tests::{text, tree},
    };

    fn map(rows: &str) -> String {
        let rpc = Member { dependencies: ["twill-types".to_owned()].into(), ..Member::default() };
        let members = [("rpc".to_owned(), rpc), ("types".to_owned(), Member::default())].into();
        let page = format!(
            "# A\n## Code map\n| Folder | Duty | Built on |\n|---|---|---|\n{rows}\n## Next\n| `x/` |\n"
        );
        text(&code_map(&tree(&[(ARCHITECTURE, &page)]), &Workspace { members }))
    }

    #[test]
    fn the_code_map_is_the_workspace() {
        assert_eq!(map("| `rpc/` | asks | `types` |\n| `types/` | words | – |"), "");
        let found = map("| `rpc/` | asks | – |\n| `old/` | gone | – |");
        assert_eq!(
            found,
            "ARCHITECTURE.md:5: error: rpc is not built on what the column `Built on` says; write \
             `types`\n\
             ARCHITECTURE.md:6: error: there is no crate old; remove the row\n\
             ARCHITECTURE.md:2: error: types has no row under `## Code map`; add `types/`, built \
             on –\n"
        );
    }

    #[test]
    fn decisions_are_listed() {
        let files = [
            (ADR_INDEX, "- [1](0001-a.md)\n"),
            ("docs/adr/0001-a.md", ""),
            ("docs/adr/0002-b.md", ""),
        ];
        let found = text(&decisions(&tree(&files)));
        assert!(found.starts_with("docs/adr/0002-b.md:1: error"), "{found}");
        assert_eq!(found.lines().count(), 1, "{found}");
    }

    #[test]
    fn rows_have_tests() {
        let complaints =
            "| There | Why | Test |\n|---|---|---|\n| a | b | `real`, `gone` |\n| c | d | – |\n";
        let bgp = "| RFC | Where | Test | Deviation |\n|---|---|---|---|\n| 1 | `x.rs` | `real` | none |\n\n\
                   | Row | BIRD | FRR | OpenBGPD |\n|---|---|---|---|\n\
                   | a | `m::bird::each` | `m::frr::gone` | `m::openbgpd::gone_too` |\n\n\
                   | Other | Table |\n|---|---|\n| a | `b` |\n";
        let files = [
            ("docs/complaints.md", complaints),
            ("docs/bgp.md", bgp),
            ("a.rs", "fn real() {}\nfn each<R: Router>() {}\n"),
        ];
        assert_eq!(
            text(&named_tests(&tree(&files))),
            "docs/complaints.md:3: error: there is no test gone; name one that there is\n\
             docs/complaints.md:4: error: a row without a test; name one\n\
             docs/bgp.md:7: error: there is no test m::frr::gone; name one that there is\n\
             docs/bgp.md:7: error: there is no test m::openbgpd::gone_too; name one that there is\n"
        );
    }

    #[test]
    fn what_is_printed_is_the_file() {
        let [(page, path)] = PRINTED;
        let shown = |block: &str| {
            let lines = format!("# A\n[it]({path}):\n\n```json\n{block}```\n");
            text(&printed(&tree(&[(page, &lines), (path, "{\n}\n")])))
        };
        assert_eq!(shown("{\n}\n"), "");
        assert_eq!(
            shown("{}\n"),
            format!(
                "{page}:2: error: it does not print {path} as it is; copy the file into the block \
                 of code\n"
            )
        );
    }

    #[test]
    fn links_lead_somewhere() {
        let page = "[a](../README.md) [b](adr/)\n[c](missing.md#x) [d](https://x.org) [e](#here)\n";
        let tree = tree(&[("docs/x.md", page), ("README.md", ""), ("docs/adr/0001-a.md", "")]);
        let found = text(&links(&tree, tree.get("docs/x.md").unwrap()));
        assert_eq!(
            found,
            "docs/x.md:2: error: the link to missing.md leads nowhere; correct or remove it\n"
        );
    }
}
