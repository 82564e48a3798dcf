//! Which sessions this node should have: a pure function of the resources.

mod policy;
mod restart;
mod selected;
mod shared;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use twill_bgp_proto::{
    self as proto, PeerConfig, PeerKey, PeerKind, PeerPolicy, Reflection, SpeakerConfig, wire::Role,
};
use twill_bgp_speaker::Password;
use twill_k8s_api::{
    BgpConfiguration, BgpConfigurationSpec, BgpPeer, BgpPeerSpec, Condition, Kind, LocalRole,
    NextHopMode, Node, ObjectId, SourceAddress,
};
use twill_types::{Asn, Family};

use self::{policy::Policies, selected::Session};
use crate::{bgp::Identity, datastore::Snapshot, filters::LastFilters, passwords};

/// BGP's own port (RFC 4271 section 3).
const BGP_PORT: u16 = 179;

/// What BGP should look like on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    /// `None` until there is a Node resource with an address.
    pub(crate) identity: Option<Identity>,
    pub(crate) listen_port: u16,
    pub(crate) peers: BTreeMap<PeerKey, PeerConfig>,
    /// Whose routes are passed on.
    pub(crate) reflection: Option<Reflection>,
    /// By the peer's address.
    pub(crate) passwords: BTreeMap<IpAddr, Password>,
    /// What sessions go by when a filter is gone, for the next process as well.
    pub(crate) last: LastFilters,
    pub(crate) problems: Vec<String>,
    /// What is to be said about single objects.
    pub(crate) conditions: BTreeMap<ObjectId, Vec<Condition>>,
}

impl Desired {
    /// Adds a session, or replaces the mesh's with that peer.
    fn add(&mut self, key: PeerKey, session: PeerConfig, password: Option<Password>) {
        let other = self
            .peers
            .iter()
            .find(|(other, _)| other.address == key.address && other.port != key.port);
        // The kernel has one key for an address, whatever the port.
        if let Some((_, other)) = other
            && self.passwords.get(&key.address) != password.as_ref()
        {
            self.problems.push(format!(
                "BGPPeers {} and {} mean two ports of {} with different passwords; the first one \
                 is used: give both the same",
                other.name, session.name, key.address
            ));
            return;
        }
        match password {
            Some(password) => drop(self.passwords.insert(key.address, password)),
            None => drop(self.passwords.remove(&key.address)),
        }
        self.peers.insert(key, session);
    }

    /// For each of several sessions of an object.
    fn say_once(&mut self, kind: Kind, name: &str, condition: Condition) {
        let problem = format!("{kind} {name}: {}", condition.message);
        if self.note_once(kind, name, condition) {
            self.problems.push(problem);
        }
    }

    fn say(&mut self, kind: Kind, name: &str, condition: Condition) {
        self.problems.push(format!("{kind} {name}: {}", condition.message));
        self.conditions.entry(object(kind, name)).or_default().push(condition);
    }

    /// Says it of the object alone, as the node has no problem with it; `false` if it was said before.
    fn note_once(&mut self, kind: Kind, name: &str, condition: Condition) -> bool {
        let said = self.conditions.entry(object(kind, name)).or_default();
        let is_new = !said.contains(&condition);
        if is_new {
            said.push(condition);
        }
        is_new
    }
}

fn object(kind: Kind, name: &str) -> ObjectId {
    ObjectId { kind: kind.singular().to_owned(), namespace: None, name: name.to_owned() }
}

/// What sessions have that there are already.
#[derive(Debug, Clone, Default)]
pub(crate) struct Known {
    /// By the peer's address.
    passwords: BTreeMap<IpAddr, Password>,
    /// With the filters that each session goes by, unless nothing passes it.
    last: LastFilters,
}

impl Known {
    /// That of these sessions.
    pub(crate) fn of(desired: &Desired) -> Self {
        let sessions =
            desired.peers.iter().filter_map(|(key, peer)| Some((*key, policy::names(peer)?)));
        let last =
            LastFilters { filters: desired.last.filters.clone(), sessions: sessions.collect() };
        Self { passwords: desired.passwords.clone(), last }
    }

