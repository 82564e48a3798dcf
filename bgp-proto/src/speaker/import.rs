//! What is taken from a peer's UPDATEs, and how much of it.

use std::net::Ipv4Addr;

use twill_types::{Asn, Family};

use super::Speaker;
use crate::{
    Output, PeerConfig, PeerEvent, PeerKey, PeerPolicy, SpeakerConfig, Time,
    wire::{Notification, PathAttributes, Role, UpdateIn, cease, code},
};

/// What the attributes of a peer's paths may take for each path that it may announce, in octets: several
/// times what they do in the Internet. A peer with few paths may have more for each of them.
const WEIGHT_OF_A_PATH: usize = 256;
const LEAST_WEIGHT: usize = 1024 * 1024;

/// What decides whether a route of a peer is taken.
#[derive(Debug, Clone, Copy)]
struct Import<'a> {
    speaker: &'a SpeakerConfig,
    peer: &'a PeerConfig,
    /// The cluster that this node reflects routes for.
    cluster_id: Option<Ipv4Addr>,
}

impl Import<'_> {
    /// Whether a route with these attributes is taken. Marks it where it has to be.
    fn admits(&self, attributes: &mut PathAttributes) -> bool {
        let local = self.peer.local_asn(self.speaker);
        let mut own = attributes.as_path.count(self.speaker.asn);
        if local != self.speaker.asn {
            own += attributes.as_path.count(local);
        }
        // RFC 4271 section 9.1.2, RFC 4456 section 8: it has come back to us.
        own <= usize::from(self.peer.policy.allowed_own_as)
            && attributes.originator_id != Some(self.speaker.router_id)
            && self.cluster_id.is_none_or(|own| !attributes.cluster_list.contains(&own))
            && self.is_no_leak(attributes)
    }

    /// The ingress rules of RFC 9234 section 5.
    fn is_no_leak(&self, attributes: &mut PathAttributes) -> bool {
        let internal = self.peer.is_internal(self.speaker);
        let role = self.peer.policy.role.filter(|_| !internal);
        role.is_none_or(|role| take_only_to_customer(role, self.peer.asn, attributes))
    }
}

/// Says whether the routes are no leak, being what this node is to the peer; from who must not be told
/// everything, they are marked for customers alone.
fn take_only_to_customer(role: Role, peer: Asn, attributes: &mut PathAttributes) -> bool {
    let mark = &mut attributes.only_to_customer;
    match role {
        // Rule 1.
        Role::Provider | Role::RouteServer => mark.is_none(),
        // Rules 2 and 3.
        Role::Peer => *mark.get_or_insert(peer.get()) == peer.get(),
        // Rule 3.
        Role::Customer | Role::RouteServerClient => {
            mark.get_or_insert(peer.get());
            true
        }
        // No configuration has it.
        Role::Unassigned(_) => true,
    }
}

impl Speaker {
    /// Takes in an UPDATE. False if the peer has gone over its limit with it, and is a peer no more.
    pub(super) fn update(&mut self, now: Time, key: PeerKey, update: UpdateIn) -> bool {
        let Some(peer) = self.peers.get(&key) else {
            return false;
        };
        let import =
            Import { speaker: &self.config, peer: &peer.config, cluster_id: self.rib.cluster_id() };
        self.rib.withdraw(key, update.withdrawn.iter());
        let mut crowded = 0;
        for (mut attributes, routes) in update.announced {
            // What replaces an accepted route without being acceptable withdraws it.
            if import.admits(&mut attributes) {
                crowded += self.rib.announce(key, attributes, routes.iter());
            } else {
                self.rib.withdraw(key, routes.iter());
            }
        }
        self.tell_crowded(key, crowded);
        if let Some(family) = update.end_of_rib {
            self.outputs.push_back(Output::Event(key, PeerEvent::EndOfRib(family)));
            self.synchronized(key, family);
        }
        self.within_limit(now, key)
    }

