use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a runtime attaches: one interface of one container to one network. Everything that Twill
/// keeps for a pod is keyed by this, never by the pod's name, so that a late DEL of an old sandbox
/// cannot touch a newer one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentId {
    /// The network's name from the network configuration.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// Why a text is no [`LinkAlias`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no alias of a Twill link")]
pub struct AttachmentError(String);

impl AttachmentId {
    /// A digest that is the same in every run and on every machine.
    fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for part in [&self.network, &self.container_id, &self.ifname] {
            // The length keeps ("ab", "c") apart from ("a", "bc").
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        hash.finalize().into()
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.network, self.container_id, self.ifname)
    }
}

/// The name of a pod's host link: `twl` and 48 bits of a hash, 15 bytes, the most that the kernel
/// takes (`IFNAMSIZ`).
pub fn host_link_name(id: &AttachmentId) -> String {
    format!("{HOST_LINK_PREFIX}{}", hex(&id.digest()[..6]))
}

/// How the names of all host links begin: for rules of packet filters.
pub const HOST_LINK_PREFIX: &str = "twl";

/// Whether a name has exactly the form that [`host_link_name`] gives: what merely begins like one
/// (`twlan0`) is somebody else's.
pub fn is_host_link_name(name: &str) -> bool {
    name.strip_prefix(HOST_LINK_PREFIX).is_some_and(|digits| {
        digits.len() == 12 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Octets as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the alias of a host link says about whose it is, as `ip link` shows it.
///
/// ```
/// use twill_types::LinkAlias;
///
/// let alias: LinkAlias = "twill;seq=7;net=pods;id=0123abcd;if=eth0".parse()?;
/// assert_eq!(alias.sequence, 7);
/// # Ok::<(), twill_types::AttachmentError>(())
/// ```
///
/// It is the identity of last resort: the store can be rebuilt from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkAlias {
    /// Whose link it is.
    pub owner: Alias,
    /// The sequence number of the ADD that made it: a podman restart uses the same attachment
    /// again, and only this tells a late DEL which one it means.
    pub sequence: u64,
}

/// An attachment as far as the 255 bytes of an alias can hold it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Alias {
    /// In full.
    Full(AttachmentId),
    /// Too long for an alias (CNI bounds neither network nor container id): a hash of it.
    Hashed(String),
}

impl LinkAlias {
    /// The sequence number of a link whose addresses no store knows of: those of another IPAM
    /// plugin, or none. A store's own begin at 1.
    pub const WITHOUT_STORE: u64 = 0;

    /// The highest number that is read from an alias: one that somebody else has written must not leave a
    /// store without numbers of its own.
    const MAX_SEQUENCE: u64 = u64::MAX / 2;

    /// The longest alias that the kernel takes (`IFALIASZ` - 1).
    const MAX: usize = 255;

    /// The alias of an attachment's host link.
    pub fn new(id: &AttachmentId, sequence: u64) -> Self {
        let full = Self { owner: Alias::Full(id.clone()), sequence };
        if full.to_string().len() <= Self::MAX {
            return full;
        }
        Self { owner: Alias::Hashed(hex(&id.digest()[..16])), sequence }
    }

    /// Whether this link belongs to the attachment.
    pub fn is_of(&self, id: &AttachmentId) -> bool {
        match &self.owner {
            Alias::Full(owner) => owner == id,
            Alias::Hashed(hash) => *hash == hex(&id.digest()[..16]),
        }
    }
}

impl fmt::Display for LinkAlias {
    /// Network and container id cannot hold a `;` (by the specification's pattern); an interface's
    /// name can, so it goes last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "twill;seq={};", self.sequence)?;
        match &self.owner {
            Alias::Full(id) => {
                write!(f, "net={};id={};if={}", id.network, id.container_id, id.ifname)
            }
            Alias::Hashed(hash) => write!(f, "hash={hash}"),
        }
    }
}

impl std::str::FromStr for LinkAlias {
    type Err = AttachmentError;

    fn from_str(text: &str) -> Result<Self, AttachmentError> {
        let bad = || AttachmentError(text.to_owned());
        let rest = text.strip_prefix("twill;").ok_or_else(bad)?;
        let fields: Vec<&str> = rest.splitn(4, ';').collect();
        let field = |index: usize, key: &str| -> Option<&str> {
            fields.get(index)?.strip_prefix(key)?.strip_prefix('=')
        };
        let sequence = field(0, "seq").and_then(|s| s.parse().ok());
        let sequence = sequence.filter(|number| *number <= Self::MAX_SEQUENCE).ok_or_else(bad)?;
        let owner = match (field(1, "net"), field(2, "id"), field(3, "if"), field(1, "hash")) {
            (Some(network), Some(container_id), Some(ifname), None) if fields.len() == 4 => {
                Alias::Full(AttachmentId {
                    network: network.to_owned(),
                    container_id: container_id.to_owned(),
                    ifname: ifname.to_owned(),
                })
            }
            (None, None, None, Some(hash)) if fields.len() == 2 => Alias::Hashed(hash.to_owned()),
            _ => return Err(bad()),
        };
        Ok(Self { owner, sequence })
    }
}

/// A pod whose link is in use, as far as the kernel tells: what a lost store is rebuilt from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LivingPod {
    /// Whose link it is.
    pub attachment: AttachmentId,
    /// The number of the ADD that made it.
    pub sequence: u64,
    /// The addresses that the node routes to it, at least one.
    pub addresses: Vec<IpAddr>,
    /// Pod namespace and name (`prod/web`), for people.
    pub pod: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(network: &str, container_id: &str, ifname: &str) -> AttachmentId {
        AttachmentId {
            network: network.into(),
            container_id: container_id.into(),
            ifname: ifname.into(),
        }
    }

    #[test]
    fn link_names_fit_and_differ() {
        let names: std::collections::BTreeSet<_> =
            [id("n", "ab", "c"), id("n", "a", "bc"), id("na", "b", "c"), id("n", "ab", "d")]
                .iter()
                .map(host_link_name)
                .collect();
        assert_eq!(names.len(), 4);
        assert!(names.iter().all(|name| name.len() == 15 && is_host_link_name(name)));
        for name in ["twlan0", "twl", "twl0123456789ag", "twl0123456789AB", "twd0123456789ab"] {
            assert!(!is_host_link_name(name), "{name}");
        }
    }

    #[test]
    fn aliases_round_trip() {
        for id in [
            id("net", "c1", "eth0"),
            id("net", "c1", "a;b"),
            id("net", "c1", ";if="),
            id("net", &"c".repeat(300), "eth0"),
        ] {
            let alias = LinkAlias::new(&id, 7);
            let text = alias.to_string();
            assert!(text.len() <= LinkAlias::MAX);
            let read: LinkAlias = text.parse().unwrap();
            assert_eq!(read, alias);
            assert!(read.is_of(&id));
        }
        let other = LinkAlias::new(&id("net", "c2", "eth0"), 7);
        assert!(!other.is_of(&id("net", "c1", "eth0")));
        for text in ["", "twill", "twill;seq=x;hash=0", "twill;seq=1;net=a;id=b", "eth0"] {
            assert!(text.parse::<LinkAlias>().is_err(), "{text}");
        }
        // Numbers go on after it, so there have to be some.
        let numbered =
            |number: u64| format!("twill;seq={number};net=a;id=b;if=c").parse::<LinkAlias>();
        assert!(numbered(u64::MAX / 2).is_ok());
        for number in [u64::MAX / 2 + 1, u64::MAX] {
            assert!(numbered(number).is_err(), "{number}");
        }
    }
}