    /// Adds what the process before has left; what is known by now is newer.
    pub(crate) fn add_left(&mut self, left: LastFilters) {
        for (name, spec) in left.filters {
            self.last.filters.entry(name).or_insert(spec);
        }
        for (session, filters) in left.sessions {
            self.last.sessions.entry(session).or_insert(filters);
        }
    }
}

/// Works out the sessions of `node`. One that is `known` already goes on with its own password where the
/// Secret is gone, and with filters as they were last where one is gone, since a mistake in a manifest ends no
/// session.
pub(crate) fn desired(node: &str, resources: &Snapshot, known: &Known) -> Desired {
    let (config, wrong) = Configuration::of(node, resources, known);
    let mut desired = Desired { listen_port: config.listen_port(node), ..Desired::default() };
    let Some(own) = resources.nodes.get(node) else {
        desired.problems.push(format!(
            "there is no Node resource named {node}: add one, with the annotation \
             projectcalico.org/IPv4Address"
        ));
        return desired;
    };
    let Some(address) = session_address(own) else {
        desired.problems.push(format!(
            "Node {node} has no address: set the annotation projectcalico.org/IPv4Address"
        ));
        return desired;
    };
    let router_id = match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(_) => SpeakerConfig::router_id_from_name(node),
    };
    let asn = config.as_number(own);
    desired.identity = Some(Identity { asn, router_id });
    desired.reflection = reflection(own, resources);
    for (name, condition) in wrong {
        desired.say(Kind::BgpConfiguration, &name, condition);
    }
    if config.mesh {
        mesh(own, resources, &config, &mut desired);
    }
    by_peers((own, asn), resources, &config, &mut desired);
    shared::tell_apart(resources, &config, &mut desired);
    desired.last.filters = config.policies.last(&resources.peers, &desired.last.sessions);
    desired
}

/// The sessions of all BGPPeers. There is one with each address and port: that of a `peerIP` before that of a
/// `peerSelector`, and of two of a kind the first by name. Each takes the place of the mesh's.
fn by_peers(
    own: (&Node, Asn),
    resources: &Snapshot,
    config: &Configuration<'_>,
    desired: &mut Desired,
) {
    let mut taken = BTreeSet::new();
    for (name, peer) in &resources.peers {
        let Some(address) = peer.spec.peer_ip else { continue };
        match selected::at(peer, address, own.0, resources, config) {
            Ok(Some(session)) => {
                taken.insert(session.key.address);
                explicit(name, peer, &session, own, resources, config, desired);
            }
            Ok(None) => {}
            Err(condition) => desired.say(Kind::BgpPeer, name, condition),
        }
    }
    for (name, peer) in &resources.peers {
        for session in selected::nodes(peer, own.0, resources, config) {
            if taken.insert(session.key.address) {
                explicit(name, peer, &session, own, resources, config, desired);
            }
        }
    }
}

/// BGPConfiguration, the defaults filled in.
struct Configuration<'a> {
    asn: Asn,
    mesh: bool,
    default: Option<&'a BgpConfigurationSpec>,
    all: &'a BTreeMap<String, BgpConfiguration>,
    policies: Policies<'a>,
    known: &'a Known,
}

impl<'a> Configuration<'a> {
    /// With what is wrong with it, and with which object.
    fn of(
        node: &str,
        resources: &'a Snapshot,
        known: &'a Known,
    ) -> (Self, Vec<(String, Condition)>) {
        let default = resources.bgp_default();
        let (policies, wrong) = Policies::of(node, resources, &known.last.filters);
        let config = Self {
            asn: default.and_then(|spec| spec.as_number).unwrap_or_else(default_asn),
            mesh: default.and_then(|spec| spec.node_to_node_mesh_enabled).unwrap_or(true),
            default,
            all: &resources.bgp_configurations,
            policies,
            known,
        };
        (config, wrong)
    }

    /// The AS of a node.
    fn as_number(&self, node: &Node) -> Asn {
        node.as_number().unwrap_or(self.asn)
    }

    /// The port of a node: from its own BGPConfiguration, else from the one for all.
    fn listen_port(&self, node: &str) -> u16 {
        let own = self.all.get(&format!("node.{node}")).and_then(|config| config.spec.listen_port);
        let all = self.default.and_then(|spec| spec.listen_port);
        own.or(all).unwrap_or(BGP_PORT)
    }
}

