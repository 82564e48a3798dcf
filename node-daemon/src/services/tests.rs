use serde_json::json;

use super::*;

fn ranges(spec: serde_json::Value) -> Ranges {
    Ranges::of(Some(&serde_json::from_value(spec).unwrap()))
}

/// All three kinds, one range of one address among the load balancers'.
fn all(aggregation: &str) -> Ranges {
    ranges(json!({
        "serviceClusterIPs": [{"cidr": "10.96.0.0/12"}, {"cidr": "fd00:96::/112"}],
        "serviceExternalIPs": [{"cidr": "192.0.2.0/24"}],
        "serviceLoadBalancerIPs": [{"cidr": "198.51.100.0/24"}, {"cidr": "203.0.113.7/32"}],
        "serviceLoadBalancerAggregation": aggregation,
    }))
}

fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn services(local: bool, ready_here: bool, ready: bool) -> Services {
    let service = Service {
        cluster: addresses(&["10.96.0.10", "fd00:96::a"]),
        external: addresses(&["192.0.2.1", "172.16.0.1"]),
        load_balancer: addresses(&["198.51.100.9", "203.0.113.7"]),
        local,
    };
    let slice = Slice { service: "shop/web".to_owned(), ready_here, ready };
    Services {
        services: [("shop/web".to_owned(), service)].into(),
        slices: [("shop/web-abcde".to_owned(), slice)].into(),
    }
}

fn told(services: &Services, ranges: &Ranges) -> String {
    let told = services.announced(ranges, &BTreeMap::new());
    told.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

const WHOLE: &str = "10.96.0.0/12 192.0.2.0/24 198.51.100.0/24 fd00:96::/112";

#[test]
fn ranges_are_announced_whole_by_every_node() {
    assert_eq!(told(&Services::default(), &all("Enabled")), WHOLE);
    assert_eq!(told(&Services::default(), &Ranges::of(None)), "");
    let only = ranges(json!({"serviceExternalIPs": [{"cidr": "192.0.2.0/24"}]}));
    assert_eq!(told(&services(true, true, true), &only), "192.0.2.0/24 192.0.2.1/32");
}

#[test]
fn single_addresses_are_announced_where_they_are_served() {
    // (policy Local, ready here, ready anywhere) -> what is announced beside the whole ranges.
    let cases = [
        (
            true,
            true,
            true,
            "10.96.0.10/32 192.0.2.1/32 198.51.100.9/32 203.0.113.7/32 fd00:96::a/128",
        ),
        (true, false, true, ""),
        (true, false, false, ""),
        (false, true, true, "203.0.113.7/32"),
        (false, false, true, "203.0.113.7/32"),
        (false, false, false, ""),
    ];
    for (local, here, anywhere, expected) in cases {
        let told = services(local, here, anywhere).announced(&all("Enabled"), &BTreeMap::new());
        let whole: BTreeSet<Prefix> = WHOLE.split(' ').map(|text| text.parse().unwrap()).collect();
        assert!(told.is_superset(&whole));
        let expected: BTreeSet<Prefix> =
            expected.split_whitespace().map(|text| text.parse().unwrap()).collect();
        assert_eq!(&told - &whole, expected, "{local} {here} {anywhere}");
    }
}

#[test]
fn load_balancers_one_by_one_need_a_ready_endpoint_somewhere() {
    let ranges = all("Disabled");
    let rest = "10.96.0.0/12 192.0.2.0/24";
    let with = "198.51.100.9/32 203.0.113.7/32 fd00:96::/112";
    assert_eq!(told(&services(false, false, true), &ranges), format!("{rest} {with}"));
    assert_eq!(told(&services(false, false, false), &ranges), format!("{rest} fd00:96::/112"));
}

#[test]
fn a_service_with_several_slices_is_ready_if_one_is() {
    let mut services = services(true, false, true);
    let other = Slice { service: "shop/web".to_owned(), ready_here: true, ready: true };
    services.slices.insert("shop/web-fghij".to_owned(), other);
    assert!(told(&services, &all("Enabled")).contains("192.0.2.1/32"));
    services.slices.remove("shop/web-fghij");
    assert!(!told(&services, &all("Enabled")).contains("192.0.2.1/32"));
}

#[test]
fn a_node_that_is_excluded_announces_none() {
    let labels = [(EXCLUDED.to_owned(), String::new())].into();
    assert!(services(true, true, true).announced(&all("Enabled"), &labels).is_empty());
}
