//! Tables that others change while they are read.

use std::{
    io::Write,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use twill_dataplane::{
    host,
    pod::{delete_group_links, host_links},
};

use crate::common::*;

/// Does `work` again and again for as long as `look` goes on, which is to be some moments.
fn beside(work: impl Fn() + Sync, look: impl FnOnce()) {
    /// Ends the other thread, also when a look fails.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                work();
            }
        });
        let _over = Over(&over);
        look();
    });
}

#[test]
fn links_that_come_and_go_are_no_reason_to_give_up_a_look() {
    on_a_node(|| {
        const GROUP: u32 = twill_types::DELETE_GROUP;
        let many: String = (0..400)
            .map(|n| format!("link add a{n} numtxqueues 1 type veth peer name b{n}\n"))
            .collect();
        batch(&many);
        ip(&format!("link add parked group {GROUP} type veth peer name other"));
        let dead = twill_types::host_link_name(&attachment("b"));
        ip(&format!("link add {dead} type veth peer name dead"));
        // Longer than ten looks take, and then it is over.
        let storm = Duration::from_secs(1);
        let began = Instant::now();
        // They stay: while the kernel deletes some, the table is the same for long.
        let round = AtomicUsize::new(0);
        let work = || {
            if began.elapsed() > storm {
                return thread::sleep(Duration::from_millis(1));
            }
            let round = round.fetch_add(1, Ordering::Relaxed);
            let one = |n| format!("link add c{round}-{n} numtxqueues 1 numrxqueues 1 type veth\n");
            batch(&(0..3).map(one).collect::<String>());
        };
        beside(work, || {
            while began.elapsed() < storm {
                let found = host_links().unwrap();
                assert_eq!(found.len(), 1, "{found:?}");
            }
            assert_eq!(delete_group_links(10, || true).unwrap(), 1);
        });
    });
}

/// Rules are read in several pieces, and those of the next piece may be others.
#[test]
fn a_chain_that_is_loaded_anew_does_not_seem_to_drop() {
    on_a_node(|| {
        let load = |first: &str, last: &str| {
            let others = "ip saddr 10.0.0.0/8 tcp dport 1-1000 counter\n".repeat(400);
            let text = format!(
                "flush ruleset\ntable ip filter {{ chain FORWARD {{\n\
                 type filter hook forward priority 0; policy drop;\n{first}{others}{last}}}\n}}\n"
            );
            let nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn();
            let mut nft = nft.unwrap();
            nft.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
            assert!(nft.wait().unwrap().success());
        };
        let accept = "iifname \"twl*\" accept\noifname \"twl*\" accept\n";
        load("", accept);
        let work = || {
            load(accept, "");
            load("", accept);
        };
        let until = Instant::now() + Duration::from_secs(2);
        beside(work, || {
            while Instant::now() < until {
                assert_eq!(host::dropping_chains().unwrap(), []);
            }
        });
    });
}
