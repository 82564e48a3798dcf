use std::fmt;

/// A kind that Twill knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `IPPool`.
    IpPool,
    /// `BGPPeer`.
    BgpPeer,
    /// `BGPConfiguration`.
    BgpConfiguration,
    /// `BGPFilter`.
    BgpFilter,
    /// `IPAMConfiguration`, in the older API group `IPAMConfig`.
    IpamConfig,
    /// `IPReservation`.
    IpReservation,
    /// `BlockAffinity`: the claim of one block.
    BlockAffinity,
    /// `BlockRequest`: a node asks for a part of another's block (Twill's own kind).
    BlockRequest,
    /// `CalicoNodeStatus`: what a node tells about itself.
    NodeStatus,
    /// Kubernetes' own `Node`.
    Node,
    /// Kubernetes' own `Namespace`.
    Namespace,
    /// Kubernetes' own `Secret`.
    Secret,
}

/// All names of one kind.
struct Names {
    /// In manifests; the first one is written, the others are read too.
    manifest: &'static [&'static str],
    /// On the command line; the first one also makes file names, the second is the plural.
    aliases: &'static [&'static str],
}

impl Kind {
    /// Every kind, in the order in which lists show them.
    pub const ALL: [Self; 12] = [
        Self::Node,
        Self::Namespace,
        Self::IpPool,
        Self::IpamConfig,
        Self::IpReservation,
        Self::BlockAffinity,
        Self::BlockRequest,
        Self::BgpConfiguration,
        Self::BgpPeer,
        Self::BgpFilter,
        Self::Secret,
        Self::NodeStatus,
    ];

    const fn names(self) -> Names {
        let (manifest, aliases): (&[&str], &[&str]) = match self {
            Self::IpPool => (&["IPPool"], &["ippool", "ippools", "ipp", "ipps", "pool", "pools"]),
            Self::BgpPeer => (&["BGPPeer"], &["bgppeer", "bgppeers", "bgpp", "bgpps", "bp", "bps"]),
            Self::BgpConfiguration => (
                &["BGPConfiguration"],
                &["bgpconfiguration", "bgpconfigurations", "bgpconfig", "bgpconfigs"],
            ),
            Self::BgpFilter => {
                (&["BGPFilter"], &["bgpfilter", "bgpfilters", "bgpf", "bgpfs", "bf", "bfs"])
            }
            Self::IpamConfig => (
                &["IPAMConfiguration", "IPAMConfig"],
                &["ipamconfig", "ipamconfigs", "ipamconfiguration", "ipamconfigurations"],
            ),
            Self::IpReservation => (
                &["IPReservation"],
                &["ipreservation", "ipreservations", "reservation", "reservations"],
            ),
            Self::BlockAffinity => (
                &["BlockAffinity"],
                &["blockaffinity", "blockaffinities", "affinity", "affinities"],
            ),
            Self::BlockRequest => (&["BlockRequest"], &["blockrequest", "blockrequests"]),
            Self::NodeStatus => (
                &["CalicoNodeStatus"],
                &["caliconodestatus", "caliconodestatuses", "nodestatus", "nodestatuses"],
            ),
            Self::Node => (&["Node"], &["node", "nodes", "no"]),
            Self::Namespace => (&["Namespace"], &["namespace", "namespaces", "ns"]),
            Self::Secret => (&["Secret"], &["secret", "secrets"]),
        };
        Names { manifest, aliases }
    }

    /// Whether it is one of Kubernetes' own, whose API version is `v1`.
    pub const fn is_core(self) -> bool {
        matches!(self, Self::Node | Self::Namespace | Self::Secret)
    }

    /// The kind that a manifest's `kind:` names.
    pub fn from_manifest(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.names().manifest.contains(&name))
    }

    /// The kind that a person means: any of the names that calicoctl takes, in any case.
    pub fn from_alias(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        Self::ALL.into_iter().find(|kind| kind.names().aliases.contains(&name.as_str()))
    }

    /// What stands behind `kind:`.
    pub const fn manifest_name(self) -> &'static str {
        self.names().manifest[0]
    }

    /// The short name in lower case: `ippool`. File names start with it.
    pub const fn singular(self) -> &'static str {
        self.names().aliases[0]
    }

    /// The name of many: `ippools`.
    pub const fn plural(self) -> &'static str {
        self.names().aliases[1]
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.manifest_name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_means_one_kind() {
        for (alias, kind) in [
            ("pool", Kind::IpPool),
            ("ipps", Kind::IpPool),
            ("IPPool", Kind::IpPool),
            ("bp", Kind::BgpPeer),
            ("bgpconfigs", Kind::BgpConfiguration),
            ("ipamconfiguration", Kind::IpamConfig),
            ("bf", Kind::BgpFilter),
            ("reservations", Kind::IpReservation),
            ("nodestatus", Kind::NodeStatus),
            ("nodes", Kind::Node),
        ] {
            assert_eq!(Kind::from_alias(alias), Some(kind), "{alias}");
        }
        assert_eq!(Kind::from_alias("pod"), None);
        for kind in Kind::ALL {
            assert_eq!(Kind::from_alias(kind.plural()), Some(kind));
            assert_eq!(Kind::from_manifest(kind.manifest_name()), Some(kind));
        }
        assert_eq!(Kind::from_manifest("IPAMConfig"), Some(Kind::IpamConfig));
        assert_eq!(Kind::from_manifest("ippool"), None);
    }
}
