//! STATUS of the plugin, which a runtime asks every few seconds: the node alone answers.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use twill_tests::kubernetes::ApiServer;

use super::nodes::{POOL, STRICT, Site};

fn status(site: &Site) -> Result<()> {
    let node = site.lab.node("node1")?;
    node.runtime().status(node.namespace())
}

fn lists(site: &Site) -> Result<usize> {
    let requests = site.api.node_requests()?;
    Ok(requests.iter().filter(|request| *request == "list blockaffinities").count())
}

/// A node that has no address left, and is not to be NotReady by it.
pub(crate) fn a_status_asks_the_api_server_for_nothing(_: &ApiServer) -> Result<()> {
    // What is known of all claims is new for so long.
    const CURRENT: Duration = Duration::from_secs(2);
    let pool = POOL.replace("10.10.0.0/26, blockSize: 27", "10.10.0.0/30, blockSize: 30");
    let mut site = Site::start(&[&pool, STRICT])?;
    for number in 0..4 {
        site.lab.add_pod("node1", &format!("pod{number}"))?;
    }
    let mut late = site.lab.bare_pod("node1", "late")?;
    let outcome = site.lab.attach(&mut late);
    ensure!(outcome.is_err(), "there is a fifth address");
    site.wait_all_settled()?;
    let (before, start) = (lists(&site)?, Instant::now());
    while start.elapsed() < 2 * CURRENT {
        status(&site)?;
    }
    ensure!(lists(&site)? == before, "all claims were listed {} times", lists(&site)? - before);
    Ok(())
}