fn default_asn() -> Asn {
    Asn::new(BgpConfigurationSpec::DEFAULT_AS_NUMBER).unwrap_or(Asn::TRANS)
}

/// The address that a node's sessions run over.
fn session_address(node: &Node) -> Option<IpAddr> {
    node.address(Family::V4).or_else(|| node.address(Family::V6))
}

/// What every session has in common. Both families are negotiated on each, with the node's other
/// address as the next hop of the family that the session does not run over.
fn session(own: &Node, name: &str, kind: PeerKind, asn: Asn, remote: IpAddr) -> PeerConfig {
    let (same, other) = match Family::of(remote) {
        Family::V4 => (Family::V4, Family::V6),
        Family::V6 => (Family::V6, Family::V4),
    };
    PeerConfig {
        local_address: own.address(same),
        restart_time: restart::time(None),
        other_next_hop: own.address(other),
        on_link: own.subnet(same).filter(|subnet| subnet.contains(remote)),
        policy: PeerPolicy {
            max_prefixes: Some(BgpPeerSpec::DEFAULT_MAX_PREFIXES),
            ..PeerPolicy::default()
        },
        ..PeerConfig::new(name, kind, asn)
    }
}

/// A session with every other node.
fn mesh(own: &Node, resources: &Snapshot, config: &Configuration<'_>, desired: &mut Desired) {
    let password = config.default.and_then(|spec| spec.node_mesh_password.as_ref());
    let found = passwords::find(password, &resources.secrets);
    if let Err(condition) = &found {
        desired.say(Kind::BgpConfiguration, "default", condition.clone());
    }
    for (name, node) in &resources.nodes {
        // A route reflector is reached by BGPPeers, not by the mesh.
        let reflector = |node: &Node| node.route_reflector_cluster_id().is_some();
        if *name == own.metadata.name || reflector(node) || reflector(own) {
            continue;
        }
        let Some(address) = selected::shared_address(own, node) else { continue };
        let asn = config.as_number(node);
        let key = PeerKey { address, port: config.listen_port(name) };
        let password = match (&found, config.known.passwords.get(&address)) {
            (Ok(password), _) => password.clone(),
            (Err(_), Some(known)) => Some(known.clone()),
            (Err(_), None) => continue,
        };
        let mut session = session(own, name, PeerKind::Mesh, asn, address);
        session.policy.routes = config.policies.plain();
        let default = config.default;
        session.restart_time =
            restart::time(default.and_then(|spec| spec.node_mesh_max_restart_time));
        session.long_lived =
            restart::long_lived(default.and_then(|spec| spec.node_mesh_long_lived_restart_time));
        desired.add(key, session, password);
    }
}

/// A session of a BGPPeer.
fn explicit(
    name: &str,
    peer: &BgpPeer,
    found: &Session<'_>,
    own: (&Node, Asn),
    resources: &Snapshot,
    config: &Configuration<'_>,
    desired: &mut Desired,
) {
    let Session { key, kind, asn, holder } = *found;
    let (own, own_asn) = own;
    let mut session = session(own, name, kind, asn, key.address);
    adjust(&mut session, &peer.spec);
    session.client = is_client(own, holder);
    if session.policy.role.is_some() && asn == session.policy.local_asn.unwrap_or(own_asn) {
        desired.problems.push(format!(
            "BGPPeer {name}: localRole has no meaning within AS {asn} (RFC 9234); remove it"
        ));
    }
    session.restart_time = restart::time(peer.spec.max_restart_time);
    session.long_lived = restart::long_lived(peer.spec.long_lived_restart_time);
    session.ttl_security = peer.spec.ttl_security.filter(|hops| *hops > 0);
    if peer.spec.source_address == Some(SourceAddress::None) {
        session.local_address = None;
    } else if session.local_address.is_none() {
        desired.problems.push(format!(
            "BGPPeer {name}: node {} has no {} address to speak with {} from; add it to the Node",
            own.metadata.name,
            Family::of(key.address),
            key.address
        ));
        return;
    }
    if let Some(before) = desired.peers.get(&key)
        && before.kind != PeerKind::Mesh
    {
        desired.problems.push(format!(
            "BGPPeers {} and {name} both mean {key} for this node; the first one is used",
            before.name
        ));
        return;
    }
    let in_force = config.known.last.sessions.get(&key);
    let found = config.policies.find(&peer.spec.filters, in_force);
    session.policy.routes = found.policy;
    desired.last.sessions.extend(found.kept.map(|kept| (key, kept)));
    if let Some(condition) = found.condition {
        desired.say_once(Kind::BgpPeer, name, condition);
    }
    match passwords::find(peer.spec.password.as_ref(), &resources.secrets) {
        Ok(password) => desired.add(key, session, password),
        Err(condition) => {
            desired.say_once(Kind::BgpPeer, name, condition);
            match config.known.passwords.get(&key.address) {
                Some(known) => desired.add(key, session, Some(known.clone())),
                // Not the mesh's session either, which has another password.
                None => drop(desired.peers.remove(&key)),
            }
        }
    }
}

