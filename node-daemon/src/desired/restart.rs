//! How long peers keep a node's routes.

use std::collections::BTreeMap;

use twill_k8s_api::{LongLivedRestartTime, RestartTime};
use twill_types::Family;

/// Seconds; BIRD's default, which Calico's users have.
const RESTART_TIME: u16 = 120;

/// The restart time in seconds (RFC 4724 section 3).
pub(super) fn time(wanted: Option<RestartTime>) -> u16 {
    wanted.map_or(RESTART_TIME, RestartTime::seconds)
}

/// The long-lived stale time of each family that has one, in seconds (RFC 9494 section 3).
pub(super) fn long_lived(times: Option<LongLivedRestartTime>) -> BTreeMap<Family, u32> {
    let LongLivedRestartTime { ipv4, ipv6 } = times.unwrap_or_default();
    let times = [(Family::V4, ipv4), (Family::V6, ipv6)];
    times.into_iter().filter_map(|(family, time)| Some((family, time?))).collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use twill_bgp_proto::PeerConfig;
    use twill_k8s_api::{files, load_manifests};

    use super::{
        super::{Known, desired},
        *,
    };
    use crate::datastore::Snapshot;

    /// The sessions of node n1 with n2, by the mesh, and with a ToR.
    fn sessions(mesh: &str, peer: &str) -> [PeerConfig; 2] {
        let text = format!(
            "apiVersion: v1
kind: Node
metadata: {{name: n1, annotations: {{projectcalico.org/IPv4Address: 192.0.2.11}}}}
---
apiVersion: v1
kind: Node
metadata: {{name: n2, annotations: {{projectcalico.org/IPv4Address: 192.0.2.12}}}}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {{name: default}}
spec: {{asNumber: 64512{mesh}}}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {{name: tor}}
spec: {{peerIP: 192.0.2.1, asNumber: 64513{peer}}}
"
        );
        let resources = Snapshot::new(files::catalog([&load_manifests(&text, "m.yaml")]));
        let peers = desired("n1", &resources, &Known::default()).peers;
        let session = |last| {
            let found =
                peers.iter().find(|(key, _)| key.address == IpAddr::from([192, 0, 2, last]));
            found.unwrap().1.clone()
        };
        [12, 1].map(session)
    }

    #[test]
    fn each_session_has_the_times_of_its_resource() {
        for session in sessions("", "") {
            assert_eq!((session.restart_time, session.long_lived.len()), (120, 0));
        }
        let [node, tor] = sessions(
            ", nodeMeshMaxRestartTime: 2m30s, nodeMeshLongLivedRestartTime: {ipv6: 7}",
            ", maxRestartTime: 30s, longLivedRestartTime: {ipv4: 3600, ipv6: 0}",
        );
        assert_eq!((node.restart_time, node.long_lived), (150, [(Family::V6, 7)].into()));
        assert_eq!(tor.restart_time, 30);
        assert_eq!(tor.long_lived, [(Family::V4, 3600), (Family::V6, 0)].into());
    }
}
