//! What no single field can tell, kind by kind: the rules of `kinds/*.rs`, for the API server.
//!
//! Fields with a default in the schema are always set. An expression that needs a well-formed
//! prefix holds where there is none, so that each mistake is told once.

use super::rules::Rule;

/// Rules by the path of the node that `self` is.
type Rules = &'static [(&'static str, &'static [Rule])];

/// The prefix length of a pool's blocks, set or not.
macro_rules! block_size {
    ($pool:literal) => {
        concat!(
            "(has(",
            $pool,
            ".blockSize) ? ",
            $pool,
            ".blockSize : cidr(",
            $pool,
            ".cidr).ip().family() == 4 ? 26 : 122)"
        )
    };
}

/// Ranges that no pod has an address of.
macro_rules! special {
    () => {
        "['169.254.0.0/16', '127.0.0.0/8', '224.0.0.0/4', 'fe80::/10', '::1/128', 'ff00::/8']"
    };
}

pub(super) const IP_POOL: Rules = &[
    (
        "spec.cidr",
        &[
            Rule::here("self == oldSelf", "cannot change while the pool exists; make another pool"),
            Rule::here(
                concat!(
                    "!isCIDR(self) || ", special!(),
                    ".all(range, !cidr(range).containsCIDR(self) && !cidr(self).containsCIDR(range))"
                ),
                "overlaps a link-local, loopback or multicast range; choose another range",
            )
            .saying(concat!(
                "'overlaps ' + ", special!(),
                ".filter(range, cidr(range).containsCIDR(self) || cidr(self).containsCIDR(range))[0]",
                " + ', which is link-local, loopback or multicast; choose another range'"
            )),
        ],
    ),
    (
        "spec",
        &[
            Rule::of(
                ".blockSize",
                concat!(
                    "!isCIDR(self.cidr) || !isCIDR(oldSelf.cidr) || ",
                    block_size!("self"), " == ", block_size!("oldSelf")
                ),
                "cannot change while the pool exists; make another pool",
            )
            .saying(concat!(
                "'cannot change from %d to %d while the pool exists; make another pool'.format([",
                block_size!("oldSelf"),
                ", ",
                block_size!("self"),
                "])"
            )),
            Rule::of(
                ".blockSize",
                "!isCIDR(self.cidr) || !has(self.blockSize) || (cidr(self.cidr).ip().family() == 4 ? \
                 self.blockSize >= 20 && self.blockSize <= 32 : \
                 self.blockSize >= 116 && self.blockSize <= 128)",
                "a block of an IPv4 pool is /20 to /32, one of an IPv6 pool /116 to /128",
            ).saying("'a block of /%d is of no use here; one of %s is %s'.format([self.blockSize, self.cidr, cidr(self.cidr).ip().family() == 4 ? '/20 to /32' : '/116 to /128'])"),
            Rule::of(
                ".blockSize",
                "!isCIDR(self.cidr) || self.disabled || !has(self.blockSize) || \
                 cidr(self.cidr).prefixLength() <= self.blockSize",
                "a block of this size does not fit into cidr; set blockSize to its length or more",
            )
            .saying(
                "'a block of /%d does not fit into %s; set blockSize to %d or more, or widen cidr'\
                 .format([self.blockSize, self.cidr, cidr(self.cidr).prefixLength()])",
            ),
            Rule::of(
                ".cidr",
                concat!(
                    "!isCIDR(self.cidr) || self.disabled || has(self.blockSize) || ",
                    "cidr(self.cidr).prefixLength() <= ", block_size!("self")
                ),
                "a block of the default size does not fit into it; set blockSize to the length of \
                 cidr or more, or widen cidr",
            ),
            Rule::of(
                ".vxlanMode",
                "self.ipipMode == 'Never' || self.vxlanMode == 'Never'",
                "vxlanMode and ipipMode exclude each other; remove one of them",
            ),
            Rule::of(
                ".ipipMode",
                "self.ipipMode == 'Never' || !isCIDR(self.cidr) || \
                 cidr(self.cidr).ip().family() == 4",
                "IP in IP is for IPv4 pools; write Never",
            ).saying("'%s is for IPv4 pools, and %s is none; write Never'.format([self.ipipMode, self.cidr])"),
            Rule::of(
                ".namespaceSelector",
                "!has(self.namespaceSelector) || !has(self.allowedUses) || \
                 !('Tunnel' in self.allowedUses)",
                "tunnels have no namespace; take Tunnel out of allowedUses or remove this",
            ),
            Rule::of(
                ".allowedUses",
                "!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || \
                 size(self.allowedUses) == 1",
                "LoadBalancer stands alone; make another pool for the rest",
            ),
            Rule::of(
                ".nodeSelector",
                "!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || \
                 self.nodeSelector.matches('^[ \\t]*(all[(][ \\t]*[)])?[ \\t]*$')",
                "a LoadBalancer pool belongs to no node; write all()",
            ),
            Rule::of(
                ".ipipMode",
                "!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || \
                 self.ipipMode == 'Never'",
                NOT_WITH_LOAD_BALANCER,
            ),
            Rule::of(
                ".vxlanMode",
                "!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || \
                 self.vxlanMode == 'Never'",
                NOT_WITH_LOAD_BALANCER,
            ),
            Rule::of(
                ".disableBGPExport",
                "!has(self.allowedUses) || !('LoadBalancer' in self.allowedUses) || \
                 !self.disableBGPExport",
                NOT_WITH_LOAD_BALANCER,
            ),
        ],
    ),
];

