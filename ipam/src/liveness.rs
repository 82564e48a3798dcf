//! Which records have outlived their pods, and which links their records: from what a look at the
//! node finds to what is done about it.
//!
//! Promise: nothing is given up for the absence of evidence. A record goes only if two looks that
//! are a grace period apart found positive evidence of its pod's end, and none in between found it
//! alive. A link goes only while it is down, and was not there before this process unless it has no alias,
//! or if a later ADD took its place.

mod once;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub use once::{dead_at_one_look, links_of};
use twill_types::{Alias, AttachmentId, LinkAlias, host_link_name};

use crate::Record;

/// The grace period of a record whose pod is gone from the cluster: longer than a watch of the pods may
/// be behind a kubelet that has just begun.
const GRACE_OF_GONE_POD_MS: u64 = 10_000;

/// What is at the path of a record's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathFact {
    /// The record's namespace, by its cookie (by its kind alone, where no cookie is known).
    Same,
    /// Another namespace.
    Another,
    /// Nothing.
    Nothing,
    /// A file that is no namespace: a mount that does not reach this process, most likely.
    Plain,
    /// The runtime gave no path, or it cannot be told what is there.
    Unknown,
}

/// What the cluster says about a record's pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PodFact {
    /// Nothing: there is no cluster, or what is known of its pods may be incomplete or old.
    #[default]
    Unknown,
    /// It is there.
    There,
    /// It is not among this node's pods, all of which are known.
    Gone,
}

/// A record, and what is at its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordFact {
    /// The record.
    pub record: Record,
    /// What is at the path of its namespace.
    pub path: PathFact,
    /// What the cluster says.
    pub pod: PodFact,
}

/// A host link of ours outside the group of those that wait to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkFact {
    /// Its index, which no other link of this boot has had.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whose it is; `None` if the ADD that made it did not come that far.
    pub alias: Option<LinkAlias>,
    /// Whether somebody else's text stands in the place of an alias.
    pub overwritten: bool,
    /// Whether it is up: the last step of an ADD, after it was told that its record still stands.
    pub up: bool,
}

impl LinkFact {
    /// Whether it has lost the alias that an ADD gave it, so that only its name says whose it is: somebody
    /// has overwritten it, or emptied it, as none comes up without one. The pod has not gone with its alias.
    pub(crate) const fn has_lost_alias(&self) -> bool {
        self.overwritten || (self.up && self.alias.is_none())
    }
}

/// What one look at the node found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every record.
    pub records: Vec<RecordFact>,
    /// Every link.
    pub links: Vec<LinkFact>,
}

/// The positive evidence that a pod is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Death {
    /// It has no link on this node any more.
    LinkGone,
    /// Another namespace is at its path.
    NamespaceReplaced,
    /// Nothing is at its path, where this process is known to see namespaces.
    NamespaceGone,
}

/// Why a link is left over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// Its ADD died before it could say whose it is.
    Unnamed,
    /// Its attachment has a record of a later ADD.
    Superseded,
    /// Its attachment has no record, and it never came up.
    Unrecorded,
}

/// What stands in the way, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// A namespace's path reads as a plain file: the absence of others means nothing, from then on.
    Blind {
        /// The path.
        path: String,
    },
    /// A link that is in use, or was there before this process, belongs to no record at two looks.
    Unrecorded {
        /// The link's name.
        link: String,
        /// Whose it is; `None` if it has lost its alias.
        alias: Option<LinkAlias>,
    },
}

/// What is to be done after a look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Records to be released, each by its own sequence number.
    pub dead: Vec<(Record, Death)>,
    /// Records that look dead, with the milliseconds left of their grace period.
    pub suspects: Vec<(Record, Death, u64)>,
    /// Who cannot be told to be alive, nor dead.
    pub unclear: Vec<AttachmentId>,
    /// Indexes of links to be removed.
    pub leftovers: Vec<(u32, Leftover)>,
    /// What people have to look at.
    pub troubles: Vec<Trouble>,
}

/// What a process knew when it began to look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// Number of the last assignment before.
    pub sequence: u64,
    /// Indexes of the links that were there.
    pub links: BTreeSet<u32>,
    /// Whether this process shares its view of the file system with the host's first process.
    pub host_view: bool,
}

