use serde::Serialize;
use serde_json::Value;

use crate::{
    BgpConfiguration, BgpFilter, BgpPeer, BlockAffinity, BlockRequest, IpPool, IpReservation,
    IpamConfig, Kind, Metadata, Namespace, Node, NodeStatus, ObjectId, Secret,
    kinds::{Report, Rules},
};

/// An object of any kind.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Resource {
    /// IPPool.
    IpPool(IpPool),
    /// BGPPeer.
    BgpPeer(BgpPeer),
    /// BGPConfiguration.
    BgpConfiguration(BgpConfiguration),
    /// BGPFilter.
    BgpFilter(BgpFilter),
    /// IPAMConfiguration.
    IpamConfig(IpamConfig),
    /// IPReservation.
    IpReservation(IpReservation),
    /// BlockAffinity.
    BlockAffinity(BlockAffinity),
    /// BlockRequest.
    BlockRequest(BlockRequest),
    /// CalicoNodeStatus.
    NodeStatus(NodeStatus),
    /// Node.
    Node(Node),
    /// Namespace.
    Namespace(Namespace),
    /// Secret.
    Secret(Secret),
    /// A kind that Twill does not use.
    Other(Other),
}

/// An object of a kind that Twill does not use, kept as it came.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Other {
    pub(crate) body: Value,
    #[serde(skip)]
    pub(crate) id: ObjectId,
    #[serde(skip)]
    pub(crate) kind: String,
}

/// A field that is set and has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsupported {
    /// The field, such as `spec.natOutgoing`.
    pub field: String,
    /// What happens instead.
    pub effect: String,
}

impl Resource {
    /// Its kind, unless that is one that Twill does not use.
    pub fn kind(&self) -> Option<Kind> {
        match self {
            Self::IpPool(_) => Some(Kind::IpPool),
            Self::BgpPeer(_) => Some(Kind::BgpPeer),
            Self::BgpConfiguration(_) => Some(Kind::BgpConfiguration),
            Self::BgpFilter(_) => Some(Kind::BgpFilter),
            Self::IpamConfig(_) => Some(Kind::IpamConfig),
            Self::IpReservation(_) => Some(Kind::IpReservation),
            Self::BlockAffinity(_) => Some(Kind::BlockAffinity),
            Self::BlockRequest(_) => Some(Kind::BlockRequest),
            Self::NodeStatus(_) => Some(Kind::NodeStatus),
            Self::Node(_) => Some(Kind::Node),
            Self::Namespace(_) => Some(Kind::Namespace),
            Self::Secret(_) => Some(Kind::Secret),
            Self::Other(_) => None,
        }
    }

    /// The kind as its manifest says it.
    pub fn kind_name(&self) -> &str {
        match self {
            Self::IpPool(object) => &object.kind,
            Self::BgpPeer(object) => &object.kind,
            Self::BgpConfiguration(object) => &object.kind,
            Self::BgpFilter(object) => &object.kind,
            Self::IpamConfig(object) => &object.kind,
            Self::IpReservation(object) => &object.kind,
            Self::BlockAffinity(object) => &object.kind,
            Self::BlockRequest(object) => &object.kind,
            Self::NodeStatus(object) => &object.kind,
            Self::Node(object) => &object.kind,
            Self::Namespace(object) => &object.kind,
            Self::Secret(object) => &object.kind,
            Self::Other(other) => &other.kind,
        }
    }

    /// Its metadata; `None` for kinds that Twill does not use.
    pub fn metadata(&self) -> Option<&Metadata> {
        match self {
            Self::IpPool(object) => Some(&object.metadata),
            Self::BgpPeer(object) => Some(&object.metadata),
            Self::BgpConfiguration(object) => Some(&object.metadata),
            Self::BgpFilter(object) => Some(&object.metadata),
            Self::IpamConfig(object) => Some(&object.metadata),
            Self::IpReservation(object) => Some(&object.metadata),
            Self::BlockAffinity(object) => Some(&object.metadata),
            Self::BlockRequest(object) => Some(&object.metadata),
            Self::NodeStatus(object) => Some(&object.metadata),
            Self::Node(object) => Some(&object.metadata),
            Self::Namespace(object) => Some(&object.metadata),
            Self::Secret(object) => Some(&object.metadata),
            Self::Other(_) => None,
        }
    }

    /// What no other object has, in files: a Secret is found by its name alone there.
    pub fn id(&self) -> ObjectId {
        match (self, self.kind(), self.metadata()) {
            (Self::Other(other), _, _) => other.id.clone(),
            (_, kind, metadata) => ObjectId {
                kind: kind.map(Kind::singular).unwrap_or_default().to_owned(),
                namespace: None,
                name: metadata.map(|metadata| metadata.name.clone()).unwrap_or_default(),
            },
        }
    }

    /// What no other object has on an API server: of a Secret with the namespace that it names.
    pub fn id_in_cluster(&self) -> ObjectId {
        let mut id = self.id();
        if let Self::Secret(secret) = self {
            id.namespace.clone_from(&secret.metadata.namespace);
        }
        id
    }

    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Self::Other(other) => &other.id.name,
            _ => self.metadata().map_or("", |metadata| &metadata.name),
        }
    }

    /// Fields that are set and have no effect, each with what happens instead.
    pub fn unsupported(&self) -> Vec<Unsupported> {
        self.rules().map(Rules::unsupported).unwrap_or_default()
    }

    pub(crate) fn check(&self, report: &mut Report) {
        if let Some(rules) = self.rules() {
            rules.check(report);
        }
    }

    fn rules(&self) -> Option<&dyn Rules> {
        match self {
            Self::IpPool(object) => Some(object),
            Self::BgpPeer(object) => Some(object),
            Self::BgpConfiguration(object) => Some(object),
            Self::BgpFilter(object) => Some(object),
            Self::IpamConfig(object) => Some(object),
            Self::IpReservation(object) => Some(object),
            Self::BlockAffinity(object) => Some(object),
            Self::BlockRequest(object) => Some(object),
            Self::NodeStatus(object) => Some(object),
            Self::Node(object) => Some(object),
            Self::Namespace(object) => Some(object),
            Self::Secret(object) => Some(object),
            Self::Other(_) => None,
        }
    }

    /// The manifest in YAML, without a document marker.
    pub fn to_yaml(&self) -> Result<String, FormatError> {
        serde_saphyr::to_string(self)
            .map_err(|source| FormatError { object: self.id(), source: source.into() })
    }

    /// The manifest in JSON, indented, without a line end.
    pub fn to_json(&self) -> Result<String, FormatError> {
        serde_json::to_string_pretty(self)
            .map_err(|source| FormatError { object: self.id(), source: source.into() })
    }
}

/// An object could not be written as text.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {object} as text")]
pub struct FormatError {
    pub(crate) object: ObjectId,
    #[source]
    pub(crate) source: Box<dyn std::error::Error + Send + Sync>,
}
