use std::{fmt, net::IpAddr};

/// A BGP next hop, as the way to it is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BgpNextHop {
    /// Its address.
    pub address: IpAddr,
    /// Who announced it, if the address is a link-local one of IPv6: it holds on the link to that peer alone
    /// (RFC 4291 section 2.5.6), and the same one on another link is another router.
    pub peer: Option<IpAddr>,
}

impl BgpNextHop {
    /// What `peer` means by `address`.
    pub const fn new(address: IpAddr, peer: IpAddr) -> Self {
        match address {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => Self { address, peer: Some(peer) },
            _ => Self { address, peer: None },
        }
    }

    /// Whether the address means nothing without its link.
    pub const fn is_link_local(self) -> bool {
        matches!(self.address, IpAddr::V6(v6) if v6.is_unicast_link_local())
    }
}

impl From<IpAddr> for BgpNextHop {
    /// An address that means the same everywhere. To a link-local one there is no way without its link.
    fn from(address: IpAddr) -> Self {
        Self { address, peer: None }
    }
}

impl fmt::Display for BgpNextHop {
    /// `192.0.2.1`, and `fe80::1 of 192.0.2.1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(f)?;
        self.peer.map_or(Ok(()), |peer| write!(f, " of {peer}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_link_local_one_is_a_peer_s() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let peers = [ip("192.0.2.1"), ip("192.0.2.2")];
        for address in ["198.51.100.1", "169.254.0.1", "2001:db8::1"] {
            let [one, other] = peers.map(|peer| BgpNextHop::new(ip(address), peer));
            assert_eq!((one, one.to_string().as_str()), (other, address));
            assert!(!one.is_link_local() && one == ip(address).into());
        }
        let [one, other] = peers.map(|peer| BgpNextHop::new(ip("fe80::1"), peer));
        assert!(one.is_link_local() && one != other && one != ip("fe80::1").into());
        assert_eq!(other.to_string(), "fe80::1 of 192.0.2.2");
    }
}
