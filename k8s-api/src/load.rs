use std::fmt;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    API_VERSION, Kind, ObjectId, Other, Problem, Resource, Severity,
    kinds::Report,
    metadata::name_fault,
    yaml::{self, Content, Tree},
};

/// The older API group; its objects have the same fields.
const OLDER_API_VERSION: &str = "crd.projectcalico.org/v1";

/// What a file holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The objects that are right, in the order of the file.
    pub resources: Vec<Loc<Resource>>,
    /// What is to be said about it, in the order of the file.
    pub problems: Vec<Problem>,
}

impl Loaded {
    /// Whether some object of the file is not among `resources`.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }
}

/// A value and where it stands. Its `Debug` form leaves out `text`, which may hold a password.
#[derive(Clone, PartialEq)]
pub struct Loc<T> {
    /// The value.
    pub value: T,
    /// The file, as the reader named it.
    pub file: String,
    /// The line it starts on, from 1.
    pub line: u32,
    /// The text of its document, comments included; `None` for an item of a `List`.
    pub text: Option<String>,
}

impl<T: fmt::Debug> fmt::Debug for Loc<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { value, file, line, text: _ } = self;
        let mut shown = f.debug_struct("Loc");
        shown.field("value", value).field("file", file).field("line", line).finish_non_exhaustive()
    }
}

/// Reads every document of a file, YAML or JSON. What is wrong with one document hides none of the
/// others. `file_name` is what problems say.
pub fn load_manifests(text: &str, file_name: &str) -> Loaded {
    let mut loader = Loader { file: file_name, loaded: Loaded::default() };
    for document in yaml::split(text) {
        loader.document(document);
    }
    loader.loaded
}

/// The identities of a document's objects as far as they can be read, right or wrong otherwise.
pub(crate) fn identities(document: &str) -> Vec<ObjectId> {
    let Ok(tree) = Tree::parse(document) else {
        return Vec::new();
    };
    items(&tree).iter().filter_map(|tree| Header::of(tree).id()).collect()
}

/// The objects of a document: itself, or the items of a `List`.
fn items(tree: &Tree) -> Vec<&Tree> {
    let is_list = tree.text("kind").is_some_and(|kind| kind.ends_with("List"));
    match tree.get("items").map(|items| &items.content) {
        Some(Content::List(items)) if is_list => items.iter().collect(),
        _ => vec![tree],
    }
}

/// What says which object a tree is.
#[derive(Debug, Clone, Copy)]
struct Header<'a> {
    api_version: Option<&'a str>,
    kind: Option<&'a str>,
    namespace: Option<&'a str>,
    name: Option<&'a str>,
}

impl<'a> Header<'a> {
    fn of(tree: &'a Tree) -> Self {
        let metadata = tree.get("metadata");
        Self {
            api_version: tree.text("apiVersion"),
            kind: tree.text("kind"),
            namespace: metadata.and_then(|metadata| metadata.text("namespace")),
            name: metadata.and_then(|metadata| metadata.text("name")),
        }
    }

