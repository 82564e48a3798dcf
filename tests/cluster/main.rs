//! Twill on a real cluster, installed by its manifest: kubelets and containerd call it, and its daemon is a
//! pod. Needs root, and the programs of `make test-kubernetes`.
//!
//! All cases share one cluster and run one after the other, in this order. Each removes the pods that it
//! made, and leaves nodes and daemons as it found them, but for the last one, after which Twill is gone.

use std::{process::ExitCode, time::Duration};

use twill_tests::kubernetes;

mod addresses;
mod dual_stack;
mod readiness;
mod release;
mod restarts;
mod site;
mod stream;
mod uninstall;
mod upgrade;
mod ways;

/// How long what takes moments may take on a machine that is busy.
const LONG: Duration = Duration::from_secs(90);

fn main() -> ExitCode {
    if let Some(ended) = kubernetes::enter() {
        return ended;
    }
    let tests = twill_tests::shared_tests![
        readiness::nodes_say_where_they_are,
        readiness::nodes_pass_their_checks,
        addresses::a_deployment_gets_addresses_of_the_pool_that_selects_its_nodes,
        addresses::pods_of_two_nodes_reach_each_other,
        addresses::the_tor_reaches_pods,
        addresses::a_pod_on_an_unselected_node_waits_and_says_why,
        addresses::nothing_is_left_of_many_pods,
        ways::annotated_pods_leave_by_their_nodes_address,
        ways::a_service_is_reached_from_the_router,
        dual_stack::pods_have_an_address_of_each_family,
        restarts::a_kubelet_starts_again,
        restarts::a_containerd_starts_again,
        restarts::a_killed_daemon_comes_back,
        restarts::pods_come_and_go_without_the_api_server,
        readiness::a_node_is_not_ready_before_its_first_daemon,
        readiness::what_a_deleted_node_had_is_free,
        addresses::an_exhausted_pool_can_be_extended,
        upgrade::an_upgrade_is_not_noticed,
        restarts::a_replaced_daemon_frees_nothing,
        uninstall::the_next_network_finds_nodes_that_work,
    ];
    twill_tests::suite::main_in_turn(site::Site::start, tests)
}
