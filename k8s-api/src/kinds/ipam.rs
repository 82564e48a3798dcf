use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize, de};
use twill_types::{Block, Dedication, Prefix};

use super::{Effects, Report, Rules};
use crate::{API_VERSION, Kind, Metadata, Object, Unsupported};

/// How addresses are given out; only the one named `default` is read. Its kind is
/// `IPAMConfiguration`, and `IPAMConfig` in the older API group; both are read.
pub type IpamConfig = Object<IpamConfigSpec>;

/// What an IPAMConfiguration says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct IpamConfigSpec {
    /// Nodes give out addresses of their own blocks only.
    pub strict_affinity: bool,
    /// Nodes take blocks as they need them.
    pub auto_allocate_blocks: bool,
    /// How many blocks a node may have; 0: no limit of its own.
    #[serde(skip_serializing_if = "is_zero")]
    #[cfg_attr(feature = "schema", schemars(range(max = 1_000_000), extend("default" = 0)))]
    pub max_blocks_per_host: u32,
    /// Whether a virtual machine keeps its address.
    #[serde(rename = "kubeVirtVMAddressPersistence", skip_serializing_if = "Option::is_none")]
    pub kube_virt_vm_address_persistence: Option<VmAddressPersistence>,
    /// How long an address rests after use, seconds.
    #[serde(skip_serializing_if = "is_zero")]
    #[cfg_attr(feature = "schema", schemars(range(max = 1200), extend("default" = 0)))]
    pub ip_cooldown_seconds: u32,
}

/// Whether a virtual machine keeps its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum VmAddressPersistence {
    /// It does.
    Enabled,
    /// It does not.
    Disabled,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl Default for IpamConfigSpec {
    fn default() -> Self {
        Self {
            strict_affinity: false,
            auto_allocate_blocks: true,
            max_blocks_per_host: 0,
            kube_virt_vm_address_persistence: None,
            ip_cooldown_seconds: 0,
        }
    }
}

impl Rules for IpamConfig {
    fn check(&self, report: &mut Report) {
        let spec = &self.spec;
        if self.metadata.name != "default" {
            report.warning("metadata.name", "is read by nobody; name it `default`");
        }
        if !spec.strict_affinity && !spec.auto_allocate_blocks {
            report.error(
                "spec.autoAllocateBlocks",
                "without blocks of their own, nodes would give out each other's addresses; set it \
                 to true, or strictAffinity to true",
            );
        }
        if spec.max_blocks_per_host > 0 && !spec.strict_affinity {
            report.error("spec.maxBlocksPerHost", "a limit needs strictAffinity: true");
        }
        if spec.max_blocks_per_host > 1_000_000 {
            report.error("spec.maxBlocksPerHost", "is at most 1000000");
        }
        if spec.ip_cooldown_seconds > 1200 {
            report.error("spec.ipCooldownSeconds", "is at most 1200");
        }
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        let spec = &self.spec;
        Effects::new()
            .when(
                spec.kube_virt_vm_address_persistence.is_some(),
                "spec.kubeVirtVMAddressPersistence",
                "a virtual machine gets a new address with each pod",
            )
            .done()
    }
}

/// Addresses that nobody gets.
pub type IpReservation = Object<IpReservationSpec>;

/// What an IPReservation says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default)]
pub struct IpReservationSpec {
    /// The addresses.
    #[serde(rename = "reservedCIDRs")]
    #[cfg_attr(feature = "schema", schemars(length(max = 1000), with = "Vec<crate::crd::Cidr>"))]
    pub reserved_cidrs: Vec<Prefix>,
}

impl Rules for IpReservation {
    fn check(&self, _: &mut Report) {}

    fn unsupported(&self) -> Vec<Unsupported> {
        Vec::new()
    }
}

/// The finalizer of a claim on the API server: it keeps the claim, whoever deletes it, until its owner has let go of
/// it. Never an owner reference: claims would go with a Node, while its pods live.
pub const CLAIM_FINALIZER: &str = "twill.projectcalico.org/claim";

