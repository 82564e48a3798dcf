//! Objects and worlds for tests.

use kube::{core::DynamicObject, runtime::watcher::Event};
use serde_json::{Value, json};

use super::{
    kinds::{CONFIGURATION, List, OF_NODES},
    watching::News,
    world::World,
};

/// An object as the API server would tell it.
pub(super) fn object(list: List, name: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": list.api_version(), "kind": list.kind(),
        "metadata": {
            "name": name, "uid": format!("uid-{name}"), "resourceVersion": "7", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": spec,
    }))
    .unwrap()
}

/// Everything as if it had been told as a whole.
pub(super) fn world(objects: &[(List, DynamicObject)]) -> World {
    let mut world = World::default();
    for list in CONFIGURATION.into_iter().chain(OF_NODES) {
        world.take(list, News::Event(Box::new(Event::Init)));
        for (_, object) in objects.iter().filter(|(of, _)| *of == list) {
            world.take(list, News::Event(Box::new(Event::InitApply(object.clone()))));
        }
        world.take(list, News::Event(Box::new(Event::InitDone)));
    }
    world
}
