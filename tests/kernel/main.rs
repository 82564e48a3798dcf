//! The kernel suite: real namespaces, real links and routes, real BIRD. Needs root.

use std::process::ExitCode;

mod kit;

fn main() -> ExitCode {
    let tests = twill_tests::tests![
        kit::machines_reach_each_other_through_the_router,
        kit::bird_learns_and_forgets_a_route,
        kit::a_chain_of_plugins_gets_its_previous_result,
        kit::a_failing_plugin_is_a_cni_error,
        kit::lost_packets_are_counted,
        kit::a_lab_leaves_nothing,
        kit::a_killed_sandbox_leaves_nothing,
    ];
    twill_tests::suite::main(tests, twill_tests::tests![kit::lab_without_end])
}