/// The finalizer of a BlockRequest on the API server: it keeps the request, whoever deletes it, until its part has
/// come back.
pub const REQUEST_FINALIZER: &str = "twill.projectcalico.org/request";

/// The owner's last word (`status.refused`) about a part of a block that is not its own any more: who asked may
/// claim the block.
pub const NOT_OURS: &str = "the block is not this node's any more";

/// The claim of a block by a node.
pub type BlockAffinity = Object<BlockAffinitySpec>;

/// What a BlockAffinity says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BlockAffinitySpec {
    /// How far the claim is; the empty text of Calico's older objects means `confirmed`, and Twill
    /// writes nothing else.
    #[serde(default)]
    #[cfg_attr(feature = "schema", schemars(with = "crate::crd::AffinityState"))]
    pub state: AffinityState,
    /// Whose it is.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub node: String,
    /// What that is.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub affinity_type: Option<AffinityType>,
    /// The block.
    #[cfg_attr(feature = "schema", schemars(with = "crate::crd::BlockCidr"))]
    pub cidr: Block,
    /// The pool it was taken from (Twill's own field).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub pool: Option<String>,
    /// The network of another main plugin that it is set aside for (Twill's own field).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Dedication>"))]
    pub dedication: Option<Dedication>,
    /// Parts of it that other nodes have (Twill's own field). Its owner writes them, and as long as
    /// there is one the claim cannot go.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub delegations: Vec<Delegation>,
    /// Calico's mark of a claim that is about to go.
    #[serde(
        default,
        deserialize_with = "bool_or_text",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub deleted: bool,
}

/// A part of a block that another node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Delegation {
    /// The part.
    #[cfg_attr(feature = "schema", schemars(with = "crate::crd::BlockCidr"))]
    pub cidr: Block,
    /// Who has it.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub node: String,
    /// The name of the BlockRequest that it answers. It is the node's until that says that it was
    /// returned, and the owner has removed this entry.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub request: String,
}

/// A node asks for a part of another's block, or has one.
pub type BlockRequest = Object<BlockRequestSpec>;

/// What a BlockRequest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct BlockRequestSpec {
    /// Who asks.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub node: String,
    /// Who is asked: the node that owns the block. It watches what it is asked by this field; in files, where
    /// every node reads all requests, it says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub owner: Option<String>,
    /// The claimed block that the part is to come from.
    #[cfg_attr(feature = "schema", schemars(with = "crate::crd::BlockCidr"))]
    pub block: Block,
    /// The pool of that block.
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 253)))]
    pub pool: String,
    /// The prefix length of the part; it may be a smaller one (a larger number).
    #[cfg_attr(feature = "schema", schemars(range(max = 128)))]
    pub length: u8,
    /// An address that has to be in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::Address>"))]
    pub address: Option<IpAddr>,
}

impl BlockRequest {
    /// A new one, made at this time (RFC 3339).
    pub fn named(name: String, created: String, spec: BlockRequestSpec) -> Self {
        Self {
            api_version: API_VERSION.to_owned(),
            kind: Kind::BlockRequest.manifest_name().to_owned(),
            metadata: Metadata { name, creation_timestamp: Some(created), ..Metadata::default() },
            spec,
            status: None,
        }
    }
}

/// What became of a BlockRequest: its status.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct BlockRequestStatus {
    /// Why the owner lends nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// The part that it got.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<crate::crd::BlockCidr>"))]
    pub granted: Option<Block>,
    /// Who asked does not use the part any more, or does not want one any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub returned: bool,
}