const NOT_WITH_LOAD_BALANCER: &str = "cannot be set in a LoadBalancer pool; remove it";

pub(super) const BGP_PEER: Rules = &[(
    "spec",
    &[
        Rule::of(
            ".nodeSelector",
            "!has(self.node) || !has(self.nodeSelector)",
            "nodeSelector and node exclude each other; remove one of them",
        ),
        Rule::of(
            ".peerSelector",
            "!has(self.peerIP) || !has(self.peerSelector)",
            "peerSelector and peerIP exclude each other; remove one of them",
        ),
        Rule::of(
            ".localWorkloadSelector",
            "!has(self.localWorkloadSelector) || !has(self.peerIP) && !has(self.peerSelector)",
            "localWorkloadSelector excludes peerIP and peerSelector; remove one of them",
        ),
        Rule::of(
            ".peerIP",
            "has(self.peerIP) || has(self.peerSelector) || has(self.localWorkloadSelector)",
            "the peer has no address; write peerIP: 192.0.2.1",
        ),
        Rule::of(
            ".asNumber",
            "has(self.asNumber) || !has(self.localWorkloadSelector)",
            "the peer's AS number is missing; add asNumber: 64512",
        ),
        Rule::of(
            ".asNumber",
            "!has(self.asNumber) || !has(self.peerSelector)",
            "nodes know their AS numbers; remove it beside peerSelector",
        ),
        Rule::of(
            ".keepOriginalNextHop",
            "!has(self.nextHopMode) || !has(self.keepOriginalNextHop) || !self.keepOriginalNextHop",
            "keepOriginalNextHop and nextHopMode exclude each other; remove one of them",
        ),
        Rule::of(
            ".reachableBy",
            "!has(self.reachableBy) || has(self.peerIP)",
            "needs peerIP: it is the way to that address",
        ),
        Rule::of(
            ".reachableBy",
            "!has(self.reachableBy) || !has(self.peerIP) || !isIP(self.reachableBy) || \
             (ip(self.reachableBy).family() == 6) == self.peerIP.matches('^[[]|:.*:')",
            "must be of the same family as peerIP",
        ).saying("'%s is of another family than %s; write a gateway of that family'.format([self.reachableBy, self.peerIP])"),
    ],
)];