/// What has been seen so far. It is lost with the process, and the grace period begins anew.
#[derive(Debug, Clone)]
pub struct Liveness {
    grace_ms: u64,
    start: Start,
    /// Directories in which a namespace that is newer than this process was seen.
    proven: BTreeSet<String>,
    /// The first path that read as a plain file.
    blind: Option<String>,
    /// When each record was found dead first, without a sign of life since.
    dead: BTreeMap<(AttachmentId, u64), u64>,
    /// When each link was found left over first, by index and sequence number.
    leftovers: BTreeMap<(u32, Option<u64>), u64>,
    /// Indexes of links in use for which the last look has found no record. A DEL may have come between its
    /// links and its records.
    unrecorded: BTreeSet<u32>,
}

impl Liveness {
    /// `grace_ms` should be longer than any ADD takes.
    pub fn new(grace_ms: u64, start: Start) -> Self {
        Self {
            grace_ms,
            start,
            proven: BTreeSet::new(),
            blind: None,
            dead: BTreeMap::new(),
            leftovers: BTreeMap::new(),
            unrecorded: BTreeSet::new(),
        }
    }

    /// Judges what a look found. `now_ms` comes from a clock that is never set.
    pub fn look(&mut self, facts: &Facts, now_ms: u64) -> Verdict {
        self.learn(&facts.records);
        let mut verdict = Verdict::default();
        let linked = self.judge_links(facts, now_ms, &mut verdict);
        self.judge_records(facts, &linked, now_ms, &mut verdict);
        if let Some(path) = &self.blind {
            verdict.troubles.push(Trouble::Blind { path: path.clone() });
        }
        verdict
    }

    /// Learns what paths are worth here.
    fn learn(&mut self, records: &[RecordFact]) {
        for RecordFact { record, path, .. } in records {
            match path {
                PathFact::Plain if self.blind.is_none() => self.blind = Some(record.netns.clone()),
                // One from before this process proves nothing: its mount came with the start.
                PathFact::Same if record.sequence > self.start.sequence => {
                    self.proven.insert(directory(&record.netns).to_owned());
                }
                _ => {}
            }
        }
    }

    /// Judges the links; answers the attachments that have one.
    fn judge_links<'a>(
        &mut self,
        facts: &'a Facts,
        now_ms: u64,
        verdict: &mut Verdict,
    ) -> BTreeSet<&'a AttachmentId> {
        let owners = Owners::of(&facts.records);
        let mut linked = BTreeSet::new();
        let (mut seen, mut unrecorded) = (BTreeMap::new(), BTreeSet::new());
        let mut in_use_without_record = |link: &LinkFact| {
            unrecorded.insert(link.index);
            if self.unrecorded.contains(&link.index) {
                let (link, alias) = (link.name.clone(), link.alias.clone());
                verdict.troubles.push(Trouble::Unrecorded { link, alias });
            }
        };
        for link in &facts.links {
            let record = owners.find(link);
            let in_use = link.up || self.start.links.contains(&link.index);
            if link.has_lost_alias() {
                linked.extend(record.map(|record| &record.attachment));
                if record.is_none() && link.up {
                    in_use_without_record(link);
                }
                continue;
            }
            let leftover = match (&link.alias, record) {
                (Some(LinkAlias { sequence: LinkAlias::WITHOUT_STORE, .. }), _) if in_use => {
                    continue;
                }
                (Some(alias), Some(record)) if alias.sequence >= record.sequence => {
                    linked.insert(&record.attachment);
                    continue;
                }
                (Some(_), Some(_)) => Leftover::Superseded,
                (Some(_), None) if in_use => {
                    in_use_without_record(link);
                    continue;
                }
                (Some(_), None) => Leftover::Unrecorded,
                (None, record) => {
                    // An ADD may be at it right now.
                    linked.extend(record.map(|record| &record.attachment));
                    Leftover::Unnamed
                }
            };
            let key = (link.index, link.alias.as_ref().map(|alias| alias.sequence));
            let since = self.leftovers.get(&key).copied().unwrap_or(now_ms);
            seen.insert(key, since);
            if now_ms.saturating_sub(since) >= self.grace_ms {
                verdict.leftovers.push((link.index, leftover));
            }
        }
        self.leftovers = seen;
        self.unrecorded = unrecorded;
        linked
    }

    fn judge_records(
        &mut self,
        facts: &Facts,
        linked: &BTreeSet<&AttachmentId>,
        now_ms: u64,
        verdict: &mut Verdict,
    ) {
        let mut seen = BTreeMap::new();
        for RecordFact { record, path, pod } in &facts.records {
            let key = (record.attachment.clone(), record.sequence);
            let known = self.dead.get(&key).copied();
            match self.evidence(record, *path, linked.contains(&record.attachment)) {
                Evidence::Alive => {}
                Evidence::None => {
                    verdict.unclear.push(record.attachment.clone());
                    seen.extend(known.map(|since| (key, since)));
                }
                Evidence::Dead(death) => {
                    let since = known.unwrap_or(now_ms);
                    // No ADD for a pod that is gone ends well, so none is waited for.
                    let grace_ms = match pod {
                        PodFact::Gone => self.grace_ms.min(GRACE_OF_GONE_POD_MS),
                        PodFact::There | PodFact::Unknown => self.grace_ms,
                    };
                    match grace_ms.saturating_sub(now_ms.saturating_sub(since)) {
                        0 => verdict.dead.push((record.clone(), death)),
                        left => verdict.suspects.push((record.clone(), death, left)),
                    }
                    // Kept, so that a release that fails is tried again at the next look.
                    seen.insert(key, since);
                }
            }
        }
        self.dead = seen;
    }

    fn evidence(&self, record: &Record, path: PathFact, linked: bool) -> Evidence {
        if linked || path == PathFact::Same {
            return Evidence::Alive;
        }
        if !record.foreign {
            return Evidence::Dead(Death::LinkGone);
        }
        match path {
            _ if self.blind.is_some() => Evidence::None,
            PathFact::Another => Evidence::Dead(Death::NamespaceReplaced),
            PathFact::Nothing if self.trusts(&record.netns) => Evidence::Dead(Death::NamespaceGone),
            PathFact::Nothing | PathFact::Plain | PathFact::Unknown | PathFact::Same => {
                Evidence::None
            }
        }
    }

    /// Whether a namespace at this path would be seen.
    fn trusts(&self, path: &str) -> bool {
        self.start.host_view || self.proven.contains(directory(path))
    }
}

