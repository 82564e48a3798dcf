//! The names of kinds on the API server.

use kube::core::{ApiResource, GroupVersionKind};
use twill_k8s_api::{API_VERSION, Kind};

/// The older name of IPAMConfiguration is a kind of its own.
const OLDER: (&str, &str) = ("IPAMConfig", "ipamconfigs");

/// A kind as the API server has it: one of ours in our API group, one of Kubernetes' own in `v1`.
pub(super) fn resource(kind: Kind) -> ApiResource {
    // The plural of this one alone is not the one that the command line takes first.
    let plural = match kind {
        Kind::IpamConfig => "ipamconfigurations",
        kind => kind.plural(),
    };
    named(kind, kind.manifest_name(), plural)
}

/// Both names of a kind that has two, else the one.
pub(super) fn resources(kind: Kind) -> Vec<ApiResource> {
    let mut all = vec![resource(kind)];
    if kind == Kind::IpamConfig {
        all.push(named(kind, OLDER.0, OLDER.1));
    }
    all
}

/// The kind that a manifest names.
pub(super) fn written(kind: Kind, name: &str) -> ApiResource {
    let found = resources(kind).into_iter().find(|resource| resource.kind == name);
    found.unwrap_or_else(|| resource(kind))
}

/// Whether its objects are in namespaces.
pub(super) const fn is_namespaced(kind: Kind) -> bool {
    matches!(kind, Kind::Secret)
}

fn named(kind: Kind, name: &str, plural: &str) -> ApiResource {
    let (group, version) =
        if kind.is_core() { ("", "v1") } else { API_VERSION.split_once('/').unwrap_or_default() };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, name), plural)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_are_those_of_the_definitions() {
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/crds");
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_core()) {
            for resource in resources(kind) {
                let file = format!("{directory}/{}.{}.yaml", resource.plural, resource.group);
                let text = std::fs::read_to_string(&file).unwrap();
                assert!(text.contains(&format!("kind: {}\n", resource.kind)), "{file}");
            }
        }
        assert_eq!(written(Kind::IpamConfig, "IPAMConfig").plural, "ipamconfigs");
        assert_eq!(resource(Kind::Node).api_version, "v1");
    }
}
