//! What the controller says of objects that nodes write, or that are about one node: requests for parts of
//! blocks, and status objects.

use kube::core::DynamicObject;
use twill_k8s_api::{Condition, ConditionStatus};

use super::{
    conditions::Stated,
    kinds::List,
    sense::{Findings, say},
    world::{Meta, NodeEntry, RequestEntry, World, stated},
};

/// What a status object asks for, and what has been said of that.
#[derive(Debug, Clone, Default)]
pub(super) struct Asked {
    /// The node that is to tell.
    node: String,
    /// Sessions or routes are asked for.
    has_classes: bool,
    conditions: Vec<Stated>,
}

impl Asked {
    pub(super) fn of(object: &DynamicObject) -> Self {
        let spec = &object.data["spec"];
        Self {
            node: spec["node"].as_str().unwrap_or_default().to_owned(),
            has_classes: spec["classes"].as_array().is_some_and(|all| !all.is_empty()),
            conditions: stated(object).0,
        }
    }
}

/// Says what became of each request, and what of a status object nobody fills.
pub(super) fn look(world: &World, found: &mut Findings) {
    for (name, request) in &world.requests {
        say(found, List::Requests, name, granted(request));
    }
    for (name, entry) in &world.statuses {
        if let Some(condition) = unfilled(entry) {
            say(found, List::NodeStatuses, name, condition);
        }
    }
}

/// These objects, and what is said of each now.
pub(super) fn all(world: &World) -> impl Iterator<Item = (List, &String, &Meta, &[Stated])> {
    let requests = world.requests.iter();
    let requests =
        requests.map(|(name, entry)| (List::Requests, name, &entry.meta, &entry.conditions[..]));
    let statuses = world.statuses.iter();
    let statuses = statuses
        .map(|(name, entry)| (List::NodeStatuses, name, &entry.meta, &entry.asked.conditions[..]));
    requests.chain(statuses)
}

/// Whether the one who asked has a part of the block. What part that is, and why it got none, the nodes have
/// written themselves.
fn granted(request: &RequestEntry) -> Condition {
    let node = &request.node;
    let owner = request.owner.as_deref().unwrap_or("no node");
    if request.is_refused {
        let text = format!("{owner} lends no part to {node}; status.refused says why");
        return Condition::fails("Granted", "Refused", text);
    }
    if request.returned {
        let text = format!("{node} does not use a part any more, and {owner} takes it back");
        return Condition::fails("Granted", "Returned", text);
    }
    if request.is_granted {
        let text = format!("{owner} lends the part status.granted to {node}");
        return Condition::holds("Granted", "Granted", text);
    }
    let text = format!("{owner} has not answered {node} yet");
    let status = ConditionStatus::Unknown;
    Condition { status, ..Condition::holds("Granted", "Waiting", text) }
}

/// Whether bad news of an object is no fault of anything: what becomes of each request in time.
pub(super) fn is_ordinary(list: List, condition: &Condition) -> bool {
    list == List::Requests && matches!(condition.reason.as_str(), "Refused" | "Returned")
}

/// A daemon fills the object of its node's name with what it makes of objects, and none with what Calico's
/// classes ask for.
fn unfilled(entry: &NodeEntry) -> Option<Condition> {
    let (is_own, Asked { node, has_classes, .. }) = (entry.is_own, &entry.asked);
    let what = match (has_classes, is_own) {
        (false, true) => return None,
        (true, _) => "spec.classes: no session and no route is told here",
        (false, false) => "spec.node: only the object of the node's own name is filled",
    };
    let text = format!(
        "{what}; `twillctl node status` and `twillctl bgp routes` on {node} have sessions and routes, and so \
         has its endpoint of metrics"
    );
    Some(Condition::holds("Unsupported", "NotImplemented", text))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{
        super::samples::{self, object},
        *,
    };

    fn said(list: List, name: &str, spec: Value, status: Value) -> Option<String> {
        let mut object = object(list, name, spec);
        object.data["status"] = status;
        let world = samples::world(&[(list, object)]);
        let mut found = Findings::new();
        look(&world, &mut found);
        let conditions = found.remove(&(list, name.to_owned()))?;
        let one = |c: &Condition| format!("{}={:?}/{}: {}", c.kind, c.status, c.reason, c.message);
        Some(conditions.iter().map(one).collect::<Vec<_>>().join("\n"))
    }

    #[test]
    fn a_request_says_what_became_of_it() {
        let said = |status: Value| {
            let spec = json!({"node": "n1", "owner": "n2", "block": "10.0.0.0/26"});
            said(List::Requests, "0a000000-26.r", spec, status).unwrap()
        };
        let part = "10.0.0.32/29";
        for (status, wanted) in [
            (Value::Null, "Granted=Unknown/Waiting: n2 has not answered n1 yet"),
            (
                json!({"granted": part}),
                "Granted=True/Granted: n2 lends the part status.granted to n1",
            ),
            (
                json!({"granted": part, "returned": true}),
                "Granted=False/Returned: n1 does not use a part any more, and n2 takes it back",
            ),
            (
                json!({"refused": "no"}),
                "Granted=False/Refused: n2 lends no part to n1; status.refused says why",
            ),
        ] {
            assert_eq!(said(status.clone()), wanted, "{status}");
        }
    }

    #[test]
    fn who_asks_for_sessions_on_the_api_server_hears_where_they_are() {
        let said = |name: &str, spec: Value| said(List::NodeStatuses, name, spec, Value::Null);
        assert_eq!(said("n1", json!({"node": "n1"})), None, "the daemon's own");
        for (name, spec, what) in [
            ("n1", json!({"node": "n1", "classes": ["BGP"]}), "spec.classes: no session"),
            ("mine", json!({"node": "n1", "classes": ["Routes"]}), "spec.classes: no session"),
            ("mine", json!({"node": "n1"}), "spec.node: only the object of the node's own name"),
        ] {
            let said = said(name, spec).unwrap();
            assert!(
                said.starts_with(&format!("Unsupported=True/NotImplemented: {what}")),
                "{said}"
            );
            assert!(said.contains("on n1 have"), "{said}");
        }
    }
}
