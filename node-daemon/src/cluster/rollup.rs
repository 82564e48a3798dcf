//! Many nodes' reports about one object become one condition of each type.

use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
};

use twill_k8s_api::{Condition, ConditionStatus, ObjectReport};

use super::conditions::{Counts, shorten};

/// How many nodes are named for each reason.
const NAMED: usize = 3;

/// How many reasons are told.
const REASONS: usize = 5;

/// The longest text of one reason, octets.
const TEXT: usize = 768;

/// What one node says about an object.
pub(super) type Said<'a> = (&'a str, &'a ObjectReport);

/// The nodes that say the same.
struct Group<'a> {
    condition: &'a Condition,
    nodes: Vec<&'a str>,
}

/// What all nodes together say about an object of this generation. `nodes` is how many there are that
/// say anything about anything; `own` is what is wrong with the object by the reader's own look.
pub(super) fn roll_up(
    said: &[Said<'_>],
    nodes: usize,
    generation: Option<i64>,
    own: Option<&str>,
) -> (Vec<Condition>, Counts) {
    let mut types = by_type(said, generation);
    let groups = types.remove("Accepted").unwrap_or_default();
    let (accepted, counts) = accepted(&groups, nodes, own);
    let mut conditions = vec![accepted];
    conditions.extend(types.into_values().filter_map(|groups| other(groups, nodes)));
    (conditions, counts)
}

/// What nodes say about an object of their own: bad news, and nothing about whether they use it.
pub(super) fn bad_news(said: &[Said<'_>], generation: Option<i64>) -> Vec<Condition> {
    let types = by_type(said, generation).into_values();
    types.filter_map(|groups| other(groups, said.len())).collect()
}

/// What is said of each type, by what it is.
fn by_type<'a>(said: &[Said<'a>], generation: Option<i64>) -> BTreeMap<&'a str, Vec<Group<'a>>> {
    let is_behind = |report: &ObjectReport| {
        report.observed_generation.is_some_and(|seen| generation.is_some_and(|now| seen < now))
    };
    let mut types: BTreeMap<&str, Vec<(&Condition, &str)>> = BTreeMap::new();
    for (node, report) in said.iter().filter(|(_, report)| !is_behind(report)) {
        for condition in &report.conditions {
            types.entry(&condition.kind).or_default().push((condition, node));
        }
    }
    let groups = |said: Vec<(&'a Condition, &'a str)>| {
        let groups = gather(said).into_iter();
        groups.map(|(condition, nodes)| Group { condition, nodes }).collect()
    };
    types.into_iter().map(|(kind, said)| (kind, groups(said))).collect()
}

/// What is the same, with who said it, in the order in which it was said first. Each is looked up once:
/// texts that name a block or a node are as many as there are nodes.
fn gather<K: Hash + Eq + Copy, V>(said: impl IntoIterator<Item = (K, V)>) -> Vec<(K, Vec<V>)> {
    let mut places = HashMap::new();
    let mut groups: Vec<(K, Vec<V>)> = Vec::new();
    for (key, who) in said {
        let place = *places.entry(key).or_insert(groups.len());
        match groups.get_mut(place) {
            Some((_, all)) => all.push(who),
            None => groups.push((key, vec![who])),
        }
    }
    groups
}

