use twill_k8s_api::Delegation;
use twill_types::Block;

use super::*;
use crate::datastore::{ClaimOutcome, Claimant, Grant, claims::FileClaims, leases::FileLeases};

struct Site {
    root: tempfile::TempDir,
    claims: FileClaims,
    watch: Watch,
}

impl Site {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let claims = FileClaims::open(root.path()).unwrap();
        Self { root, claims, watch: Watch::default() }
    }

    fn caretaker(&self, grace: Duration) -> Caretaker {
        let (_, resources) = watch::channel(Arc::new(Snapshot::default()));
        Caretaker {
            node: "node1".to_owned(),
            instance: "i1".to_owned(),
            grace,
            claims: Arc::new(self.claims.clone()),
            leases: Arc::new(FileLeases::open(self.root.path()).unwrap()),
            resources,
            problems: watch::Sender::default(),
            others: Mutex::default(),
            seen: Mutex::default(),
        }
    }

    fn claim(&self, node: &str, block: &str) -> Claim {
        let block = block.parse().unwrap();
        let who = Claimant { node, pool: "a", dedication: None };
        self.claims.claim(who, |_| Some(block)).unwrap().unwrap()
    }

    fn look(&mut self, caretaker: &Caretaker) -> Vec<Block> {
        caretaker.look(&mut self.watch).unwrap();
        self.claims.list().unwrap().claims.into_keys().collect()
    }
}

use twill_k8s_api::files::Claim;

/// What a node asks for that wants a part of a block.
fn wish(node: &str, block: Block) -> BlockRequestSpec {
    BlockRequestSpec {
        node: node.to_owned(),
        owner: None,
        block,
        pool: "a".to_owned(),
        length: 29,
        address: None,
    }
}

fn lease(node: &str, renewed: &str, had_node: bool) -> Lease {
    let (node, renewed) = (node.to_owned(), renewed.to_owned());
    Lease { node, instance: "other".to_owned(), seconds: 0, had_node, renewed }
}

#[test]
fn the_blocks_of_a_node_that_is_gone_return_after_the_grace_period() {
    let mut site = Site::new();
    let own = site.claim("node1", "10.0.0.0/26").block;
    let gone = site.claim("gone", "10.0.0.64/26").block;
    let patient = site.caretaker(Duration::from_secs(3600));
    assert_eq!(site.look(&patient), [own, gone], "before the grace period is over");
    let later = Instant::now() + patient.grace;
    assert_eq!(site.watch.absences.gone(later, patient.grace).len(), 1);
    // Its daemon has said something since, so it lives.
    patient.leases.renew(lease("gone", "1", true)).unwrap();
    site.look(&patient);
    assert_eq!(site.watch.absences.gone(later, patient.grace), []);
    let hasty = site.caretaker(Duration::ZERO);
    assert_eq!(site.look(&hasty), [own]);
    assert_eq!(hasty.leases.get("gone").unwrap(), None);
}

#[test]
fn a_node_that_renews_while_it_is_cleared_up_keeps_its_blocks() {
    let site = Site::new();
    site.claim("gone", "10.0.0.64/26");
    let hasty = site.caretaker(Duration::ZERO);
    let seen = lease("gone", "1", true);
    hasty.leases.renew(lease("gone", "2", true)).unwrap();
    hasty.clear_up("gone", Some(&seen)).unwrap();
    assert_eq!(site.claims.list().unwrap().claims.len(), 1);
}

#[test]
fn a_node_that_never_had_a_node_keeps_its_blocks() {
    let mut site = Site::new();
    let block = site.claim("shy", "10.0.0.64/26").block;
    let hasty = site.caretaker(Duration::ZERO);
    hasty.leases.renew(lease("shy", "1", false)).unwrap();
    assert_eq!(site.look(&hasty), [block]);
    // Once it had one, that is not forgotten.
    hasty.leases.renew(lease("shy", "2", true)).unwrap();
    hasty.leases.renew(lease("shy", "3", false)).unwrap();
    assert_eq!(site.look(&hasty), []);
}

#[test]
fn one_daemon_does_it() {
    let mut site = Site::new();
    let gone = site.claim("gone", "10.0.0.64/26").block;
    let hasty = site.caretaker(Duration::ZERO);
    let other = hasty.leases.try_lead().unwrap();
    assert!(other.is_some());
    assert_eq!(site.look(&hasty), [gone]);
    drop(other);
    assert_eq!(site.look(&hasty), []);
}

