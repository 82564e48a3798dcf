/// One document of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Document<'a> {
    /// Its text, with the `---` line that starts it, if one does.
    pub(crate) text: &'a str,
    /// The line of the file that its first line is, from 1.
    pub(crate) line: u32,
}

impl Document<'_> {
    /// Whether its first line is a `---`.
    pub(crate) fn starts_with_marker(&self) -> bool {
        is_marker(self.text, "---")
    }

    /// Whether it holds nothing but comments and markers.
    pub(crate) fn is_empty(&self) -> bool {
        let is_blank = |line: &str| line.trim().is_empty() || line.starts_with('#');
        self.body().is_some_and(|body| body.lines().all(is_blank))
    }

    /// Its text without markers, comments included. `None` if it has directives or content on the
    /// line of a marker, and so cannot stand behind another document.
    pub(crate) fn body(&self) -> Option<String> {
        let mut body = String::new();
        for line in self.text.split_inclusive('\n') {
            if is_marker(line, "---") || is_marker(line, "...") {
                let rest = line[3..].trim_start();
                (rest.is_empty() || rest.starts_with('#')).then_some(())?;
            } else if line.starts_with('%') {
                return None;
            } else {
                body.push_str(line);
            }
        }
        Some(body)
    }
}

/// Cuts a file at its document markers, so that what is wrong in one document cannot hide the
/// next. YAML 1.2 forbids `---` and `...` at the start of a line anywhere inside a document, block
/// scalars and quoted texts included, so looking at line starts is enough. The texts, put together
/// again, are the file.
pub(crate) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let mut at = 0;
    let mut ended = false;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let starts = is_marker(line, "---");
        // Comments and directives above a marker belong to the document below it.
        if at > start && (ended || (starts && !is_prologue(&text[start..at]))) {
            documents.push(Document { text: &text[start..at], line: start_line });
            (start, start_line) = (at, number);
        }
        ended = is_marker(line, "...");
        at += line.len();
    }
    if at > start {
        documents.push(Document { text: &text[start..], line: start_line });
    }
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\n', '\r']))
}

fn is_prologue(text: &str) -> bool {
    text.lines().all(|line| line.trim().is_empty() || line.starts_with(['#', '%']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_stand_anywhere() {
        for (text, body) in [
            ("a: 1\n", Some("a: 1\n")),
            ("# c\n---\na: 1\n...\n", Some("# c\na: 1\n")),
            ("--- # c\na: 1", Some("a: 1")),
            ("--- {a: 1}\n", None),
            ("%YAML 1.2\n---\na: 1\n", None),
        ] {
            assert_eq!(Document { text, line: 1 }.body().as_deref(), body, "{text:?}");
        }
        assert!(Document { text: "---\n# c\n\n", line: 1 }.is_empty());
        assert!(!Document { text: "---\na: 1\n", line: 1 }.is_empty());
    }

    #[test]
    fn cuts_at_markers() {
        for (text, expected) in [
            ("", vec![]),
            ("a: 1\n", vec![(1, "a: 1\n")]),
            ("a: 1\n---\nb: 2", vec![(1, "a: 1\n"), (2, "---\nb: 2")]),
            ("---\na: 1\n--- # c\nb: 2\n", vec![(1, "---\na: 1\n"), (3, "--- # c\nb: 2\n")]),
            ("# c\n%YAML 1.2\n---\na: 1\n", vec![(1, "# c\n%YAML 1.2\n---\na: 1\n")]),
            ("a: 1\n...\nb: 2\n", vec![(1, "a: 1\n...\n"), (3, "b: 2\n")]),
            ("a: |\n  ---\nb: '---x'\n---x\n", vec![(1, "a: |\n  ---\nb: '---x'\n---x\n")]),
            ("a: 1\r\n---\r\nb: 2\r\n", vec![(1, "a: 1\r\n"), (2, "---\r\nb: 2\r\n")]),
        ] {
            let documents: Vec<_> = split(text).iter().map(|d| (d.line, d.text)).collect();
            assert_eq!(documents, expected, "{text:?}");
        }
    }
}