/// What a route reflector passes on: routes to the pools, unless these are to be kept quiet about.
fn reflection(own: &Node, resources: &Snapshot) -> Option<Reflection> {
    let cluster_id = own.route_reflector_cluster_id()?;
    let told = resources.pools.values().filter(|pool| pool.spec.disable_bgp_export != Some(true));
    Some(Reflection { cluster_id, pools: told.map(|pool| pool.spec.cidr).collect() })
}

/// Whether a peer is a client of this node: any is, but for the reflectors of its own cluster.
fn is_client(own: &Node, peer: Option<&Node>) -> bool {
    let cluster = own.route_reflector_cluster_id();
    cluster.is_some() && peer.and_then(Node::route_reflector_cluster_id) != cluster
}

/// What a BGPPeer says of its own session.
fn adjust(session: &mut PeerConfig, spec: &BgpPeerSpec) {
    session.passive = spec.passive;
    session.delay_open = Duration::from_secs(spec.delay_open_seconds.unwrap_or(0).into());
    session.shutdown.clone_from(&spec.shutdown);
    let max_prefixes = spec.max_prefixes.unwrap_or(BgpPeerSpec::DEFAULT_MAX_PREFIXES);
    session.policy = PeerPolicy {
        role: spec.local_role.map(role),
        max_prefixes: Some(max_prefixes),
        // The resource's own check keeps it within 0 to 10.
        allowed_own_as: spec
            .num_allowed_local_as_numbers
            .and_then(|number| u8::try_from(number).ok())
            .unwrap_or(0),
        as_sets: spec.accept_as_sets,
        local_asn: spec.local_as_number,
        next_hop: match spec.next_hop_mode {
            Some(NextHopMode::Own) => proto::NextHopMode::Own,
            Some(NextHopMode::Keep) => proto::NextHopMode::Keep,
            None if spec.keep_original_next_hop => proto::NextHopMode::Keep,
            Some(NextHopMode::Auto) | None => proto::NextHopMode::Auto,
        },
        routes: None,
    };
}

const fn role(role: LocalRole) -> Role {
    match role {
        LocalRole::Provider => Role::Provider,
        LocalRole::RouteServer => Role::RouteServer,
        LocalRole::RouteServerClient => Role::RouteServerClient,
        LocalRole::Customer => Role::Customer,
        LocalRole::Peer => Role::Peer,
    }
}

#[cfg(test)]
mod tests {
    use twill_k8s_api::{files, load_manifests};

    use super::*;

    fn resources(secret: &str, password: &str) -> Snapshot {
        let text = format!(
            "apiVersion: v1
kind: Node
metadata: {{name: n1, annotations: {{projectcalico.org/IPv4Address: 192.0.2.11}}}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {{name: tor}}
spec: {{peerIP: 192.0.2.1, asNumber: 64513{password}}}
{secret}"
        );
        Snapshot::new(files::catalog([&load_manifests(&text, "m.yaml")]))
    }

    const ASKED: &str = ", password: {secretKeyRef: {name: bgp, key: tor}}";

    fn secret(value: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Secret\nmetadata: {{name: bgp}}\nstringData: {{tor: {value}}}\n"
        )
    }

