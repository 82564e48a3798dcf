//! Schemas of the types that are written as text: what the API server can check of each.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::rules::Rule;

/// The longest text of a prefix: an IPv6 address and `/128`.
const CIDR_LENGTH: usize = 43;

/// The longest text of an IPv6 address.
const ADDRESS_LENGTH: usize = 39;

/// A type that stands in a field's place while its schema is made.
macro_rules! field {
    ($(#[$doc:meta])* $name:ident => $schema:expr) => {
        $(#[$doc])*
        pub(crate) struct $name;

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    };
}

field!(
    /// A [`twill_types::Prefix`].
    Cidr => text(CIDR_LENGTH, &[Rule::here(IS_CIDR, NO_CIDR), MASKED])
);

field!(
    /// A [`twill_types::Block`].
    BlockCidr => text(
        CIDR_LENGTH,
        &[
            Rule::here(IS_CIDR, NO_CIDR),
            MASKED,
            Rule::here(
                "!isCIDR(self) || cidr(self).prefixLength() >= (cidr(self).ip().family() == 4 ? 20 : 116)",
                "a block is /20 to /32 in IPv4 and /116 to /128 in IPv6",
            ),
        ],
    )
);

const IS_CIDR: &str = "isCIDR(self)";
const NO_CIDR: &str = "write a prefix such as 10.10.0.0/20 or fd00:10::/64";

const MASKED: Rule = Rule::here(
    "!isCIDR(self) || cidr(self).masked() == cidr(self)",
    "has host bits set; clear the bits behind the prefix length",
)
.saying("'%s has host bits set; write %s'.format([self, string(cidr(self).masked())])");

field!(
    /// An address of either family.
    Address => text(
        ADDRESS_LENGTH,
        &[Rule::here("isIP(self)", "write an address such as 192.0.2.1 or 2001:db8::1")],
    )
);

field!(
    /// An IPv4 address.
    Address4 => text(
        ADDRESS_LENGTH,
        &[Rule::here("isIP(self) && ip(self).family() == 4", "write an IPv4 address such as 192.0.2.1")],
    )
);

field!(
    /// An IPv6 address.
    Address6 => text(
        ADDRESS_LENGTH,
        &[Rule::here("isIP(self) && ip(self).family() == 6", "write an IPv6 address such as 2001:db8::1")],
    )
);

field!(
    /// A [`crate::PeerAddress`]: an address, or one with a port.
    PeerAddress => text(
        64,
        &[
            Rule::here(
                "isIP(self) || \
                 self.matches('^[0-9.]+:[0-9]{1,5}$') && isIP(self.split(':')[0]) || \
                 self.matches('^[[][0-9a-fA-F:.]*:[0-9a-fA-F:.]*[]](:[0-9]{1,5})?$') && \
                 isIP(self.substring(1, self.indexOf(']')))",
                "write 192.0.2.1, 192.0.2.1:1179, 2001:db8::1 or [2001:db8::1]:1179, without an \
                 interface",
            ),
            Rule::here(
                "!self.matches('(^[0-9.]+|[]]):[0-9]{1,5}$') || \
                 [int(self.substring(self.lastIndexOf(':') + 1))].all(port, port >= 1 && port <= 65535)",
                "ports are 1 to 65535",
            ),
            Rule::here(
                "[self.matches('^[[].*[]]') ? self.substring(1, self.indexOf(']')) : \
                 isIP(self) ? self : self.split(':')[0]].all(address, !isIP(address) || \
                 !ip(address).isUnspecified() && address != '255.255.255.255' && \
                 !cidr('224.0.0.0/4').containsIP(address) && !cidr('ff00::/8').containsIP(address))",
                "is no address of a router; write the one it listens on",
            ),
        ],
    )
);

field!(
    /// A [`twill_types::Asn`]: a number, or a text in either notation of RFC 5396.
    AsNumber => with_rules(
        json!({"x-kubernetes-int-or-string": true, "maxLength": 11}),
        &[Rule::here(
            "type(self) == int ? self >= 1 && self <= 4294967295 : type(self) == string && \
             self.matches('^([0-9]{1,10}|[0-9]{1,5}[.][0-9]{1,5})$') && \
             self.split('.').exists(part, int(part) > 0) && (self.contains('.') ? \
             self.split('.').all(part, int(part) <= 65535) : int(self) <= 4294967295)",
            "an AS number is 1 to 4294967295, or in quotes high.low such as \"64512.1\"",
        )],
    )
);

field!(
    /// An [`AsNumber`] in a list of a list of a list: there the API server's budget for rules is too
    /// small for one, so it checks the form of a text, and its range is the reader's to check.
    PathAsNumber => with_rules(
        json!({
            "x-kubernetes-int-or-string": true,
            "maxLength": 11,
            "minimum": 1,
            "maximum": u32::MAX,
            "pattern": "^([0-9]{1,10}|[0-9]{1,5}[.][0-9]{1,5})$",
        }),
        &[],
    )
);

field!(
    /// A [`twill_selector::Selector`]; its syntax is the controller's to check.
    Selector => text(
        1024,
        &[Rule::here(
            "!self.matches('^[ \\t!(]*global[(][ \\t]*[)]')",
            "global() selects nothing here; write all() for everything",
        )],
    )
);

field!(
    /// A time such as `120s`.
    Duration => text(
        32,
        &[Rule::here(
            "self.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h))+$') && duration(self) >= duration('0s')",
            "write a time such as 120s or 2m",
        )],
    )
);

field!(
    /// A BGP community: `aa:nn` of two octets each (RFC 1997), or `aa:nn:mm` of four each (RFC 8092).
    Community => text(
        32,
        &[Rule::here(
            "self.matches('^[0-9]{1,5}:[0-9]{1,5}$') ? self.split(':').all(part, int(part) <= 65535) : \
             self.matches('^[0-9]{1,10}:[0-9]{1,10}:[0-9]{1,10}$') && \
             self.split(':').all(part, int(part) <= 4294967295)",
            "a community is aa:nn with parts up to 65535, or aa:nn:mm with parts up to 4294967295",
        )],
    )
);

field!(
    /// A [`crate::AffinityState`], with the empty text of Calico's older objects.
    AffinityState => with_rules(
        json!({"type": "string", "enum": ["", "confirmed", "pending", "pendingDeletion"]}),
        &[],
    )
);

/// A [`twill_types::Dedication`].
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
pub(crate) struct Dedication {
    /// The network's name.
    #[schemars(length(min = 1, max = 253))]
    network: String,
    /// Whether the block is announced to BGP peers.
    advertise: bool,
}

fn text(longest: usize, rules: &[Rule]) -> Schema {
    with_rules(json!({"type": "string", "maxLength": longest}), rules)
}

fn with_rules(mut schema: Value, rules: &[Rule]) -> Schema {
    if !rules.is_empty() {
        schema["x-kubernetes-validations"] = rules.iter().copied().map(Rule::to_json).collect();
    }
    let Value::Object(schema) = schema else { return json_schema!(true) };
    schema.into()
}
