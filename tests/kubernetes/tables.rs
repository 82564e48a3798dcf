//! What `kubectl get` prints, and by which names.

use anyhow::{Result, ensure};
use twill_tests::kubernetes::ApiServer;

const OBJECTS: &str = "\
apiVersion: projectcalico.org/v3
kind: IPPool
metadata: {name: table}
spec: {cidr: 10.77.0.0/16, natOutgoing: true}
---
apiVersion: projectcalico.org/v3
kind: BGPPeer
metadata: {name: table}
spec: {nodeSelector: has(rack), peerIP: 10.0.0.1, asNumber: 64513}
---
apiVersion: projectcalico.org/v3
kind: BGPConfiguration
metadata: {name: node.table}
spec: {logSeverityScreen: Info, asNumber: '1.1'}
---
apiVersion: projectcalico.org/v3
kind: IPAMConfiguration
metadata: {name: table}
spec: {strictAffinity: true}
---
apiVersion: projectcalico.org/v3
kind: IPAMConfig
metadata: {name: table}
spec: {}
---
apiVersion: projectcalico.org/v3
kind: BGPFilter
metadata: {name: table}
spec: {exportV4: [{action: Accept}]}
---
apiVersion: projectcalico.org/v3
kind: IPReservation
metadata: {name: table}
spec: {reservedCIDRs: [10.77.0.1/32, 10.77.1.0/24]}
---
apiVersion: projectcalico.org/v3
kind: BlockAffinity
metadata: {name: 0a4d0000-26}
spec: {node: node1, cidr: 10.77.0.0/26, pool: table}
---
apiVersion: projectcalico.org/v3
kind: BlockRequest
metadata: {name: table}
spec: {node: node2, block: 10.77.0.0/26, pool: table, length: 29}
---
apiVersion: projectcalico.org/v3
kind: CalicoNodeStatus
metadata: {name: table}
spec: {node: node1, classes: [BGP], updatePeriodSeconds: 10}
";

/// What a controller might say of the pool.
const CONDITIONS: &str = r#"{"status": {"conditions": [
    {"type": "Allocatable", "status": "True", "reason": "Usable", "message": ""},
    {"type": "Accepted", "status": "False", "reason": "Invalid", "message": "no"}
]}}"#;

pub(crate) fn columns_are_those_of_calicoctl(api: &ApiServer) -> Result<()> {
    let kubectl = api.kubectl();
    kubectl.run_with_input(&["create", "-f", "-"], OBJECTS)?;
    let patch = ["patch", "ippool", "table", "--subresource=status", "--type=merge", "-p"];
    kubectl.run(&[&patch[..], &[CONDITIONS]].concat())?;
    for (arguments, expected) in [
        ("ippool table", "NAME CIDR SELECTOR\ntable 10.77.0.0/16 all()\n"),
        (
            "ippool table -o wide",
            "NAME CIDR NAT IPIPMODE VXLANMODE DISABLED DISABLEBGPEXPORT SELECTOR ASSIGNMENTMODE ACCEPTED \
             ALLOCATABLE\n\
             table 10.77.0.0/16 true Never Never false false all() Automatic False True\n",
        ),
        ("bgppeer table", "NAME PEERIP NODE NODESELECTOR ASN\ntable 10.0.0.1 has(rack) 64513\n"),
        (
            "bgpconfiguration node.table",
            "NAME LOGSEVERITY MESHENABLED ASNUMBER\nnode.table Info 1.1\n",
        ),
        ("ipamconfiguration table", "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS\ntable true true\n"),
        ("ipamconfig table", "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS\ntable false true\n"),
        (
            "ipamconfiguration table -o wide",
            "NAME STRICTAFFINITY AUTOALLOCATEBLOCKS MAXBLOCKSPERHOST ACCEPTED\ntable true true 0\n",
        ),
        ("ipreservation table", "NAME\ntable\n"),
        (
            "ipreservation table -o wide",
            "NAME CIDRS ACCEPTED\ntable [\"10.77.0.1/32\",\"10.77.1.0/24\"]\n",
        ),
        (
            "blockaffinity 0a4d0000-26",
            "NAME CIDR NODE POOL STATE\n0a4d0000-26 10.77.0.0/26 node1 table confirmed\n",
        ),
        (
            "blockrequest table",
            "NAME BLOCK NODE OWNER POOL LENGTH GRANTED\ntable 10.77.0.0/26 node2 table 29\n",
        ),
        ("caliconodestatus table", "NAME NODE UPDATED\ntable node1\n"),
        ("caliconodestatus table -o wide", "NAME NODE CLASSES UPDATED\ntable node1 [\"BGP\"]\n"),
        // The column that a definition without columns has.
        ("bgpfilter table", "NAME AGE\ntable ...\n"),
        ("bgpfilter table -o wide", "NAME AGE ACCEPTED\ntable ...\n"),
    ] {
        let arguments: Vec<_> = ["get"].into_iter().chain(arguments.split(' ')).collect();
        let table = kubectl.run(&arguments)?;
        let is_age =
            |word: &str| word.strip_suffix('s').is_some_and(|age| age.parse::<u32>().is_ok());
        let words = |line: &str| {
            let words = line.split_whitespace().map(|word| if is_age(word) { "..." } else { word });
            words.collect::<Vec<_>>().join(" ") + "\n"
        };
        let shown: String = table.lines().map(words).collect();
        ensure!(shown == expected, "{arguments:?}\n{shown}expected\n{expected}");
    }
    kubectl.run_with_input(&["delete", "-f", "-"], OBJECTS).map(drop)
}

pub(crate) fn short_names_work(api: &ApiServer) -> Result<()> {
    for (name, kind) in [
        ("ipp", "ippools"),
        ("ipps", "ippools"),
        ("pool", "ippools"),
        ("pools", "ippools"),
        ("ippool", "ippools"),
        ("bp", "bgppeers"),
        ("bps", "bgppeers"),
        ("bgpp", "bgppeers"),
        ("bgpps", "bgppeers"),
        ("bgpconfig", "bgpconfigurations"),
        ("bgpconfigs", "bgpconfigurations"),
        ("ipamconfig", "ipamconfigs"),
        ("bgpf", "bgpfilters"),
        ("bgpfs", "bgpfilters"),
        ("bf", "bgpfilters"),
        ("bfs", "bgpfilters"),
        ("reservation", "ipreservations"),
        ("reservations", "ipreservations"),
        ("nodestatus", "caliconodestatuses"),
        ("nodestatuses", "caliconodestatuses"),
        ("affinity", "blockaffinities"),
        ("affinities", "blockaffinities"),
    ] {
        let said = api.kubectl().refused(&["get", name, "nothing-of-this-name"], "")?;
        let expected = format!("{kind}.projectcalico.org \"nothing-of-this-name\" not found");
        ensure!(said.contains(&expected), "{name}: {said}");
    }
    Ok(())
}
