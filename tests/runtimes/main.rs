//! Real callers: libcni by cnitool with chains of the newest reference plugins, podman, containerd.
//! Needs root, and the programs of `make test-runtimes`.

use std::{process::ExitCode, time::Duration};

mod chains;
mod cnitool;
mod containerd;
mod delegated;
mod podman;
mod tool;
mod versions;

/// How long a program of somebody else may take.
const LONG: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let tests = twill_tests::tests![
        cnitool::every_verb_of_libcni,
        cnitool::each_version_is_what_libcni_asks_for,
        cnitool::f_01_a_list_may_be_put_together_from_files,
        cnitool::f_02_flags_of_the_list_may_be_texts,
        cnitool::gc_without_a_list_frees_nothing,
        chains::portmap_leads_to_the_pod_from_outside,
        chains::bandwidth_slows_the_pod_down,
        chains::tuning_may_change_the_hardware_address,
        chains::firewall_lets_the_pod_through,
        delegated::the_newest_ptp_works_with_every_verb,
        delegated::the_newest_bridge_and_macvlan_work_with_every_verb,
        delegated::twill_works_over_the_newest_host_local_and_static,
        podman::containers_live_with_the_daemon,
        podman::containers_live_without_a_daemon,
        podman::an_address_and_a_hardware_address_are_asked_for,
        podman::a_port_leads_to_the_container,
        podman::a_container_is_on_two_networks,
        containerd::debians_sandboxes_live,
        containerd::the_newest_asks_for_status,
    ];
    twill_tests::suite::main_after(versions::print, tests, &[])
}