    /// The API group; the core group has no name.
    fn group(&self) -> &'a str {
        self.api_version.and_then(|version| version.split_once('/')).map_or("", |(group, _)| group)
    }

    fn is_calico(&self) -> bool {
        matches!(self.group(), "projectcalico.org" | "crd.projectcalico.org")
    }

    /// The kind, if it is one of ours. Other projects have a BGPPeer or an IPPool, too.
    fn known(&self) -> Option<Kind> {
        let kind = Kind::from_manifest(self.kind?)?;
        let foreign = !self.is_calico() && !self.group().is_empty();
        (!foreign).then_some(kind)
    }

    fn id(&self) -> Option<ObjectId> {
        let name = self.name.filter(|name| name_fault(name).is_none())?.to_owned();
        if let Some(kind) = self.known() {
            return Some(ObjectId { kind: kind.singular().to_owned(), namespace: None, name });
        }
        let kind = match (self.kind?, self.group()) {
            (kind, "") => kind.to_lowercase(),
            (kind, group) => format!("{kind}.{group}").to_lowercase(),
        };
        // It becomes part of a file name.
        name_fault(&kind).is_none().then_some(())?;
        let namespace = match self.namespace {
            Some(namespace) if name_fault(namespace).is_some() => return None,
            namespace => namespace.map(str::to_owned),
        };
        Some(ObjectId { kind, namespace, name })
    }

    /// What is wrong with `apiVersion` and `kind`: the field and the remedy.
    fn fault(&self) -> Option<(&'static str, String)> {
        let Some(kind) = self.kind else {
            return Some((
                "kind",
                "every object says what it is; add kind: IPPool or another".into(),
            ));
        };
        let Some(api_version) = self.api_version else {
            let is_core = Kind::from_manifest(kind).is_some_and(Kind::is_core);
            let right = if is_core { "v1" } else { API_VERSION };
            return Some(("apiVersion", format!("is missing; add apiVersion: {right}")));
        };
        match self.known() {
            Some(Kind::Node) if api_version != "v1" => Some((
                "apiVersion",
                "a Node is Kubernetes' own; write apiVersion: v1 and give addresses and AS number \
                 by annotations such as projectcalico.org/IPv4Address"
                    .into(),
            )),
            Some(Kind::Namespace) if api_version != "v1" => Some((
                "apiVersion",
                "a Namespace is Kubernetes' own; write apiVersion: v1".to_owned(),
            )),
            Some(Kind::Secret) if api_version != "v1" => {
                Some(("apiVersion", "a Secret is Kubernetes' own; write apiVersion: v1".to_owned()))
            }
            Some(kind) if kind.is_core() => None,
            Some(kind) if api_version != API_VERSION && api_version != OLDER_API_VERSION => {
                Some(("apiVersion", format!("write {API_VERSION} for kind {kind}")))
            }
            Some(_) => None,
            None if self.is_calico() => {
                let names = Kind::ALL.into_iter().map(Kind::manifest_name);
                yaml::nearest(kind, names).map(|near| ("kind", format!("did you mean {near}?")))
            }
            None => None,
        }
    }
}

struct Loader<'a> {
    file: &'a str,
    loaded: Loaded,
}

impl Loader<'_> {
    fn document(&mut self, document: yaml::Document<'_>) {
        let above = document.line - 1;
        let mut tree = match Tree::parse(document.text) {
            Ok(tree) => tree,
            Err(error) => {
                let message = format!("the document cannot be read: {}", error.message);
                let mut problem = Problem::of_file(Severity::Error, self.file, message);
                problem.line = error.line.map(|line| line + above);
                self.loaded.problems.push(problem);
                return;
            }
        };
        if tree.content == Content::Null {
            return;
        }
        tree.shift(above);
        let items = items(&tree);
        let text = match items.as_slice() {
            [only] if std::ptr::eq(*only, &raw const tree) => Some(document.text),
            _ => None,
        };
        for item in items {
            self.object(item, text);
        }
    }

    fn object(&mut self, tree: &Tree, text: Option<&str>) {
        let header = Header::of(tree);
        let mut context = Context {
            file: self.file,
            places: tree.places(),
            id: header.id(),
            problems: &mut self.loaded.problems,
        };
        if let Some(value) = context.read(tree, header) {
            self.loaded.resources.push(Loc {
                value,
                file: self.file.to_owned(),
                line: tree.line,
                text: text.map(str::to_owned),
            });
        }
    }
}

/// One object while it is read.
struct Context<'a> {
    file: &'a str,
    places: yaml::Places,
    id: Option<ObjectId>,
    problems: &'a mut Vec<Problem>,
}

