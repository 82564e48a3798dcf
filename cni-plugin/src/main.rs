//! `twill`: executed by a container runtime, once per CNI call.

#[global_allocator]
static ALLOCATOR: twill_sys::ShortLived = twill_sys::ShortLived::new();

fn main() -> std::process::ExitCode {
    twill_cni_plugin::main()
}
