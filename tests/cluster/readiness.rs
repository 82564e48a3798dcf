//! A node without a daemon, and one that goes for good.

use std::{fs, sync::Mutex};

use anyhow::{Result, ensure};
use twill_tests::{programs, wait::wait_for};

use super::{
    LONG,
    site::{SELECTED, Site, lock},
};

const NEW: &str = "node4";

/// Plugin and configuration are on the node, and no daemon ever was: containerd asks STATUS, and the node
/// is not ready and says why. It is once the daemon has come.
pub(crate) fn a_node_is_not_ready_before_its_first_daemon(site: &Mutex<Site>) -> Result<()> {
    let mut site = lock(site)?;
    // Without the image, the daemon's pod waits.
    site.cluster.add_nodes(&[NEW], &[])?;
    site.introduce(NEW)?;
    let settings = site.cluster.directory().join("install.yaml");
    fs::write(&settings, "datastore: {type: file}\n")?;
    let node = site.cluster.node(NEW)?;
    let (config, plugin) = (settings.to_string_lossy(), programs::directory()?);
    let conflist = programs::source("conf/cni/05-twill.conflist");
    let (plugin, conflist) = (plugin.to_string_lossy(), conflist.to_string_lossy());
    let places = ["--plugin-from", &plugin, "--conflist-from", &conflist];
    let install = ["--role", "install", "--config", &config];
    node.run(programs::find("twilld")?, &[&install[..], &places].concat())?;
    wait_for("the node to say what it lacks", LONG, || {
        let (is_ready, message, _) = site.node_ready(NEW)?;
        ensure!(!is_ready && message.contains("twilld.sock"), "{is_ready}: {message}");
        Ok(())
    })?;
    site.cluster.node(NEW)?.import(&site.image)?;
    wait_for("the node to be ready", LONG, || {
        let (is_ready, message, _) = site.node_ready(NEW)?;
        ensure!(is_ready, "{message}");
        Ok(())
    })?;
    site.wait_rollout()
}

/// A node loses its power and is deleted. The others lose their session with it and its routes, and nobody
/// gets its block before it is said that it will not come back.
pub(crate) fn a_deleted_node_keeps_its_block(site: &Mutex<Site>) -> Result<()> {
    let mut site = lock(site)?;
    if site.cluster.node(NEW).is_err() {
        let image = site.image.clone();
        site.cluster.add_nodes(&[NEW], &[image])?;
        site.introduce(NEW)?;
        site.wait_rollout()?;
    }
    site.kubectl().run(&["label", "node", NEW, "env=prod"])?;
    site.deploy("app", 1, &format!("nodeSelector: {{kubernetes.io/hostname: {NEW}}}"))?;
    site.wait_ready("app", 1)?;
    let route = |site: &Site| -> Result<Option<String>> {
        let routes = site.cluster.tor().bird().routes_from(NEW)?;
        Ok(routes.first().map(|route| route.prefix.clone()))
    };
    let block = wait_for("the router to know of the block", LONG, || {
        route(&site)?.ok_or_else(|| anyhow::anyhow!("it does not"))
    })?;
    let learned = |site: &Site| {
        let namespace = site.cluster.node(SELECTED[0])?.namespace();
        namespace.ip(&format!("route show {block} proto 116"))
    };
    wait_for("another node to know of the block", LONG, || {
        ensure!(!learned(&site)?.is_empty(), "it does not");
        Ok(())
    })?;
    site.cluster.cut_power(NEW)?;
    site.kubectl().run(&["delete", "deployment", "app"])?;
    site.kubectl().run(&["delete", "pods", "-l", "app=app", "--force", "--grace-period=0"])?;
    site.kubectl().run(&["delete", "node", NEW])?;
    let claims = site.kubectl().run(&["get", "blockaffinities"])?;
    ensure!(claims.contains(&block), "{claims}");
    // Those who are left go on.
    site.deploy("app", 2, super::addresses::ON_SELECTED)?;
    let pods = site.wait_ready("app", 2)?;
    wait_for("the pods to reach each other", LONG, || site.pings(&pods[0], &pods[1]))?;
    site.remove("app")
}