impl Context<'_> {
    fn report(&mut self, severity: Severity, path: &str, value: Option<String>, message: String) {
        let is_secret = self.id.as_ref().is_some_and(|id| id.kind == Kind::Secret.singular());
        let value = match path.starts_with("metadata") || !is_secret {
            true => value.or_else(|| self.places.value(path)),
            false => None,
        };
        self.problems.push(Problem {
            severity,
            file: self.file.to_owned(),
            line: self.places.line(path),
            object: self.id.clone(),
            path: path.to_owned(),
            value,
            message,
        });
    }

    fn read(&mut self, tree: &Tree, header: Header<'_>) -> Option<Resource> {
        if !matches!(tree.content, Content::Map(_)) {
            let message = "a manifest is a mapping with apiVersion, kind, metadata and spec";
            self.report(Severity::Error, "", None, message.to_owned());
            return None;
        }
        if let Some((path, message)) = header.fault() {
            self.report(Severity::Error, path, None, message);
            return None;
        }
        if let Some(fault) = name_fault(header.name.unwrap_or_default()) {
            self.report(Severity::Error, "metadata.name", None, fault.to_owned());
            return None;
        }
        let resource = match header.known() {
            Some(Kind::IpPool) => self.typed(tree).map(Resource::IpPool),
            Some(Kind::BgpPeer) => self.typed(tree).map(Resource::BgpPeer),
            Some(Kind::BgpConfiguration) => self.typed(tree).map(Resource::BgpConfiguration),
            Some(Kind::BgpFilter) => self.typed(tree).map(Resource::BgpFilter),
            Some(Kind::IpamConfig) => self.typed(tree).map(Resource::IpamConfig),
            Some(Kind::IpReservation) => self.typed(tree).map(Resource::IpReservation),
            Some(Kind::BlockAffinity) => self.typed(tree).map(Resource::BlockAffinity),
            Some(Kind::BlockRequest) => self.typed(tree).map(Resource::BlockRequest),
            Some(Kind::NodeStatus) => self.typed(tree).map(Resource::NodeStatus),
            Some(Kind::Node) => self.typed(tree).map(Resource::Node),
            Some(Kind::Namespace) => self.typed(tree).map(Resource::Namespace),
            Some(Kind::Secret) => self.typed(tree).map(Resource::Secret),
            None => return self.other(tree, header),
        }?;
        if header.namespace.is_some() {
            let (severity, message) = match resource {
                // It has one in every cluster, and would be copied with it.
                Resource::Secret(_) => (
                    Severity::Note,
                    "files know Secrets by their names alone, and the namespace has no effect there; on \
                     Kubernetes daemons read those of their own namespace",
                ),
                _ => (Severity::Warning, "this kind has no namespace; remove it, it has no effect"),
            };
            self.report(severity, "metadata.namespace", None, message.to_owned());
        }
        let mut report = Report::default();
        resource.check(&mut report);
        let broken = report.findings.iter().any(|finding| finding.severity == Severity::Error);
        for finding in report.findings {
            self.report(finding.severity, &finding.path, None, finding.message);
        }
        (!broken).then_some(resource)
    }

    fn typed<T: DeserializeOwned>(&mut self, tree: &Tree) -> Option<T> {
        let mut unknown = Vec::new();
        let result = yaml::read(tree, &mut unknown);
        for field in unknown {
            self.report(Severity::Warning, &field.path, None, field.message);
        }
        result
            .map_err(|error| {
                let path = error.path.unwrap_or_default();
                self.report(Severity::Error, &path, error.value, error.message);
            })
            .ok()
    }

    fn other(&mut self, tree: &Tree, header: Header<'_>) -> Option<Resource> {
        let kind = header.kind.unwrap_or_default().to_owned();
        let Some(id) = header.id() else {
            let message =
                "kind, API group and namespace must be made of letters, digits, `-` and `.`";
            self.report(Severity::Error, "kind", None, message.to_owned());
            return None;
        };
        let body: Value = self.typed(tree)?;
        self.report(
            Severity::Note,
            "kind",
            None,
            format!("kind {kind} is not used by Twill (yet); the object is kept and has no effect"),
        );
        Some(Resource::Other(Other { body, id, kind }))
    }
}

/// Reads one typed object out of a text that holds just that, whatever its kind; for files that
/// Twill wrote itself.
pub(crate) fn read_own<T: for<'de> Deserialize<'de>>(text: &str) -> Result<T, String> {
    let tree = Tree::parse(text).map_err(|error| error.message)?;
    yaml::read(&tree, &mut Vec::new()).map_err(|error| match error.path {
        Some(path) if !path.is_empty() => format!("{path}: {}", error.message),
        _ => error.message,
    })
}

#[cfg(test)]
mod tests;
