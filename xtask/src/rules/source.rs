//! Sizes and forms of the Rust code.

use crate::{
    finding::Finding,
    metadata::Workspace,
    tree::{File, Tree},
};

/// Lines of a file from which on it should be split, and those it may not pass.
const FILE_SOFT: usize = 400;
const FILE_HARD: usize = 700;

/// Lines that a function may not reach, signature and closing brace included.
const FUNCTION: usize = 80;

/// Lines of a program's root file: it parses, calls its library and exits.
const MAIN: usize = 30;

pub(super) fn check(tree: &Tree, workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.rust() {
        findings.extend(unfinished(file));
        if !file.is_test() {
            findings.extend(test_only(file));
            let code = Code::of(file);
            findings.extend(file_size(file, &code));
            findings.extend(functions(file, &code));
        }
    }
    let programs = workspace.members.values().flat_map(|member| &member.programs);
    findings.extend(programs.filter_map(|path| main_size(tree.get(path)?)));
    findings
}

/// The lines of a file that are not in its `mod tests`.
struct Code<'a>(Vec<(usize, &'a str)>);

impl<'a> Code<'a> {
    fn of(file: &'a File) -> Self {
        let mut lines = Vec::new();
        let mut test_end: Option<String> = None;
        let mut attribute = None;
        for (number, line) in file.lines() {
            if let Some(end) = &test_end {
                if line == end {
                    test_end = None;
                }
                continue;
            }
            if line.trim() == TEST_ATTRIBUTE {
                attribute = Some((number, line));
                continue;
            }
            if attribute.take().is_some() && line.trim_start().starts_with("mod tests {") {
                test_end = Some(format!("{}}}", indentation(line)));
                continue;
            }
            lines.push((number, line));
        }
        Self(lines)
    }
}

const TEST_ATTRIBUTE: &str = "#[cfg(test)]";

fn indentation(line: &str) -> &str {
    line.split_at(line.len() - line.trim_start().len()).0
}

fn file_size(file: &File, code: &Code<'_>) -> Option<Finding> {
    let lines = code.0.len();
    let what = format!("{lines} lines without tests");
    let finding =
        |limit| Finding::error(&file.path, 1, what, format!("split it by concept below {limit}"));
    if lines > FILE_HARD {
        Some(finding(FILE_HARD))
    } else {
        (lines > FILE_SOFT).then(|| finding(FILE_SOFT).into_note())
    }
}

fn main_size(file: &File) -> Option<Finding> {
    let lines = file.text.lines().count();
    let counts = file.path.ends_with("/main.rs") && lines > MAIN;
    counts.then(|| {
        let what = format!("{lines} lines, {MAIN} are allowed in a program's root file");
        Finding::error(&file.path, 1, what, "move the work into the library beside it")
    })
}

/// In formatted code the first line at the indentation of `fn` that ends with `{` opens the body,
/// and the first that is only `}` closes it.
fn functions(file: &File, code: &Code<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, &(start, line)) in code.0.iter().enumerate() {
        let Some(name) = function_name(line) else {
            continue;
        };
        let indentation = indentation(line);
        let mut level = code.0[index..].iter().filter(|(_, line)| {
            line.strip_prefix(indentation).is_some_and(|rest| !rest.starts_with([' ', '\t']))
        });
        let signature_end = level.find(|(_, line)| line.ends_with(['{', '}', ';']));
        if !signature_end.is_some_and(|(_, line)| line.ends_with('{')) {
            continue;
        }
        let Some((end, _)) = level.find(|(_, line)| line.trim_start() == "}") else {
            continue;
        };
        let lines = end - start + 1;
        if lines >= FUNCTION {
            findings.push(Finding::error(
                &file.path,
                start,
                format!("fn {name} has {lines} lines, fewer than {FUNCTION} are allowed"),
                "split it by what it does",
            ));
        }
    }
    findings
}

fn function_name(line: &str) -> Option<&str> {
    let mut rest = line.trim_start();
    if let Some(visible) = rest.strip_prefix("pub") {
        rest = match visible.strip_prefix('(') {
            Some(scope) => scope.split_once(") ")?.1,
            None => visible.strip_prefix(' ')?,
        };
    }
    loop {
        if let Some(name) = rest.strip_prefix("fn ") {
            return name.split(|c: char| !c.is_alphanumeric() && c != '_').next();
        }
        let (word, after) = rest.split_once(' ')?;
        if !matches!(word, "const" | "async" | "unsafe" | "extern") && !word.starts_with('"') {
            return None;
        }
        rest = after;
    }
}

/// Code that only tests see belongs into `mod tests`: what ships is what is tested.
fn test_only(file: &File) -> Vec<Finding> {
    let lines: Vec<(usize, &str)> = file.lines().collect();
    let mut findings = Vec::new();
    for (index, &(number, line)) in lines.iter().enumerate() {
        let opens_tests = line.trim() == TEST_ATTRIBUTE
            && lines[index + 1..]
                .iter()
                .find(|(_, next)| !next.trim_start().starts_with("#["))
                .is_some_and(|(_, next)| next.trim_start().starts_with("mod "));
        if depends_on_test(line) && !opens_tests {
            findings.push(Finding::error(
                &file.path,
                number,
                "product code that differs under test",
                "move it into `mod tests`, or make it an argument",
            ));
        }
    }
    findings
}

