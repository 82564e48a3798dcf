//! `twill`: executed by a container runtime, once per CNI call.

fn main() -> std::process::ExitCode {
    twill_cni_plugin::main()
}