/// Whether the object is used as it stands.
fn accepted(groups: &[Group<'_>], nodes: usize, own: Option<&str>) -> (Condition, Counts) {
    let (bad, good): (Vec<_>, Vec<_>) = groups.iter().partition(|group| group.condition.is_bad());
    let count = |groups: &[&Group<'_>]| groups.iter().map(|group| group.nodes.len()).sum::<usize>();
    let (refused, accepted) = (count(&bad), count(&good));
    let silent = match nodes.saturating_sub(refused + accepted) {
        0 => String::new(),
        1 => "; 1 has not said anything yet".to_owned(),
        silent => format!("; {silent} have not said anything yet"),
    };
    let (status, reason, message) = if refused > 0 {
        let text = format!("refused by {refused} of {}{silent}: {}", all(nodes), tell(&bad));
        let reason = bad.iter().max_by_key(|group| group.nodes.len());
        let reason = reason.map_or("Invalid", |group| group.condition.reason.as_str());
        (ConditionStatus::False, reason, text)
    } else if let Some(own) = own {
        (ConditionStatus::False, "Invalid", format!("{own}; no node has refused it yet"))
    } else if accepted > 0 {
        let text = format!("accepted by {accepted} of {}{silent}", all(nodes));
        (ConditionStatus::True, "Accepted", text)
    } else {
        (ConditionStatus::Unknown, "NoReports", "no node has said anything about it yet".to_owned())
    };
    let (kind, reason) = ("Accepted".to_owned(), reason.to_owned());
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let counts = Counts { accepted: number(accepted), refused: number(refused) };
    (Condition { kind, status, reason, message }, counts)
}

/// Any other type: bad news of one node are bad news. Good ones are said only where somebody else has
/// said so before: nobody has to know that nothing is the matter.
fn other(groups: Vec<Group<'_>>, nodes: usize) -> Option<Condition> {
    let bad: Vec<&Group<'_>> = groups.iter().filter(|group| group.condition.is_bad()).collect();
    let first = bad.iter().max_by_key(|group| group.nodes.len())?.condition;
    let count: usize = bad.iter().map(|group| group.nodes.len()).sum();
    let message = match &bad[..] {
        [only] if count == nodes => only.condition.message.clone(),
        _ => format!("on {count} of {}: {}", all(nodes), tell(&bad)),
    };
    Some(Condition { message, ..first.clone() })
}

fn all(nodes: usize) -> String {
    if nodes == 1 { "1 node".to_owned() } else { format!("{nodes} nodes") }
}

/// `node1, node2 and 3 more: why; node9: why`, what most say first.
fn tell(groups: &[&Group<'_>]) -> String {
    let mut groups = groups.to_vec();
    let count = groups.len();
    let order = |a: &&Group<'_>, b: &&Group<'_>| {
        b.nodes.len().cmp(&a.nodes.len()).then(a.nodes.cmp(&b.nodes))
    };
    // Only those that are told have to be in order.
    if count > REASONS {
        groups.select_nth_unstable_by(REASONS, order);
        groups.truncate(REASONS);
    }
    groups.sort_by(order);
    let one = |group: &&Group<'_>| {
        let named = group.nodes.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        let more = match group.nodes.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let mut why = group.condition.message.clone();
        if why.is_empty() {
            why.clone_from(&group.condition.reason);
        }
        shorten(&mut why, TEXT);
        format!("{named}{more}: {why}")
    };
    let mut told: Vec<String> = groups.iter().map(one).collect();
    if count > REASONS {
        told.push(format!("and {} other reasons", count - REASONS));
    }
    told.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(conditions: &[(&str, ConditionStatus, &str, &str)]) -> ObjectReport {
        let condition = |(kind, status, reason, message): &(&str, ConditionStatus, &str, &str)| {
            Condition { status: *status, ..Condition::holds(kind, reason, *message) }
        };
        ObjectReport {
            kind: "IPPool".to_owned(),
            name: "a".to_owned(),
            observed_generation: None,
            conditions: conditions.iter().map(condition).collect(),
        }
    }

    fn render(conditions: &[Condition]) -> String {
        let one = |c: &Condition| format!("{}={:?} {}: {}", c.kind, c.status, c.reason, c.message);
        conditions.iter().map(one).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn what_nodes_say_is_counted_and_named() {
        use ConditionStatus::{False, True};
        let yes = report(&[("Accepted", True, "Valid", "")]);
        let no = report(&[("Accepted", False, "Invalid", "bad selector")]);
        let odd = report(&[("Accepted", False, "Invalid", "too old to read it")]);
        let unsupported = report(&[
            ("Accepted", True, "Valid", ""),
            ("Unsupported", True, "NotImplemented", "spec.x: nothing happens"),
        ]);
        let no_password = report(&[
            ("Accepted", True, "Valid", ""),
            ("PasswordFound", False, "SecretNotFound", "there is no Secret s"),
        ]);
        let drained =
            report(&[("Accepted", True, "Valid", ""), ("Allocatable", True, "Usable", "")]);
        /// What: reports of n1, n2 ...; nodes in all; what the reader itself finds; what comes of it.
        type Case<'a> = (&'a [&'a ObjectReport], usize, Option<&'a str>, &'a str, (u32, u32));
        let cases: &[Case<'_>] = &[
            (
                &[],
                0,
                None,
                "Accepted=Unknown NoReports: no node has said anything about it yet",
                (0, 0),
            ),
            (&[&yes, &yes], 2, None, "Accepted=True Accepted: accepted by 2 of 2 nodes", (2, 0)),
            (
                &[&yes],
                3,
                None,
                "Accepted=True Accepted: accepted by 1 of 3 nodes; 2 have not said anything yet",
                (1, 0),
            ),
            (
                &[&no, &yes, &no, &odd, &no, &no],
                7,
                Some("ignored, as nodes say it"),
                "Accepted=False Invalid: refused by 5 of 7 nodes; 1 has not said anything yet: n1, n3, n5 \
                 and 1 more: bad selector; n4: too old to read it",
                (1, 5),
            ),
            (
                &[],
                2,
                Some("bad selector"),
                "Accepted=False Invalid: bad selector; no node has refused it yet",
                (0, 0),
            ),
            (
                &[&unsupported, &unsupported],
                2,
                None,
                "Accepted=True Accepted: accepted by 2 of 2 nodes\n\
                 Unsupported=True NotImplemented: spec.x: nothing happens",
                (2, 0),
            ),
            (
                &[&yes, &no_password],
                2,
                None,
                "Accepted=True Accepted: accepted by 2 of 2 nodes\n\
                 PasswordFound=False SecretNotFound: on 1 of 2 nodes: n2: there is no Secret s",
                (2, 0),
            ),
            (&[&drained], 1, None, "Accepted=True Accepted: accepted by 1 of 1 node", (1, 0)),
        ];
        for (reports, nodes, own, expected, counts) in cases {
            let names: Vec<String> = (1..=reports.len()).map(|n| format!("n{n}")).collect();
            let said: Vec<Said<'_>> =
                names.iter().map(String::as_str).zip(reports.iter().copied()).collect();
            let (conditions, found) = roll_up(&said, *nodes, Some(1), *own);
            assert_eq!(render(&conditions), *expected);
            assert_eq!((found.accepted, found.refused), *counts, "{expected}");
        }
    }

    #[test]
    fn what_is_said_of_an_older_generation_does_not_count() {
        let mut old = report(&[("Accepted", ConditionStatus::False, "Invalid", "bad")]);
        old.observed_generation = Some(1);
        let said = [("n1", &old)];
        let (conditions, counts) = roll_up(&said, 1, Some(2), None);
        assert_eq!(conditions[0].status, ConditionStatus::Unknown);
        assert_eq!(counts, Counts::default());
        let (conditions, _) = roll_up(&said, 1, Some(1), None);
        assert_eq!(conditions[0].status, ConditionStatus::False);
    }

    #[test]
    fn a_thousand_reasons_stay_a_short_text() {
        let reports: Vec<ObjectReport> = (0..1000)
            .map(|n| {
                report(&[(
                    "Accepted",
                    ConditionStatus::False,
                    "Invalid",
                    &format!("{n} {}", "x".repeat(2000)),
                )])
            })
            .collect();
        let names: Vec<String> = (0..1000).map(|n| format!("node{n}")).collect();
        let said: Vec<Said<'_>> = names.iter().map(String::as_str).zip(&reports).collect();
        let (conditions, counts) = roll_up(&said, 1000, None, None);
        assert_eq!(counts.refused, 1000);
        let message = &conditions[0].message;
        assert!(message.len() < 4096 && message.ends_with("and 995 other reasons"), "{message}");
    }
    /// A text that counts how often it is compared or hashed.
    #[derive(Clone, Copy)]
    struct Counted<'a>(&'a str, &'a std::cell::Cell<usize>);

    impl Counted<'_> {
        fn count(&self) {
            self.1.set(self.1.get() + 1);
        }
    }

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.count();
            self.0 == other.0
        }
    }

    impl Eq for Counted<'_> {}

    impl Hash for Counted<'_> {
        fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
            self.count();
            self.0.hash(state);
        }
    }

    #[test]
    fn what_ten_thousand_nodes_say_is_looked_up_once_each() {
        const NODES: usize = 10_000;
        let looked = std::cell::Cell::new(0);
        let texts: Vec<String> = (0..NODES).map(|n| format!("block {n} drains")).collect();
        let said = texts.iter().enumerate().map(|(n, text)| (Counted(text, &looked), n));
        let groups = gather(said.clone().chain(said));
        assert_eq!(groups.len(), NODES);
        assert!(groups.iter().enumerate().all(|(n, (_, who))| *who == [n, n]));
        // 20,000 look-ups, and what the table's growth takes: compared one by one, it would be 150 million.
        assert!(looked.get() < 10 * NODES, "{}", looked.get());
    }
}
