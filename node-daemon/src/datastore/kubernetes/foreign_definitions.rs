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

/// What those of others carry that are made by controller-gen, as Calico's are, and ours never.
const GENERATOR: &str = "controller-gen.kubebuilder.io/version";

/// Says who serves the group.
const SERVICE: &str = "v3.projectcalico.org";

/// What to do where something was found.
pub(crate) const REMEDY: &str = "Take out the objects of all kinds and check them (docs/install.md, Where Calico is), \
     remove Calico with its definitions and its API server, apply the manifest of Twill again, then make the objects \
     by kubectl twill create -f. Where Twill's were applied over Calico's definitions, apply Calico's again before: what \
     nobody has written since has kept its fields";

const DEADLINE: std::time::Duration = std::time::Duration::from_secs(10);

/// Names what is Calico's, or anybody else's, in Calico's groups: for the controller in the one that it writes,
/// since without it blocks of nodes that are gone stay taken.
pub(crate) async fn foreign_definitions(
    access: &Access,
    account: Account,
) -> Result<Vec<String>, ApiError> {
    let definitions = resource("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let parameters = ListParams::default().match_any();
    let api = access.objects(&definitions);
    let what = "customresourcedefinitions";
    let found = api.list_metadata(&parameters);
    let found = in_time(account, "list", what.to_owned(), DEADLINE, found).await?;
    let mut names: Vec<String> = found
        .items
        .iter()
        .filter_map(|found| foreign_definition(&found.metadata, account))
        .collect();
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

/// What is to be said of a definition in one of the groups that is not ours.
fn foreign_definition(metadata: &ObjectMeta, account: Account) -> Option<String> {
    let name = metadata.name.as_deref()?;
    let group = name.split_once('.')?.1;
    let is_below = || group.strip_suffix(GROUPS).is_some_and(|rest| rest.ends_with('.'));
    let is_of_groups = group == GROUPS || matches!(account, Account::Node) && is_below();
    if !is_of_groups {
        return None;
    }
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(PART_OF.0));
    let is_labelled = label.is_some_and(|value| value == PART_OF.1);
    match is_labelled {
        false => Some(format!("the definition {name}")),
        true if was_anothers(metadata) => {
            Some(format!("the definition {name} (Twill's, applied over one that was there)"))
        }
        true => None,
    }
}

/// Whether a definition with our label was there before the label: a plain `kubectl apply` takes over what it finds.
/// It leaves annotations that it does not know of, and of fields that it does not change who wrote them: the API group
/// never changes, so who wrote that without the label wrote another definition.
fn was_anothers(metadata: &ObjectMeta) -> bool {
    let is_generated = metadata
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(GENERATOR));
    let writers =
        metadata.managed_fields.iter().flatten().filter_map(|entry| entry.fields_v1.as_ref());
    let label = format!("f:{}", PART_OF.0);
    let mut writers = writers.map(|fields| &fields.0);
    let wrote_without_label = writers.any(|fields| {
        !fields["f:spec"]["f:group"].is_null()
            && fields["f:metadata"]["f:labels"][label.as_str()].is_null()
    });
    is_generated || wrote_without_label
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry};
    use serde_json::{Value, json};

    use super::*;

    fn labelled(name: &str, label: Option<&str>) -> ObjectMeta {
        let labels = label.map(|value| [(PART_OF.0.to_owned(), value.to_owned())].into());
        ObjectMeta { name: Some(name.to_owned()), labels, ..ObjectMeta::default() }
    }

    #[test]
    fn definitions_of_others_are_told_by_group_and_label() {
        let definition = |name: &str, label: Option<&str>, account| {
            foreign_definition(&labelled(name, label), account).is_some()
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

    #[test]
    fn a_definition_that_was_there_before_our_label_is_anothers() {
        let label = json!({"f:labels": {".": {}, "f:app.kubernetes.io/part-of": {}}});
        let whole = json!({"f:metadata": label, "f:spec": {"f:group": {}, "f:versions": {}}});
        let changes = json!({"f:metadata": label, "f:spec": {"f:versions": {}}});
        let before = json!({"f:spec": {"f:group": {}, "f:names": {}}});
        let status = json!({"f:status": {"f:conditions": {}}});
        let definition = |writers: &[&Value], annotation: Option<&str>| {
            let entry = |fields: &&Value| ManagedFieldsEntry {
                fields_v1: Some(FieldsV1((*fields).clone())),
                ..ManagedFieldsEntry::default()
            };
            let annotations = annotation.map(|key| [(key.to_owned(), "v0.18.0".to_owned())].into());
            let managed_fields = Some(writers.iter().map(entry).collect());
            let metadata = labelled("ippools.projectcalico.org", Some("twill"));
            foreign_definition(
                &ObjectMeta { annotations, managed_fields, ..metadata },
                Account::Controller,
            )
        };
        // Made once, by Helm and then by kubectl, and by an API server that keeps no record.
        for writers in
            [&[&whole, &status][..], &[&whole, &whole, &status], &[&whole, &changes], &[]]
        {
            assert_eq!(definition(writers, None), None, "{writers:?}");
            assert_eq!(definition(writers, Some("helm.sh/resource-policy")), None, "{writers:?}");
            assert!(definition(writers, Some(GENERATOR)).is_some(), "{writers:?}");
        }
        // Applied over another's, with and without --force-conflicts.
        for writers in [[&before, &changes], [&before, &whole]] {
            let said = definition(&writers, None).unwrap();
            assert!(
                said.starts_with("the definition ippools.projectcalico.org (Twill's"),
                "{said}"
            );
        }
    }
}
