//! What the API server's answers that are no mean.

use std::time::Duration;

use kube::core::Status;

use crate::resources::ResourceError;

/// One request, for messages.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    pub(super) server: &'a str,
    /// As RBAC has it.
    pub(super) verb: &'static str,
    /// The resource as RBAC has it, with the object's name behind a slash where there is one.
    pub(super) what: String,
}

impl Request<'_> {
    /// There was no answer in time.
    pub(super) fn late(self, limit: Duration) -> ResourceError {
        let Self { server, verb, what } = self;
        ResourceError::Late { server: server.to_owned(), verb, what, limit }
    }

    /// The answer was no, or there was no connection.
    pub(super) fn failed(self, error: kube::Error) -> ResourceError {
        let server = self.server.to_owned();
        let source: Box<dyn std::error::Error + Send + Sync> = match error {
            kube::Error::Api(status) => return self.refused(*status),
            kube::Error::SerdeError(source) => {
                return ResourceError::Unreadable { what: self.what, source: source.into() };
            }
            // What these say has their sources in it, which would be told twice.
            kube::Error::Service(source) => source,
            kube::Error::HyperError(source) => source.into(),
            error => error.into(),
        };
        ResourceError::Unreachable { server, source }
    }

    fn refused(self, status: Status) -> ResourceError {
        let Self { server, verb, what } = self;
        let server = server.to_owned();
        let is_apply = verb == "apply";
        let Status { message, reason, code, details, .. } = status;
        let (name, kind, is_conflict) = match details {
            Some(details) => (details.name, details.kind, !details.causes.is_empty()),
            None => Default::default(),
        };
        match code {
            401 => ResourceError::Unauthorized { server, message },
            403 => {
                let verb = if is_apply { "patch" } else { verb };
                ResourceError::Forbidden { verb, what, message }
            }
            // A kind that is not there has no details; a namespace that is not there is named in them.
            404 if name.is_empty() => {
                let what = what.split('/').next().unwrap_or_default().to_owned();
                ResourceError::NotDefined { server, what }
            }
            404 if kind == "namespaces" && !what.starts_with("namespaces") => {
                ResourceError::Invalid(format!("{message}; make it, or name another by -n"))
            }
            404 => ResourceError::NotFound { object: what, place: server },
            409 if reason == "AlreadyExists" => ResourceError::Exists,
            409 if is_apply && is_conflict => ResourceError::Owned { message },
            // Of another verb nobody wrote the UID: it is of what was read, and is read anew.
            409 if verb == "update" && message.contains("UID in precondition") => {
                ResourceError::Another
            }
            409 => ResourceError::Conflict,
            400 | 422 => ResourceError::Invalid(message),
            code => ResourceError::Refused { verb, what, code, message },
        }
    }
}

