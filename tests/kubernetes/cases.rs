//! What the API server takes and refuses: the cases of `k8s-api/cases`, which the reader of files
//! decides in that crate's own tests.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result, ensure};
use twill_tests::{kubernetes::ApiServer, programs};

/// One document of a file of cases.
struct Case {
    /// The field that the API server has to name, if it has to refuse it.
    refused: Option<String>,
    /// Kind and name, as kubectl prints them of a refused object.
    object: String,
    text: String,
}

impl Case {
    fn read(text: &str) -> Result<Self> {
        let verdict = text.lines().next().and_then(|line| line.strip_prefix("# "));
        let verdict = verdict.with_context(|| format!("a case without a verdict: {text}"))?;
        let field = match verdict.strip_prefix("refused ") {
            Some(rest) if rest.starts_with("by the reader ") => None,
            Some(rest) => Some(rest.strip_prefix("by the server ").unwrap_or(rest)),
            None => None,
        };
        let after = |start: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(start));
            line.with_context(|| format!("a case without `{start}`: {text}"))
        };
        Ok(Self {
            refused: field.and_then(|rest| rest.split(' ').next()).map(str::to_owned),
            object: format!(
                "{} \"{}\"",
                after("kind: ")?,
                after("metadata: {name: ")?.trim_end_matches('}')
            ),
            text: text.to_owned(),
        })
    }
}

/// Whether a complaint names a field, or a part of it.
fn names(said: &str, field: &str) -> bool {
    let mut ends = said.match_indices(field).map(|(start, _)| &said[start + field.len()..]);
    ends.any(|rest| rest.starts_with([':', '.', '[']))
}

/// Whether a rule could not be computed, which refuses an object without saying why.
fn is_broken(said: &str) -> bool {
    ["evaluating rule", "signature for rule"].iter().any(|words| said.contains(words))
}

/// What kubectl complained about, by object: one line for each.
fn complaints(text: &str) -> BTreeMap<String, String> {
    let complaint = |line: &str| {
        let (before, reasons) = line.split_once(" is invalid: ")?;
        let object = before.rsplit(": ").next()?.replace(".projectcalico.org", "");
        Some((object, reasons.to_owned()))
    };
    text.lines()
        .map(|line| complaint(line).unwrap_or_else(|| (String::new(), line.to_owned())))
        .collect()
}

pub(crate) fn the_api_server_decides_as_the_cases_say(api: &ApiServer) -> Result<()> {
    let mut faults = Vec::new();
    let directory = programs::source("k8s-api/cases");
    let files =
        fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for file in files {
        let path = file?.path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let cases: Vec<_> = text.split("---\n").map(Case::read).collect::<Result<_>>()?;
        let output = api.kubectl().output(&["create", "--dry-run=server", "-f", "-"], &text)?;
        let mut complaints = complaints(&String::from_utf8_lossy(&output.stderr));
        for case in &cases {
            let said = complaints.remove(&case.object);
            let is_told = match (&case.refused, &said) {
                (None, None) => true,
                (Some(field), Some(said)) => names(said, field) && !is_broken(said),
                _ => false,
            };
            if !is_told {
                faults.push(format!("{}=> {said:?}", case.text));
            }
        }
        let created = String::from_utf8_lossy(&output.stdout).lines().count();
        let accepted = cases.iter().filter(|case| case.refused.is_none()).count();
        if created != accepted || !complaints.is_empty() {
            faults.push(format!("{created} of {accepted} created; {complaints:#?}"));
        }
    }
    ensure!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

pub(crate) fn refusals_name_field_value_and_remedy(api: &ApiServer) -> Result<()> {
    for (kind, spec, expected) in [
        (
            "IPPool",
            "{cidr: 10.10.0.1/20}",
            "spec.cidr: Invalid value: \"10.10.0.1/20\": 10.10.0.1/20 has host bits set; write 10.10.0.0/20",
        ),
        (
            "IPPool",
            "{cidr: 169.254.0.0/24}",
            "spec.cidr: Invalid value: \"169.254.0.0/24\": overlaps 169.254.0.0/16, which is \
             link-local, loopback or multicast; choose another range",
        ),
        (
            "IPPool",
            "{cidr: 10.10.0.0/28, blockSize: 26}",
            "spec.blockSize: Invalid value: a block of /26 does not fit into 10.10.0.0/28; set \
             blockSize to 28 or more, or widen cidr",
        ),
        (
            "IPPool",
            "{cidr: 10.10.0.0/16, ipipMode: Sometimes}",
            "spec.ipipMode: Unsupported value: \"Sometimes\": supported values: \"Never\", \"Always\", \
             \"CrossSubnet\"",
        ),
        (
            "BGPPeer",
            "{localWorkloadSelector: all()}",
            "spec.asNumber: Invalid value: the peer's AS number is missing; add asNumber: 64512",
        ),
        (
            "BGPPeer",
            "{peerIP: tor, asNumber: 1}",
            "spec.peerIP: Invalid value: \"tor\": write 192.0.2.1, 192.0.2.1:1179, 2001:db8::1 or \
             [2001:db8::1]:1179, without an interface",
        ),
    ] {
        let text = format!(
            "apiVersion: projectcalico.org/v3\nkind: {kind}\nmetadata: {{name: bad}}\nspec: {spec}\n"
        );
        let said = api.kubectl().refused(&["create", "--dry-run=server", "-f", "-"], &text)?;
        ensure!(said.contains(expected), "{spec}\n{said}\nexpected {expected}");
    }
    Ok(())
}

pub(crate) fn an_unknown_field_is_named(api: &ApiServer) -> Result<()> {
    let text = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: typo}\n\
                spec: {cidr: 10.10.0.0/20, blocksize: 26}\n";
    let said = api.kubectl().refused(&["create", "--dry-run=server", "-f", "-"], text)?;
    ensure!(said.contains("unknown field \"spec.blocksize\""), "{said}");
    Ok(())
}
