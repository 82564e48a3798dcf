#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| twill_bgp_proto::fuzz::policy(input));