#[test]
fn two_daemons_of_one_name_are_told() {
    let site = Site::new();
    let first = site.caretaker(Duration::from_secs(900));
    let second = Caretaker { instance: "i2".to_owned(), ..site.caretaker(first.grace) };
    assert_eq!(first.renew().unwrap(), None);
    // That may be the process before.
    assert_eq!(second.renew().unwrap(), None);
    assert!(first.renew().unwrap().is_some_and(|text| text.contains("node1")));
    assert!(second.renew().unwrap().is_some());
}

#[test]
fn a_block_stays_as_long_as_another_node_has_a_part_of_it() {
    let mut site = Site::new();
    let hasty = site.caretaker(Duration::ZERO);
    let claim = site.claim("gone", "10.0.0.64/26");
    let block = claim.block;
    let spec = wish("node1", claim.block);
    let request = site.claims.ask(spec.clone()).unwrap();
    let cidr = "10.0.0.64/29".parse().unwrap();
    let part = Delegation { cidr, node: "node1".to_owned(), request: request.clone() };
    let Grant::Done(claim) = site.claims.grant(&claim, &part).unwrap() else {
        panic!("it was asked for");
    };
    assert_eq!(
        site.claims.release_if(&claim, || Ok(true)).unwrap(),
        Release::Lent,
        "nobody can release it"
    );
    assert_eq!(site.look(&hasty), [block]);
    // A request that somebody has removed returns nothing.
    std::fs::remove_file(site.root.path().join(format!("requests/{request}.yaml"))).unwrap();
    assert_eq!(site.look(&hasty), [block]);
    // Nor does one that is damaged; who gives up says what it was.
    std::fs::write(site.root.path().join(format!("requests/{request}.yaml")), "{").unwrap();
    assert_eq!(site.look(&hasty), [block]);
    site.claims.give_up(&request, &spec).unwrap();
    assert_eq!(site.look(&hasty), []);
    assert!(site.claims.requests().unwrap().is_empty());
}

#[test]
fn what_a_node_that_is_gone_has_borrowed_goes_back() {
    let mut site = Site::new();
    let hasty = site.caretaker(Duration::ZERO);
    let claim = site.claim("node1", "10.0.0.64/26");
    let cidr = "10.0.0.64/29".parse().unwrap();
    let spec = wish("gone", claim.block);
    let request = site.claims.ask(spec).unwrap();
    let part = Delegation { cidr, node: "gone".to_owned(), request: request.clone() };
    assert!(matches!(site.claims.grant(&claim, &part).unwrap(), Grant::Done(_)));
    std::fs::remove_file(site.root.path().join(format!("requests/{request}.yaml"))).unwrap();
    site.look(&hasty);
    let claim = site.claims.take_back(&claim).unwrap().unwrap();
    assert_eq!(claim.delegations, []);
}

#[test]
fn whoever_claims_a_block_again_leaves_parts_to_those_who_have_them() {
    let site = Site::new();
    let claim = site.claim("node1", "10.0.0.64/26");
    let spec = wish("node2", claim.block);
    let request = site.claims.ask(spec).unwrap();
    let cidr: Block = "10.0.0.64/29".parse().unwrap();
    let part = Delegation { cidr, node: "node2".to_owned(), request: request.clone() };
    assert!(matches!(site.claims.grant(&claim, &part).unwrap(), Grant::Done(_)));
    let file = site.root.path().join("claims/0a000040-26.yaml");
    std::fs::remove_file(&file).unwrap();
    let who = |node| Claimant { node, pool: "a", dedication: None };
    // Who has a part does not claim the whole.
    assert!(site.claims.try_claim(claim.block, who("node2")).is_err());
    let choose = |taken: &twill_ipam::Taken| {
        twill_ipam::next_candidate("10.0.0.64/26".parse().unwrap(), 26, "n", taken)
    };
    assert_eq!(site.claims.claim(who("node2"), choose).unwrap(), None);
    let again = site.claims.claim(who("node3"), choose).unwrap().unwrap();
    assert_eq!(again.delegations, std::slice::from_ref(&part));
    std::fs::remove_file(&file).unwrap();
    let ClaimOutcome::Won(again) = site.claims.try_claim(claim.block, who("node1")).unwrap() else {
        panic!("nobody else has it");
    };
    assert_eq!(again.delegations, [part]);
    // Nobody can say what a request was that cannot be read.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(site.root.path().join(format!("requests/{request}.yaml")), "{").unwrap();
    assert!(site.claims.try_claim(claim.block, who("node1")).is_err());
    assert_eq!(site.claims.claim(who("node3"), choose).unwrap(), None);
}