/// What one look says about one record.
enum Evidence {
    Alive,
    Dead(Death),
    None,
}

fn directory(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// The records by what a link says of its owner.
pub(crate) struct Owners<'a> {
    by_attachment: BTreeMap<&'a AttachmentId, &'a Record>,
    by_link: BTreeMap<String, &'a Record>,
}

impl<'a> Owners<'a> {
    pub(crate) fn of(records: &'a [RecordFact]) -> Self {
        // Of another plugin's interface no link is ours, whatever its name.
        let ours = || records.iter().map(|fact| &fact.record).filter(|record| !record.foreign);
        Self {
            by_attachment: ours().map(|record| (&record.attachment, record)).collect(),
            by_link: ours().map(|record| (host_link_name(&record.attachment), record)).collect(),
        }
    }

    pub(crate) fn find(&self, link: &LinkFact) -> Option<&'a Record> {
        match &link.alias {
            Some(LinkAlias { owner: Alias::Full(attachment), .. }) => {
                self.by_attachment.get(attachment).copied()
            }
            Some(alias) => {
                self.by_link.get(&link.name).copied().filter(|r| alias.is_of(&r.attachment))
            }
            None => self.by_link.get(&link.name).copied(),
        }
    }
}

impl Death {
    /// One word, for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LinkGone => "link-gone",
            Self::NamespaceReplaced => "namespace-replaced",
            Self::NamespaceGone => "namespace-gone",
        }
    }
}

impl Leftover {
    /// One word, for metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unnamed => "unnamed",
            Self::Superseded => "superseded",
            Self::Unrecorded => "unrecorded",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blind { path } => write!(
                f,
                "the network namespace {path} reads as a plain file here, so namespaces made \
                 after the start of twilld do not reach it; addresses of pods that another plugin \
                 attached come back by DEL alone. Share /run on the host (mount --make-rshared \
                 /run), mount it into twilld's container with mountPropagation HostToContainer, \
                 and restart twilld"
            ),
            Self::Unrecorded { link, alias } => {
                let owner = match alias.as_ref().map(|alias| &alias.owner) {
                    Some(Alias::Full(attachment)) => format!("of {attachment}"),
                    Some(Alias::Hashed(hash)) => format!("with the hash {hash}"),
                    None => "without an alias of Twill's".to_owned(),
                };
                write!(
                    f,
                    "link {link} {owner} has no record in this node's address store, and a pod may \
                     be using it, so it is left alone; unless another IPAM plugin gave its address, \
                     delete the pod, or the link (ip link delete {link}) if it has none"
                )
            }
        }
    }
}

#[cfg(test)]
mod tests;
