//! `twill-bench-cluster`: what an ADD costs on a real cluster.

fn main() -> std::process::ExitCode {
    twill_bench::cluster::main()
}
