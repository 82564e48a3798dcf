//! The same sessions, said to each device in its own words.

use std::{fmt::Write, net::Ipv4Addr};

/// The device's AS number: Twill's default, and Calico's.
pub(crate) const DEVICE_AS: u32 = 64512;

/// The AS number of peers outside.
pub(crate) const PEERS_AS: u32 = 64513;

/// The device's address, its identifier and that of its cluster of clients.
pub(crate) const DEVICE: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 1);

/// The device's address on its other link.
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);

/// A session that the device has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Session {
    pub(crate) peer: Ipv4Addr,
    /// The device's end.
    pub(crate) local: Ipv4Addr,
    pub(crate) asn: u32,
}

/// What a device has to do.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    pub(crate) sessions: Vec<Session>,
    /// It dials; otherwise its peers do.
    pub(crate) dials: bool,
    /// It passes on what it learns: all peers are clients of it as a route reflector (RFC 4456).
    pub(crate) reflects: bool,
    /// BIRD and FRR write no routes to the kernel. Twill always does, and OpenBGPD never.
    pub(crate) kernel_off: bool,
    /// All of Twill's routes name nexthop objects; by default those with one next hop do not, for a flap
    /// of the carrier would take them along.
    pub(crate) objects_on: bool,
    /// Seconds between BIRD's looks at all kernel routes. Its default is 60; Calico has 2.
    pub(crate) bird_scan: Option<u32>,
}

/// An address of the peers by its number, on the device's first link.
pub(crate) fn peer_address(index: u16) -> Ipv4Addr {
    let (third, fourth) = (1 + index / 250, 1 + index % 250);
    let octet = |number: u16| u8::try_from(number).unwrap_or(u8::MAX);
    Ipv4Addr::new(172, 16, octet(third), octet(fourth))
}

impl Plan {
    /// Sessions with so many peers: external, or with clients.
    pub(crate) fn with_peers(count: u16, reflects: bool) -> Self {
        let asn = if reflects { DEVICE_AS } else { PEERS_AS };
        let session = |index| Session { peer: peer_address(index), local: DEVICE, asn };
        Self { sessions: (0..count).map(session).collect(), reflects, ..Self::default() }
    }

    /// BIRD as Calico sets it up, in all that matters to what is measured.
    pub(crate) fn bird(&self) -> String {
        let scan = self.bird_scan.unwrap_or(60);
        let export = if self.reflects { "all" } else { "none" };
        let kernel = if self.kernel_off { "none" } else { "where source = RTS_BGP" };
        let mut text = format!(
            "log stderr {{ warning, error, fatal, bug }};\nrouter id {DEVICE};\n\
             protocol device {{ scan time {scan}; }}\n\
             protocol direct {{ ipv4; interface \"eth*\"; }}\n\
             protocol kernel {{ learn; persist; scan time {scan}; merge paths on;\n  \
             ipv4 {{ import none; export {kernel}; }}; }}\n"
        );
        for (index, Session { peer, local, asn }) in self.sessions.iter().enumerate() {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "protocol bgp p{index} {{ local {local} as {DEVICE_AS}; neighbor {peer} as {asn}; \
                 multihop;\n  connect delay time 1; connect retry time 3; error wait time 5, 60; \
                 graceful restart;{}{}\n  ipv4 {{ import all; export {export}; gateway recursive; \
                 }}; }}",
                if self.dials { "" } else { " passive on;" },
                if self.reflects { " rr client;" } else { "" },
            );
        }
        text
    }

    /// FRR's bgpd.
    pub(crate) fn bgpd(&self) -> String {
        let mut text = format!(
            "frr defaults datacenter\nlog stdout errors\nrouter bgp {DEVICE_AS}\n bgp router-id \
             {DEVICE}\n coalesce-time 1000\n no bgp ebgp-requires-policy\n bgp bestpath as-path multipath-relax\n"
        );
        for Session { peer, asn, .. } in &self.sessions {
            let _ = writeln!(text, " neighbor {peer} remote-as {asn}");
            if !self.dials {
                let _ = writeln!(text, " neighbor {peer} passive");
            }
        }
        text.push_str(" address-family ipv4 unicast\n  maximum-paths 16\n");
        for Session { peer, .. } in &self.sessions {
            let _ = writeln!(text, "  neighbor {peer} activate");
            let said = if self.reflects {
                format!("  neighbor {peer} route-reflector-client")
            } else {
                format!("  neighbor {peer} route-map NOTHING out")
            };
            let _ = writeln!(text, "{said}");
        }
        text.push_str(" exit-address-family\nroute-map NOTHING deny 10\n");
        text
    }

    /// OpenBGPD. By default it passes nothing in either direction.
    pub(crate) fn openbgpd(&self) -> String {
        let mut text = format!("AS {DEVICE_AS}\nrouter-id {DEVICE}\n");
        for Session { peer, local, asn } in &self.sessions {
            let _ = writeln!(
                text,
                "neighbor {peer} {{\n  remote-as {asn}\n  local-address {local}{}{}\n}}",
                if self.dials { "" } else { "\n  passive" },
                if self.reflects { "\n  route-reflector" } else { "" },
            );
        }
        text.push_str("allow from any\n");
        if self.reflects {
            text.push_str("allow to any\n");
        }
        text
    }

    /// BGPPeers for Twill; and a pool of all prefixes, for a node passes nothing else on.
    pub(crate) fn manifests(&self) -> String {
        let pool = "apiVersion: projectcalico.org/v3\nkind: IPPool\nmetadata: {name: all}\n\
                    spec: {cidr: 8.0.0.0/5}\n";
        let manifest = |(index, session): (usize, &Session)| {
            let source = match session.local {
                DEVICE => "UseNodeIP",
                _ => "None",
            };
            format!(
                "apiVersion: projectcalico.org/v3\nkind: BGPPeer\nmetadata: {{name: p{index}}}\n\
                 spec: {{peerIP: {}, asNumber: {}, sourceAddress: {source}}}\n",
                session.peer, session.asn
            )
        };
        let sessions = self.sessions.iter().enumerate().map(manifest);
        let pool = self.reflects.then(|| pool.to_owned());
        sessions.chain(pool).collect::<Vec<_>>().join("---\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_session_is_in_every_configuration() {
        let plan = Plan::with_peers(1000, true);
        assert_eq!(plan.bird().matches("rr client").count(), 1000);
        assert_eq!(plan.bgpd().matches("route-reflector-client").count(), 1000);
        assert_eq!(plan.openbgpd().matches("  route-reflector").count(), 1000);
        assert_eq!(plan.manifests().matches("kind: BGPPeer").count(), 1000);
        let mut addresses: Vec<_> = (0..1000).map(peer_address).collect();
        addresses.dedup();
        assert_eq!((addresses.len(), addresses[999]), (1000, Ipv4Addr::new(172, 16, 4, 250)));
    }
}
