use std::sync::Mutex;

use axum::http::Method;
use tokio::sync::watch;

use super::{
    super::{cache::Cache, fake::Fake, requests::NodeRequests},
    *,
};

/// The controller says of a request what became of it while who has made it removes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_written_meanwhile_goes_a_moment_later() {
    const NAME: &str = "0a000000-26.r";
    let path = format!("blockrequests/{NAME}");
    let spec = BlockRequestSpec {
        node: "node1".to_owned(),
        owner: Some("node2".to_owned()),
        block: "10.0.0.0/26".parse().unwrap(),
        pool: "a".to_owned(),
        length: 29,
        address: None,
    };
    for is_returned in [true, false] {
        let (fake, directory) = (Fake::default(), tempfile::tempdir().unwrap());
        let mut cache = Cache::open(directory.path(), "node1").unwrap();
        cache.begin();
        let cache = Arc::new(Mutex::new(cache));
        let requests = watch::Sender::new(Arc::new(NodeRequests::new("node1")));
        let store =
            ApiClaims::new(fake.access(), watch::Sender::default(), requests, cache, "node1");
        let mut request = json!({
            "apiVersion": "projectcalico.org/v3", "kind": "BlockRequest",
            "metadata": {"name": NAME, "finalizers": [REQUEST_FINALIZER]},
            "spec": spec, "status": {"refused": "no"},
        });
        if is_returned {
            request["status"]["returned"] = json!(true);
        }
        let request = fake.with(|objects| objects.put(&path, request));
        store.note_request(&serde_json::from_value(request).unwrap());
        let of_it = path.clone();
        fake.after(move |method, path, objects| {
            let mut request = objects.stored.get(&of_it).cloned().unwrap_or_default();
            let is_told = !request["status"]["conditions"].is_null();
            if *method == Method::GET && path == of_it && !is_told {
                request["status"]["conditions"] = json!([{"type": "Granted"}]);
                objects.put(&of_it, request);
            }
        });
        if is_returned {
            store.settle().unwrap();
        } else {
            store.give_up(NAME, &spec).unwrap();
        }
        let left = fake.with(|objects| objects.stored.get(&path).cloned().unwrap());
        assert_eq!(left["status"]["returned"], true, "{left}");
        assert_eq!(left["metadata"]["finalizers"], json!([REQUEST_FINALIZER]), "{left}");
        store.settle().unwrap();
        assert!(fake.with(|objects| !objects.stored.contains_key(&path)), "{is_returned}");
        assert!(store.told(NAME).is_none());
    }
}