/// Whether server-side apply met nobody's fields but those of this manager, written by other verbs.
pub(super) fn is_own_conflict(error: &kube::Error, manager: &str) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.as_ref().map(|details| &details.causes[..]).unwrap_or_default();
    let own = format!("conflict with \"{manager}\"");
    let is_own = |message: &str| {
        message
            .strip_prefix(&own)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', ':']))
    };
    status.code == 409
        && !causes.is_empty()
        && causes
            .iter()
            .all(|cause| cause.reason == "FieldManagerConflict" && is_own(&cause.message))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use kube::core::response::{StatusCause, StatusDetails};
    use twill_types::error_chain;

    use super::*;

    fn answer(
        code: u16,
        reason: &str,
        message: &str,
        details: Option<StatusDetails>,
    ) -> kube::Error {
        let mut status = Status::failure(message, reason).with_code(code);
        status.details = details;
        kube::Error::Api(status.boxed())
    }

    fn details(name: &str, kind: &str, causes: &[&str]) -> Option<StatusDetails> {
        let cause = |message: &&str| StatusCause {
            reason: "FieldManagerConflict".into(),
            message: (*message).to_owned(),
            field: ".spec.cidr".into(),
        };
        let causes = causes.iter().map(cause).collect();
        Some(StatusDetails {
            name: name.into(),
            group: String::new(),
            kind: kind.into(),
            uid: String::new(),
            causes,
            retry_after_seconds: 0,
        })
    }

    #[test]
    fn every_answer_has_its_remedy() {
        let pool = || details("app", "ippools", &[]);
        let mut text = String::new();
        for (verb, code, reason, message, details) in [
            ("list", 403, "Forbidden", "User \"x\" cannot list", None),
            ("apply", 403, "Forbidden", "User \"x\" cannot patch", None),
            ("update", 409, "Conflict", "the object has been modified", pool()),
            ("update", 409, "Conflict", "Precondition failed: UID in precondition: 1", pool()),
            ("patch", 409, "Conflict", "Precondition failed: UID in precondition: 1", pool()),
            ("delete", 409, "Conflict", "Precondition failed: UID in precondition: 1", pool()),
            ("create", 409, "AlreadyExists", "already exists", pool()),
            ("apply", 409, "Conflict", "Apply failed with 1 conflict", details("", "", &["c"])),
            ("get", 404, "NotFound", "not found", pool()),
            ("get", 404, "Failed to parse error data", "404 page not found", None),
            (
                "create",
                404,
                "NotFound",
                "namespaces \"a\" not found",
                details("a", "namespaces", &[]),
            ),
            ("create", 422, "Invalid", "spec.cidr: is immutable", pool()),
            ("get", 401, "Unauthorized", "Unauthorized", None),
            ("get", 500, "InternalError", "etcd is away", None),
        ] {
            let request = Request { server: "https://s:6443", verb, what: "ippools/app".into() };
            let error = request.failed(answer(code, reason, message, details));
            text += &format!("{}\n", error_chain(&error));
        }
        let request = Request { server: "https://s:6443", verb: "get", what: "ippools/app".into() };
        let error = request.clone().failed(kube::Error::Service("connection refused".into()));
        text += &format!("{}\n", error_chain(&error));
        text += &format!("{}\n", error_chain(&request.late(Duration::from_secs(10))));
        expect![[r#"
            you may not list ippools/app: User "x" cannot list; ask for a role that grants it
            you may not patch ippools/app: User "x" cannot patch; ask for a role that grants it
            it has changed since it was read; get it again, and make the change there
            it was deleted, and made anew, since it was read; get it again, or leave metadata.uid and metadata.resourceVersion out to put this one in its place
            it has changed since it was read; get it again, and make the change there
            it has changed since it was read; get it again, and make the change there
            it is there already; `twillctl apply` or `replace` changes it
            Apply failed with 1 conflict; take these fields over with --force-conflicts, or leave them out
            there is no ippools/app in https://s:6443
            the API server https://s:6443 has no ippools: apply Twill's definitions (kubectl apply -f conf/crds), or name another cluster by --context
            namespaces "a" not found; make it, or name another by -n
            spec.cidr: is immutable
            the API server https://s:6443 does not accept your credentials: Unauthorized; they may have expired: look at the user in the kubeconfig
            the API server answers get ippools/app with 500: etcd is away
            cannot reach the API server https://s:6443 (--context and --kubeconfig name another one): connection refused
            the API server https://s:6443 has not answered get ippools/app within 10 s
        "#]].assert_eq(&text);
    }

    #[test]
    fn conflicts_with_oneself_are_told_apart() {
        let conflict =
            |causes: &[&str]| answer(409, "Conflict", "Apply failed", details("", "", causes));
        let own = "conflict with \"twillctl\" using projectcalico.org/v3";
        let others = "conflict with \"kubectl-patch\" using projectcalico.org/v3";
        assert!(is_own_conflict(&conflict(&[own, own]), "twillctl"));
        assert!(!is_own_conflict(&conflict(&[own, others]), "twillctl"));
        assert!(!is_own_conflict(&conflict(&[]), "twillctl"));
        let outdated = answer(409, "Conflict", "modified", None);
        assert!(!is_own_conflict(&outdated, "twillctl"));
    }
}