    /// Tells once in a session that paths were left out.
    fn tell_crowded(&mut self, key: PeerKey, count: usize) {
        if let Some(exchange) = self.exchanges.get_mut(&key).filter(|_| count > 0)
            && !std::mem::replace(&mut exchange.crowded, true)
        {
            let text = "more paths to one prefix than are kept; the others are left out".to_owned();
            let (routes, message) = (String::new(), String::new());
            self.outputs
                .push_back(Output::Event(key, PeerEvent::BadUpdate { text, routes, message }));
        }
    }

    /// Ends the session of a peer that is over its limit.
    pub(super) fn within_limit(&mut self, now: Time, key: PeerKey) -> bool {
        let Some(said) = self.over_limit(key) else {
            return true;
        };
        self.with_peer(now, key, |peer, sink| peer.contain(&said, sink));
        false
    }

    /// What to say to a peer that is over its limit.
    ///
    /// Stale paths are what the peer may be about to announce again, so they count only where they
    /// would be as many again: memory is bounded by twice the limit.
    fn over_limit(&self, key: PeerKey) -> Option<Notification> {
        let limit = self.peers.get(&key)?.config.policy.max_prefixes?;
        let most = usize::try_from(limit).unwrap_or(usize::MAX);
        // How many paths there are says nothing about what comes with them.
        let heaviest = most.saturating_mul(WEIGHT_OF_A_PATH).max(LEAST_WEIGHT);
        let times = if self.rib.count(key).1 > 0 { 2 } else { 1 };
        if self.rib.weight(key) > heaviest.saturating_mul(times) {
            return Some(Notification::new(code::CEASE, cease::RESOURCES));
        }
        let is_over = |family: &Family| {
            let (all, stale) = self.rib.count_of(key, *family);
            all - stale > most || all > most.saturating_mul(2)
        };
        let family = [Family::V4, Family::V6].into_iter().find(is_over)?;
        Some(Notification::max_prefixes(family, limit))
    }

    /// Has the peer's filters decide on what it has announced and will announce.
    pub(super) fn set_import(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get(&key) {
            let internal = peer.config.is_internal(&self.config);
            self.rib.set_import(key, peer.config.policy.routes.as_ref(), internal);
        }
    }

    /// What the peer was refused may be taken now, and the other way round. Filters have kept what they
    /// refuse; else it is asked for everything again.
    pub(super) fn policy_changed(&mut self, now: Time, key: PeerKey, old: &PeerPolicy) {
        self.set_import(key);
        self.within_limit(now, key);
        let new = self.peers.get(&key).map(|peer| peer.config.policy.allowed_own_as);
        if new.is_some_and(|new| new != old.allowed_own_as) {
            self.ask_again(now, key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9234 section 5: our role, the mark that came, whether the route is taken, and with which mark.
    #[test]
    fn only_to_customer_rules() {
        let peer = Asn::new(64513).unwrap();
        let (own, foreign) = (Some(64513), Some(64999));
        for (role, came, taken, kept) in [
            (Role::Provider, None, true, None),
            (Role::Provider, foreign, false, foreign),
            (Role::RouteServer, None, true, None),
            (Role::RouteServer, own, false, own),
            (Role::Peer, None, true, own),
            (Role::Peer, own, true, own),
            (Role::Peer, foreign, false, foreign),
            (Role::Customer, None, true, own),
            (Role::Customer, foreign, true, foreign),
            (Role::RouteServerClient, None, true, own),
            (Role::RouteServerClient, foreign, true, foreign),
        ] {
            let next_hop = std::net::IpAddr::from([192, 0, 2, 1]);
            let path = crate::wire::AsPath::sequence([peer]);
            let mut attributes = PathAttributes::new(crate::wire::Origin::Igp, path, next_hop);
            attributes.only_to_customer = came;
            assert_eq!(
                take_only_to_customer(role, peer, &mut attributes),
                taken,
                "{role:?} {came:?}"
            );
            assert_eq!(attributes.only_to_customer, kept, "{role:?} {came:?}");
        }
    }
}