pub(super) const BGP_CONFIGURATION: Rules = &[(
    "",
    &[
        Rule::of(
            ".spec.nodeToNodeMeshEnabled",
            "self.metadata.name == 'default' || !has(self.spec.nodeToNodeMeshEnabled)",
            ONLY_IN_DEFAULT,
        ),
        Rule::of(
            ".spec.nodeMeshPassword",
            "self.metadata.name == 'default' || !has(self.spec.nodeMeshPassword)",
            ONLY_IN_DEFAULT,
        ),
        Rule::of(
            ".spec.nodeMeshLongLivedRestartTime",
            "self.metadata.name == 'default' || !has(self.spec.nodeMeshLongLivedRestartTime)",
            ONLY_IN_DEFAULT,
        ),
        Rule::of(
            ".spec.nodeMeshMaxRestartTime",
            "self.metadata.name == 'default' || !has(self.spec.nodeMeshMaxRestartTime)",
            ONLY_IN_DEFAULT,
        ),
    ],
)];

const ONLY_IN_DEFAULT: &str = "belongs into the BGPConfiguration named `default`; move it there";

pub(super) const BGP_FILTER: Rules = &[
    ("spec.exportV4[]", FILTER_RULE),
    ("spec.importV4[]", FILTER_RULE),
    ("spec.exportV6[]", FILTER_RULE),
    ("spec.importV6[]", FILTER_RULE),
    ("spec.exportV4[]", FILTER_RULE_V4),
    ("spec.importV4[]", FILTER_RULE_V4),
    ("spec.exportV6[]", FILTER_RULE_V6),
    ("spec.importV6[]", FILTER_RULE_V6),
    ("spec.exportV4[].operations[]", FILTER_OPERATION),
    ("spec.importV4[].operations[]", FILTER_OPERATION),
    ("spec.exportV6[].operations[]", FILTER_OPERATION),
    ("spec.importV6[].operations[]", FILTER_OPERATION),
];

const FILTER_RULE: &[Rule] = &[
    Rule::here(
        "has(self.cidr) == has(self.matchOperator)",
        "cidr and matchOperator come together; add the other one",
    ),
    Rule::of(
        ".prefixLength",
        "!has(self.prefixLength) || has(self.cidr)",
        "needs cidr: it bounds the prefixes that cidr is compared with",
    ),
    Rule::of(
        ".prefixLength",
        "!has(self.prefixLength) || !has(self.prefixLength.min) || !has(self.prefixLength.max) || \
         self.prefixLength.min <= self.prefixLength.max",
        "min is greater than max; exchange them",
    ),
    Rule::of(
        ".operations",
        "!has(self.operations) || self.action == 'Accept'",
        "changes need action: Accept",
    ),
];

const FILTER_RULE_V4: &[Rule] = &[
    Rule::of(
        ".cidr",
        "!has(self.cidr) || !isCIDR(self.cidr) || cidr(self.cidr).ip().family() == 4",
        "must be an IPv4 prefix here; IPv6 rules stand in importV6 and exportV6",
    ),
    Rule::of(
        ".prefixLength",
        "!has(self.prefixLength) || (!has(self.prefixLength.min) || self.prefixLength.min <= 32) && \
         (!has(self.prefixLength.max) || self.prefixLength.max <= 32)",
        "IPv4 prefixes are at most 32 bits long",
    ),
];

const FILTER_RULE_V6: &[Rule] = &[Rule::of(
    ".cidr",
    "!has(self.cidr) || !isCIDR(self.cidr) || cidr(self.cidr).ip().family() == 6",
    "must be an IPv6 prefix here; IPv4 rules stand in importV4 and exportV4",
)];

const FILTER_OPERATION: &[Rule] = &[Rule::here(
    "[has(self.addCommunity), has(self.prependASPath), has(self.setPriority)].filter(is, is).size() == 1",
    "exactly one of addCommunity, prependASPath and setPriority is one change; split or fill it",
)];