/// Whether a line is an attribute or a macro call whose condition has the word `test`.
fn depends_on_test(line: &str) -> bool {
    let attribute = line.trim_start().trim_start_matches('#').trim_start_matches('!');
    let condition = match attribute.strip_prefix("[cfg") {
        Some(rest) => rest,
        None => match line.split_once(concat!("cfg", "!(")) {
            Some((_, rest)) => rest,
            None => return false,
        },
    };
    let condition = condition.split(']').next().unwrap_or_default();
    condition.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "test")
}

/// Marks of work that was put off.
fn unfinished(file: &File) -> Vec<Finding> {
    let marks = [
        (concat!("#[ign", "ore"), "a test that does not run proves nothing: repair or delete it"),
        (concat!("tod", "o!("), "finish it"),
        (concat!("unimple", "mented!("), "finish it"),
        (concat!("TO", "DO"), "finish it, or say what is and why"),
        (concat!("FIX", "ME"), "finish it, or say what is and why"),
    ];
    file.lines()
        .flat_map(|(number, line)| {
            marks.iter().filter(move |(mark, _)| line.contains(mark)).map(move |(mark, remedy)| {
                Finding::error(&file.path, number, format!("`{mark}`"), *remedy)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metadata::Member,
        tests::{text, tree},
    };

    fn findings(path: &str, code: &str) -> String {
        let workspace = Workspace { members: std::collections::BTreeMap::new() };
        text(&check(&tree(&[(path, code)]), &workspace))
    }

    fn function(indentation: &str, lines: usize) -> String {
        let body = format!("{indentation}    x;\n").repeat(lines - 2);
        format!("{indentation}pub(crate) async fn long(a: A) -> B {{\n{body}{indentation}}}\n")
    }

    #[test]
    fn long_files_are_noted_then_refused() {
        assert_eq!(findings("a/src/b.rs", &"x\n".repeat(400)), "");
        let noted = findings("a/src/b.rs", &"x\n".repeat(401));
        assert!(noted.contains("a/src/b.rs:1: note: 401 lines"), "{noted}");
        let refused = findings("a/src/b.rs", &"x\n".repeat(701));
        assert!(refused.contains("error: 701 lines"), "{refused}");
    }

    #[test]
    fn tests_do_not_count() {
        for path in ["tests/src/kit.rs", "a/src/b/tests.rs", "a/tests/b.rs", "fuzz/a.rs"] {
            assert_eq!(findings(path, &"x\n".repeat(2000)), "", "{path}");
        }
        let inline = format!(
            "x\n#[cfg(test)]\nmod tests {{\n    use super::*;\n{}}}\n",
            function("    ", 90).repeat(10)
        );
        assert_eq!(findings("a/src/b.rs", &inline), "");
    }

    #[test]
    fn long_functions_are_found_where_they_begin() {
        assert_eq!(findings("a/src/b.rs", &function("", 79)), "");
        let found =
            findings("a/src/b.rs", &format!("// c\nimpl A {{\n{}}}\n", function("    ", 80)));
        assert_eq!(
            found,
            "a/src/b.rs:3: error: fn long has 80 lines, fewer than 80 are allowed; split it by \
             what it does\n"
        );
    }

    #[test]
    fn signatures_of_all_shapes() {
        let filler = "    x\n".repeat(100);
        for head in [
            "    fn declared(&self) -> [u8; 4];\n",
            "    fn declared(\n        a: A,\n    ) -> B;\n",
            "    fn short(&self) {}\n",
            "    let fn_pointer: fn(A) -> B = f;\n",
        ] {
            assert_eq!(findings("a/src/b.rs", &format!("{head}{filler}    }}\n")), "", "{head}");
        }
        for head in [
            "fn long<T>(\n    a: T,\n) -> B\nwhere\n    T: C,\n{\n",
            "pub const unsafe extern \"C\" fn long() {\n",
        ] {
            let found = findings("a/src/b.rs", &format!("{head}{filler}}}\n"));
            assert!(found.contains("fn long has"), "{head}{found}");
        }
    }

    #[test]
    fn product_code_is_the_same_under_test() {
        for line in [
            "#[cfg(test)]\nfn helper() {}",
            "#[cfg(not(test))]",
            "#![cfg_attr(test, allow(x))]",
            "#[cfg(any(unix, test))]",
            concat!("if cfg", "!(test) {"),
        ] {
            let found = findings("a/src/b.rs", line);
            assert!(found.contains("a/src/b.rs:1: error: product code"), "{line}: {found}");
        }
        for line in [
            "#[cfg(test)]\nmod tests;",
            "#[cfg(test)]\n#[rustfmt::skip]\nmod tests {\n}",
            "#[cfg(feature = \"watch\")]",
            "// #[cfg(test)]",
        ] {
            assert_eq!(findings("a/src/b.rs", line), "", "{line}");
        }
    }

    #[test]
    fn unfinished_work_is_found_in_tests_too() {
        let code = concat!("#[ign", "ore]\nfn a() {\n    tod", "o!()\n}\n");
        let found = findings("tests/kernel/main.rs", code);
        assert!(found.contains("tests/kernel/main.rs:1: error"), "{found}");
        assert!(found.contains("tests/kernel/main.rs:3: error"), "{found}");
    }

    #[test]
    fn programs_are_thin() {
        let program = Member { programs: vec!["a/src/main.rs".into()], ..Member::default() };
        let workspace = Workspace { members: [("a".to_owned(), program)].into() };
        let of = |lines| check(&tree(&[("a/src/main.rs", &"x\n".repeat(lines))]), &workspace);
        assert!(of(30).is_empty());
        assert!(text(&of(31)).contains("a/src/main.rs:1: error: 31 lines, 30 are allowed"));
    }
}
