//! Settings of the host that take away what pods are promised, and that others may need as they are:
//! they are told of, and not changed.

use std::time::Duration;

use tokio::{sync::watch, task::block_in_place};
use twill_dataplane::node::source_check_is_loose;

use crate::problems::tell;

/// How often is looked: the kernel tells nobody of a setting that is changed.
const LOOK: Duration = Duration::from_secs(5);

/// Looks for ever.
pub(crate) async fn watch(problems: watch::Sender<Vec<String>>) {
    loop {
        tell(&problems, block_in_place(loose_source_check).into_iter().collect());
        tokio::time::sleep(LOOK).await;
    }
}

fn loose_source_check() -> Option<String> {
    match source_check_is_loose() {
        Ok(false) => None,
        Ok(true) => Some(
            "net.ipv4.conf.all.rp_filter is 2, which weakens the 1 of each pod's link: a pod can send \
             with the addresses of others; set it to 0, and to 2 only the links that need it \
             (net.ipv4.conf.<link>.rp_filter)"
                .to_owned(),
        ),
        Err(error) => Some(format!("cannot read net.ipv4.conf.all.rp_filter: {error}")),
    }
}