impl BlockRequest {
    /// What became of it, value by value: what makes no sense was not said, and hides nothing else. So is a
    /// part of another block: its owner may give nobody the addresses of a third.
    pub fn outcome(&self) -> BlockRequestStatus {
        let status = self.status.as_ref();
        let value = |name: &str| status.and_then(|status| status.get(name));
        let granted = value("granted").and_then(|part| Block::deserialize(part).ok());
        let block = self.spec.block.prefix();
        let is_part = |part: &Block| {
            let part = part.prefix();
            block.covers(part) && part.length() > block.length()
        };
        BlockRequestStatus {
            refused: value("refused").and_then(|why| String::deserialize(why).ok()),
            granted: granted.filter(is_part),
            returned: value("returned").and_then(serde_json::Value::as_bool).unwrap_or_default(),
        }
    }

    /// The same with another outcome.
    pub fn with_outcome(mut self, outcome: &BlockRequestStatus) -> Self {
        self.status = serde_json::to_value(outcome).ok();
        self
    }
}

impl Rules for BlockRequest {
    fn check(&self, report: &mut Report) {
        let block = self.spec.block.prefix();
        let (least, most) = (block.length(), block.family().bits());
        if !(least..=most).contains(&self.spec.length) {
            report.error("spec.length", format!("a part of {block} is /{least} to /{most}"));
        }
        if self.spec.address.is_some_and(|address| !block.contains(address)) {
            let message =
                format!("is not in {block}; leave it out, or ask for a part of another block");
            report.error("spec.address", message);
        }
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        Vec::new()
    }
}

/// How far a claim is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub enum AffinityState {
    /// The block is the node's. Calico's older objects say so by an empty text.
    #[default]
    #[serde(alias = "")]
    Confirmed,
    /// It is about to be.
    Pending,
    /// It is about to be given back.
    PendingDeletion,
}

/// What owns a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AffinityType {
    /// A node.
    Host,
    /// Something that is no node.
    Virtual,
}

/// Calico's older API group writes this boolean as a text.
fn bool_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    struct Visitor;
    impl de::Visitor<'_> for Visitor {
        type Value = bool;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("true or false")
        }

        fn visit_bool<E>(self, value: bool) -> Result<bool, E> {
            Ok(value)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<bool, E> {
            match text {
                "true" => Ok(true),
                "false" | "" => Ok(false),
                _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
            }
        }
    }
    deserializer.deserialize_any(Visitor)
}

impl Rules for BlockAffinity {
    /// Whoever makes the object has the block, so there must be one name for each.
    fn check(&self, report: &mut Report) {
        let right = self.spec.cidr.claim_name();
        if self.metadata.name != right {
            let message = format!("a claim is named by its block; write {right}");
            report.error("metadata.name", message);
        }
    }

    fn unsupported(&self) -> Vec<Unsupported> {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn outcome(status: Value) -> BlockRequestStatus {
        let request: BlockRequest = serde_json::from_value(json!({
            "apiVersion": API_VERSION, "kind": "BlockRequest", "metadata": {"name": "r"},
            "spec": {"node": "node2", "block": "10.10.0.0/26", "pool": "a", "length": 29},
            "status": status,
        }))
        .unwrap();
        request.outcome()
    }

    #[test]
    fn what_is_granted_is_a_part_of_the_block_that_was_asked_for() {
        let granted = |part: &str| outcome(json!({"granted": part})).granted.is_some();
        assert!(granted("10.10.0.0/27") && granted("10.10.0.63/32"));
        for part in ["10.10.0.64/27", "10.10.0.0/26", "10.10.0.0/20", "fd00::/122"] {
            assert!(!granted(part), "{part}");
        }
    }

    #[test]
    fn a_value_that_makes_no_sense_hides_no_other() {
        let found = outcome(json!({"granted": "all of it", "refused": "no", "returned": true}));
        let right =
            BlockRequestStatus { refused: Some("no".to_owned()), granted: None, returned: true };
        assert_eq!(found, right);
        assert_eq!(outcome(json!({"returned": "yes"})), BlockRequestStatus::default());
        assert_eq!(outcome(Value::Null), BlockRequestStatus::default());
    }
}