    #[test]
    fn a_password_is_found_missed_and_remembered() {
        let tor = IpAddr::from([192, 0, 2, 1]);
        let none = Known::default();
        let passwords = |value: &str| BTreeMap::from([(tor, Password::new(value).unwrap())]);

        let plain = desired("n1", &resources("", ""), &none);
        assert_eq!((plain.peers.len(), plain.passwords.len()), (1, 0));
        let found = desired("n1", &resources(&secret("a"), ASKED), &none);
        assert_eq!((found.peers.len(), &found.passwords), (1, &passwords("a")));
        assert_eq!(found.conditions, BTreeMap::new());

        // Without it nothing is opened, and who looks at the peer is told.
        let missing = desired("n1", &resources("", ASKED), &none);
        assert_eq!((missing.peers.len(), missing.passwords.len()), (0, 0));
        let (object, conditions) = missing.conditions.first_key_value().unwrap();
        assert_eq!(object.to_string(), "bgppeer tor");
        assert_eq!(conditions[0].reason, "SecretNotFound");
        assert!(missing.problems[0].starts_with("BGPPeer tor: there is no Secret bgp: add it"));

        // A session that is there outlives the mistake.
        let kept = desired("n1", &resources("", ASKED), &Known::of(&found));
        assert_eq!((kept.peers.len(), &kept.passwords), (1, &passwords("a")));
        assert_eq!(kept.conditions, missing.conditions);
        let changed = desired("n1", &resources(&secret("b"), ASKED), &Known::of(&found));
        assert_eq!(changed.passwords, passwords("b"));
        let without = desired("n1", &resources(&secret("b"), ""), &Known::of(&found));
        assert_eq!((without.peers.len(), without.passwords.len()), (1, 0));
    }

    /// The kernel has one key for an address.
    #[test]
    fn two_ports_of_an_address_share_a_password() {
        let second = "---\napiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {name: tor2}\n\
                      spec: {peerIP: \"192.0.2.1:1179\", asNumber: 64513}\n";
        let both = desired("n1", &resources(&(secret("a") + second), ASKED), &Known::default());
        assert_eq!(both.peers.len(), 1);
        assert!(both.problems[0].contains("BGPPeers tor and tor2"), "{:?}", both.problems);
        let same = second.replace("64513}", &format!("64513{ASKED}}}"));
        let both = desired("n1", &resources(&(secret("a") + &same), ASKED), &Known::default());
        assert_eq!((both.peers.len(), both.problems.len()), (2, 0));
    }

    /// Each field of the resource, and what it makes of a session.
    #[test]
    fn a_bgp_peer_adjusts_its_session() {
        type Change = fn(&mut PeerConfig);
        let rows: [(&str, Change); 12] = [
            ("{}", |_| ()),
            (r#"{"shutdown": ""}"#, |session| session.shutdown = Some(String::new())),
            (r#"{"passive": true}"#, |session| session.passive = true),
            (r#"{"delayOpenSeconds": 3}"#, |session| session.delay_open = Duration::from_secs(3)),
            (r#"{"maxPrefixes": 7}"#, |session| session.policy.max_prefixes = Some(7)),
            (r#"{"localRole": "Customer"}"#, |session| session.policy.role = Some(Role::Customer)),
            (r#"{"acceptASSets": true}"#, |session| session.policy.as_sets = true),
            (r#"{"numAllowedLocalASNumbers": 2}"#, |session| session.policy.allowed_own_as = 2),
            (r#"{"nextHopMode": "Self"}"#, |s| s.policy.next_hop = proto::NextHopMode::Own),
            (r#"{"nextHopMode": "Keep"}"#, |s| s.policy.next_hop = proto::NextHopMode::Keep),
            (r#"{"keepOriginalNextHop": true}"#, |session| {
                session.policy.next_hop = proto::NextHopMode::Keep;
            }),
            (r#"{"localASNumber": 65001}"#, |session| {
                session.policy.local_asn = Asn::new(65001).ok();
            }),
        ];
        for (spec, change) in rows {
            let plain = session(
                &Node::default(),
                "tor1",
                PeerKind::Global,
                Asn::TRANS,
                IpAddr::from([192, 0, 2, 1]),
            );
            let (mut adjusted, mut expected) = (plain.clone(), plain);
            adjust(&mut adjusted, &serde_json::from_str(spec).unwrap());
            change(&mut expected);
            assert_eq!(adjusted, expected, "{spec}");
        }
    }
}
