//! The kernel suite: real namespaces, real links and routes, real BIRD. Needs root.

use std::{process::ExitCode, time::Duration};

mod crash;
mod gc;
mod host;
mod ipam_plugin;
mod kit;
mod operator;
mod plugin;
mod reconcile;
mod routing;
mod wishes;

/// How long anything here may take that should take no time.
const SECONDS: Duration = Duration::from_secs(10);

/// How long sessions and routes may take.
const LONG: Duration = Duration::from_secs(20);

fn main() -> ExitCode {
    let tests = twill_tests::tests![
        kit::machines_reach_each_other_through_the_router,
        kit::bird_learns_and_forgets_a_route,
        kit::a_chain_of_plugins_gets_its_previous_result,
        kit::a_failing_plugin_is_a_cni_error,
        kit::lost_packets_are_counted,
        kit::a_lab_leaves_nothing,
        kit::a_killed_sandbox_leaves_nothing,
        crash::del_undoes_an_add_killed_anywhere,
        crash::an_add_killed_anywhere_may_be_repeated,
        crash::a_second_add_killed_anywhere_harms_nothing,
        crash::a_del_killed_anywhere_may_be_repeated,
        crash::an_add_follows_a_del_killed_anywhere,
        crash::a_restart_killed_anywhere_is_undone_or_repeated,
        crash::a_del_without_daemon_killed_anywhere_may_be_repeated,
        crash::alone_del_undoes_an_add_killed_anywhere,
        crash::alone_an_add_killed_anywhere_may_be_repeated,
        crash::alone_a_del_killed_anywhere_may_be_repeated,
        host::the_documented_changes_are_the_real_ones,
        operator::a_broken_manifest_breaks_nothing,
        operator::a_broken_configuration_is_refused_with_its_line,
        operator::a_second_daemon_does_not_touch_the_store_of_the_first,
        operator::a_node_without_addresses_says_why,
        operator::twillctl_reads_and_writes,
        operator::a_killed_demo_leaves_nothing,
        operator::without_root_it_fails_and_says_so,
        plugin::a_result_is_of_the_asked_version_and_true,
        plugin::version_needs_no_network,
        plugin::add_and_del_may_be_repeated,
        plugin::a_pod_whose_namespace_is_gone_is_deleted,
        plugin::check_finds_what_was_changed,
        plugin::sixteen_adds_at_once_get_sixteen_addresses,
        plugin::a_pod_gets_the_mtu_of_the_uplink,
        plugin::standalone_mode_needs_no_daemon,
        plugin::a_daemon_that_is_down_costs_no_pod_and_no_address,
        plugin::an_add_waits_for_a_daemon_that_starts,
        plugin::bad_calls_are_told_what_is_wrong,
        gc::g_02_what_is_not_listed_is_freed,
        gc::g_06_g_07_the_list_in_all_its_spellings,
        gc::g_02_only_its_own_network,
        gc::g_05_it_is_forwarded,
        gc::s_02_status_says_whether_an_add_would_succeed,
        gc::s_03_exhaustion_counts_by_option,
        ipam_plugin::ptp_gets_addresses_from_us,
        ipam_plugin::bridge_gets_a_subnet_with_a_gateway_from_us,
        ipam_plugin::macvlan_pods_are_neighbours_of_the_tor,
        ipam_plugin::a_foreign_networks_blocks_are_its_own,
        ipam_plugin::a_late_del_of_another_namespace_frees_nothing,
        ipam_plugin::addresses_come_from_another_ipam_plugin,
        wishes::an_address_is_asked_for_in_each_of_the_places,
        wishes::a_pod_takes_its_address_along,
        wishes::annotations_choose_the_pool_and_the_hardware_address,
        wishes::an_address_without_ipam_is_behind_a_switch,
        wishes::routes_and_name_servers_of_the_configuration,
        wishes::ipv6_pods_answer_the_first_packet,
        reconcile::pods_that_are_gone_without_a_del_are_freed,
        reconcile::a_restart_between_two_looks_forgets_nobody,
        reconcile::what_a_killed_add_leaves_is_removed,
        reconcile::a_daemon_that_sees_no_namespaces_frees_no_living_pod,
        reconcile::links_without_a_record_are_kept_and_told,
        reconcile::a_full_store_costs_neither_pod_nor_address,
        reconcile::a_daemon_that_hangs_costs_neither_pod_nor_address,
        routing::routes_come_and_go_with_the_announcements,
        routing::equal_paths_share_the_traffic,
        routing::a_session_comes_up_whoever_dials,
        routing::ipv6_blocks_are_announced_and_reached,
        routing::a_planned_stop_says_nothing_and_loses_nothing,
        routing::a_removed_peer_is_told,
        routing::a_restarting_tor_keeps_its_routes,
        routing::a_tor_without_graceful_restart_takes_its_routes_along,
        routing::garbage_gets_a_notification,
        routing::selectors_follow_the_labels,
        routing::the_tor_switch_sample_works_as_it_stands,
        routing::a_node_is_no_transit,
    ];
    twill_tests::suite::main(tests, twill_tests::tests![kit::lab_without_end])
}