pub(super) const IPAM_CONFIG: Rules = &[(
    "spec",
    &[
        Rule::of(
            ".autoAllocateBlocks",
            "self.strictAffinity || self.autoAllocateBlocks",
            "without blocks of their own, nodes would give out each other's addresses; set it to \
             true, or strictAffinity to true",
        ),
        Rule::of(
            ".maxBlocksPerHost",
            "self.maxBlocksPerHost == 0 || self.strictAffinity",
            "a limit needs strictAffinity: true",
        )
        .saying("'a limit of %d needs strictAffinity: true'.format([self.maxBlocksPerHost])"),
    ],
)];

/// The address in a claim's name is that of its block. Of an IPv6 address only the form is checked:
/// the server bounds the cost of reading one only where it can bound the text's length.
const NAMED_BY_ADDRESS: &str = "\
    !isCIDR(self.spec.cidr) || (cidr(self.spec.cidr).ip().family() == 4 ? \
    self.metadata.name.matches('^[0-9a-f]{8}-') && [0, 1, 2, 3].all(octet, \
    int(self.spec.cidr.split('/')[0].split('.')[octet]) == \
    '0123456789abcdef'.indexOf(self.metadata.name.charAt(2 * octet)) * 16 + \
    '0123456789abcdef'.indexOf(self.metadata.name.charAt(2 * octet + 1))) : \
    self.metadata.name.matches('^[0-9a-f]{32}-'))";

pub(super) const BLOCK_AFFINITY: Rules = &[
    (
        "",
        &[
            Rule::of(".metadata.name", NAMED_BY_ADDRESS, NAMED_BY_BLOCK),
            Rule::of(
                ".metadata.name",
                "self.spec.cidr.split('/').size() != 2 || \
                 self.metadata.name.endsWith('-' + self.spec.cidr.split('/')[1])",
                NAMED_BY_BLOCK,
            ),
        ],
    ),
    ("spec.cidr", &[Rule::here("self == oldSelf", "a claim is of one block for ever")]),
    (
        "spec.node",
        &[Rule::here("self == oldSelf", "a claim does not change hands; delete it, make another")],
    ),
];

const NAMED_BY_BLOCK: &str = "a claim is named by its block: the address in 8 or 32 hexadecimal \
                              digits, `-` and the length, such as 0a0a0040-26";

pub(super) const BLOCK_REQUEST: Rules = &[
    (
    "",
    &[Rule::of(
        ".status.granted",
        "!has(self.status) || !has(self.status.granted) || !isCIDR(self.status.granted) || \
         !isCIDR(self.spec.block) || cidr(self.spec.block).containsCIDR(self.status.granted) && \
         cidr(self.status.granted).prefixLength() > cidr(self.spec.block).prefixLength()",
        "is no part of the block that was asked for",
    ).saying("'%s is no part of %s'.format([self.status.granted, self.spec.block])")],
    ),
    (
    "spec",
    &[
        Rule::here("self == oldSelf", "a request does not change; make another one"),
        Rule::of(
            ".length",
            "!isCIDR(self.block) || self.length >= cidr(self.block).prefixLength() && \
             self.length <= (cidr(self.block).ip().family() == 4 ? 32 : 128)",
            "a part is as long as its block or longer, up to 32 in IPv4 and 128 in IPv6",
        ).saying("'a part of /%d does not fit into %s; write its length or more, up to %d'.format([self.length, self.block, cidr(self.block).ip().family() == 4 ? 32 : 128])"),
        Rule::of(
            ".address",
            "!has(self.address) || !isCIDR(self.block) || !isIP(self.address) || \
             cidr(self.block).containsIP(self.address)",
            "is not in the block; leave it out, or ask for a part of another block",
        ).saying("'%s is not in %s; leave it out, or ask for a part of another block'.format([self.address, self.block])"),
    ],
),
];
