//! The CRDs on a real API server, by kubectl, and node daemons that use it. Needs root, and the programs of
//! `make test-kubernetes`.

use std::{
    io::{self, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use twill_tests::{kubernetes::ApiServer, programs, sandbox::LABS, wait::wait_until};

mod annotated;
mod cases;
mod changes;
mod chart;
mod claims;
mod controller;
mod crds;
mod gone;
mod install;
mod lending;
mod manifests;
mod moving;
mod nodes;
mod packages;
mod permission;
mod pods;
mod proxy;
mod reboot;
mod refusals;
mod rights;
mod scale;
mod services;
mod status;
mod tables;
mod twillctl;

/// How long the API server, a daemon or the controller may take for what it does by itself, on a machine that is busy:
/// longer than any pause of theirs before they try again what has failed, and the longest is a minute.
const LONG: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    let tests = twill_tests::shared_tests![
        crds::every_definition_is_established,
        crds::definitions_can_be_told_from_calicos,
        crds::explain_shows_the_documentation,
        crds::the_api_server_warns_of_nothing,
        cases::the_api_server_decides_as_the_cases_say,
        cases::refusals_name_field_value_and_remedy,
        cases::an_unknown_field_is_named,
        install::nothing_comes_onto_a_node_where_calico_is,
        install::a_definition_of_somebody_else_is_not_taken_over,
        install::a_definition_that_was_applied_over_is_told,
        install::the_controller_waits_until_calico_is_gone,
        install::the_manifest_can_be_applied_again,
        moving::a_cluster_of_calicos_keeps_its_objects,
        packages::kustomize_and_helm_write_the_objects_of_the_manifest,
        chart::the_network_is_of_the_values,
        chart::what_there_is_no_doing_without_has_to_have_a_value,
        chart::pods_are_of_the_values,
        chart::a_namespace_has_to_allow_our_pods,
        chart::what_uninstalls_is_as_what_was_installed,
        packages::a_release_leaves_definitions_and_pools,
        packages::an_overlay_has_another_namespace,
        manifests::seed_manifests_apply,
        manifests::samples_apply,
        tables::columns_are_those_of_calicoctl,
        tables::short_names_work,
        changes::what_never_changes_is_refused,
        changes::what_may_change_changes,
        changes::status_is_a_thing_apart,
        claims::what_is_not_needed_is_given_back,
        claims::a_claim_that_is_taken_away_is_made_again,
        claims::a_claim_that_another_node_has_is_lost,
        claims::a_claim_of_an_older_release_gets_its_label,
        lending::a_borrowed_part_routes_and_comes_back,
        lending::an_owner_that_is_dead_is_named,
        lending::a_block_that_changes_hands_meanwhile_is_not_lent,
        lending::two_borrowers_get_parts_of_their_own,
        lending::a_request_that_somebody_removes_returns_nothing,
        lending::what_a_gone_node_asked_for_is_settled_by_hand,
        annotated::a_node_speaks_with_its_own_as_number,
        annotated::a_reflector_is_known_by_its_cluster_id,
        nodes::a_password_comes_from_a_secret,
        nodes::pods_get_addresses_of_claims_that_kubectl_shows,
        nodes::the_documented_network_is_enough,
        nodes::an_add_asks_the_api_server_for_nothing,
        nodes::two_nodes_race_for_the_last_block,
        nodes::nodes_do_without_the_api_server_for_a_while,
        reboot::a_node_boots_without_the_api_server,
        nodes::a_filter_that_is_gone_holds,
        nodes::a_forbidden_request_is_said,
        nodes::a_first_start_says_what_it_waits_for,
        nodes::a_watch_that_is_too_old_begins_again,
        controller::objects_say_what_nodes_make_of_them,
        controller::a_pool_is_held_by_its_claims,
        gone::what_a_node_that_is_gone_had_is_freed,
        gone::what_a_node_that_is_gone_had_borrowed_returns,
        controller::one_leads_and_the_other_takes_over,
        controller::its_account_may_do_no_more,
        controller::a_pool_that_is_full_says_so,
        controller::what_it_may_not_do_is_said,
        pods::annotations_choose_pools_and_addresses,
        pods::annotations_of_the_runtime_need_no_pod,
        pods::labels_of_a_namespace_choose_its_pool,
        pods::a_pod_that_nothing_is_known_of_waits,
        pods::an_add_for_a_pod_of_the_cluster_asks_for_nothing,
        pods::a_pod_that_is_gone_is_freed_soon,
        pods::a_node_says_where_it_is_and_that_it_works,
        pods::a_node_writes_of_its_node_only_what_it_should,
        pods::what_is_in_the_way_of_pods_is_a_condition,
        refusals::a_claim_that_is_refused_is_said_and_not_repeated,
        refusals::a_status_that_is_refused_is_said_and_not_repeated,
        services::addresses_of_services_are_announced,
        status::a_status_asks_the_api_server_for_nothing,
        rights::a_node_writes_only_what_is_its_own,
        scale::what_a_node_asks_for_does_not_grow_with_the_cluster,
        twillctl::tables_are_those_of_files,
        twillctl::manifests_are_written_and_taken_away,
        twillctl::a_part_of_an_object_is_changed,
        twillctl::what_others_changed_is_not_lost,
        twillctl::what_was_printed_can_be_applied,
        twillctl::refusals_are_in_the_wide_table,
        twillctl::objects_are_written_in_their_order,
        twillctl::what_is_refused_is_told_with_its_remedy,
        twillctl::the_cluster_of_the_user_is_asked,
        twillctl::kubectl_finds_the_plugin,
        twillctl::addresses_of_two_nodes,
        proxy::twillctl_goes_through_the_proxy_of_its_environment,
    ];
    twill_tests::suite::main_sharing(start, tests, &[scale::NAME])
}

/// An API server that has our definitions.
fn start() -> Result<ApiServer> {
    let api = ApiServer::start("kubernetes", &Path::new(LABS).join("kubernetes"))?;
    let version = api.kubectl().run(&["version"])?;
    writeln!(io::stderr(), "{}", version.trim_end()).context("cannot write to standard error")?;
    define(&api)?;
    Ok(api)
}

/// Applies our definitions, and waits until they are served.
fn define(api: &ApiServer) -> Result<()> {
    let definitions = programs::source("conf/crds");
    let definitions = definitions.to_string_lossy();
    api.kubectl().run(&["create", "--filename", &definitions])?;
    served(api)
}

/// Waits until our definitions are served.
fn served(api: &ApiServer) -> Result<()> {
    let definitions = programs::source("conf/crds");
    let definitions = definitions.to_string_lossy();
    let wait = ["wait", "--for=condition=Established", "--timeout=60s", "--filename"];
    api.kubectl().run(&[&wait[..], &[&definitions]].concat())?;
    // Established is said a moment before the server answers for the kind.
    wait_until("the kinds to be served", LONG, || {
        let kinds =
            api.kubectl().run(&["api-resources", "--api-group=projectcalico.org", "-o", "name"])?;
        Ok(kinds.lines().count() == 10)
    })
}
