//! Passwords of sessions: from the Secrets that the resources name, or why not.

use std::collections::BTreeMap;

use twill_bgp_speaker::Password;
use twill_k8s_api::{BgpPassword, Condition, ConditionStatus, Secret};

/// Finds a password (`None` where none is asked for), or says in a condition what is missing. A
/// session whose password cannot be had is not to be opened without: anybody could be the peer.
pub(crate) fn find(
    password: Option<&BgpPassword>,
    secrets: &BTreeMap<String, Secret>,
) -> Result<Option<Password>, Condition> {
    let Some(reference) = password.and_then(|password| password.secret_key_ref.as_ref()) else {
        return Ok(None);
    };
    let (name, key) = (&reference.name, &reference.key);
    let value = match secrets.get(name) {
        None => Err(missing(
            "SecretNotFound",
            &format!("there is no Secret {name}: add it, with the key {key}"),
        )),
        Some(secret) => secret.value(key).ok_or_else(|| {
            let keys = secret.data.keys().chain(secret.string_data.keys());
            let keys: Vec<_> = keys.map(String::as_str).collect();
            let has = if keys.is_empty() { "none".to_owned() } else { keys.join(", ") };
            missing(
                "KeyNotFound",
                &format!("Secret {name} has no key {key} (it has: {has}): add it, or name another"),
            )
        }),
    };
    let value = match value {
        Ok(value) => value,
        Err(_) if reference.optional == Some(true) => return Ok(None),
        Err(condition) => return Err(condition),
    };
    let password = Password::new(value).map_err(|error| {
        missing("InvalidPassword", &format!("key {key} of Secret {name}: {error}"))
    });
    password.map(Some)
}

fn missing(reason: &str, message: &str) -> Condition {
    Condition {
        kind: "PasswordFound".to_owned(),
        status: ConditionStatus::False,
        reason: reason.to_owned(),
        message: format!(
            "{message}. Until then no session is opened, and one that is open keeps its last \
             password"
        ),
    }
}

#[cfg(test)]
mod tests {
    use twill_k8s_api::{Resource, load_manifests};

    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let long = "x".repeat(81);
        let text = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: bgp}}\n\
             stringData: {{tor: s3cret, empty: '', long: {long}}}\n"
        );
        let loaded = load_manifests(&text, "s.yaml");
        let Resource::Secret(secret) = loaded.resources[0].value.clone() else {
            panic!("{loaded:?}");
        };
        let secrets = BTreeMap::from([("bgp".to_owned(), secret)]);
        let find = |reference: &str| {
            let password: BgpPassword = serde_json::from_str(reference).unwrap();
            find(Some(&password), &secrets).map_err(|condition| condition.reason)
        };
        let of = |name: &str, key: &str, optional: bool| {
            find(&format!(
                r#"{{"secretKeyRef": {{"name": "{name}", "key": "{key}", "optional": {optional}}}}}"#
            ))
        };
        assert_eq!(of("bgp", "tor", false), Ok(Some(Password::new("s3cret").unwrap())));
        assert_eq!(find("{}"), Ok(None));
        assert_eq!(of("no", "tor", true), Ok(None));
        assert_eq!(of("bgp", "no", true), Ok(None));
        for (name, key, reason) in [
            ("no", "tor", "SecretNotFound"),
            ("bgp", "no", "KeyNotFound"),
            ("bgp", "empty", "InvalidPassword"),
            ("bgp", "long", "InvalidPassword"),
        ] {
            assert_eq!(of(name, key, false), Err(reason.to_owned()), "{name}/{key}");
        }
    }
}
