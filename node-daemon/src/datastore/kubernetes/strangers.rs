//! Whether the API server has Calico's definitions, whose objects Twill's would damage: docs/adr/0018-crds.md.

use kube::{
    api::ListParams,
    core::{ApiResource, GroupVersionKind, ObjectMeta},
};

use super::access::{Access, Account, ApiError, in_time};

/// Both of Calico's groups end so.
const GROUPS: &str = "projectcalico.org";

/// What our definitions carry.
const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "twill");

/// Says who serves the group.
const SERVICE: &str = "v3.projectcalico.org";

/// What to do where something was found.
pub(crate) const REMEDY: &str = "Take out the objects of all kinds and check them (docs/install.md, Where Calico is), \
     remove Calico with its definitions and its API server, apply the manifest of Twill again, then make the objects \
     by kubectl twill create -f";

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// Names what is Calico's, or anybody else's, in Calico's groups: for the controller in the one that it writes,
/// since without it blocks of nodes that are gone stay taken.
pub(crate) async fn strangers(access: &Access, account: Account) -> Result<Vec<String>, ApiError> {
    let definitions = resource("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let parameters = ListParams::default().match_any();
    let api = access.objects(&definitions);
    let what = "customresourcedefinitions";
    let found = api.list_metadata(&parameters);
    let found = in_time(account, "list", what.to_owned(), DEADLINE, found).await?;
    let mut names: Vec<String> =
        found.items.iter().filter_map(|found| stranger(&found.metadata, account)).collect();
    let services = resource("apiregistration.k8s.io", "v1", "APIService");
    let api = access.objects(&services);
    let service = api.get_opt(SERVICE);
    if let Some(service) =
        in_time(account, "get", "apiservices".to_owned(), DEADLINE, service).await?
        && !service.data["spec"]["service"].is_null()
    {
        names.push(format!("the APIService {SERVICE}"));
    }
    Ok(names)
}

fn resource(group: &str, version: &str, kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind))
}

/// The name of a definition in one of the groups that is not ours.
fn stranger(metadata: &ObjectMeta, account: Account) -> Option<String> {
    let name = metadata.name.as_deref()?;
    let group = name.split_once('.')?.1;
    let is_below = || group.strip_suffix(GROUPS).is_some_and(|rest| rest.ends_with('.'));
    let is_of_groups = group == GROUPS || matches!(account, Account::Node) && is_below();
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(PART_OF.0));
    let is_ours = label.is_some_and(|value| value == PART_OF.1);
    (is_of_groups && !is_ours).then(|| format!("the definition {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_of_others_are_told_by_group_and_label() {
        let definition = |name: &str, label: Option<&str>, account| {
            let labels = label.map(|value| [(PART_OF.0.to_owned(), value.to_owned())].into());
            let name = Some(name.to_owned());
            stranger(&ObjectMeta { name, labels, ..ObjectMeta::default() }, account).is_some()
        };
        for (name, label, for_nodes, for_the_controller) in [
            ("ippools.projectcalico.org", Some("twill"), false, false),
            ("ippools.projectcalico.org", None, true, true),
            ("ippools.projectcalico.org", Some("calico"), true, true),
            ("felixconfigurations.crd.projectcalico.org", None, true, false),
            ("ippools.notprojectcalico.org", None, false, false),
            ("certificates.cert-manager.io", None, false, false),
        ] {
            assert_eq!(definition(name, label, Account::Node), for_nodes, "{name} {label:?}");
            let found = definition(name, label, Account::Controller);
            assert_eq!(found, for_the_controller, "{name} {label:?}");
        }
    }
}
