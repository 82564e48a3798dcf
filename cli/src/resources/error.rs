use std::time::Duration;

use twill_k8s_api::files::FileError;

/// A datastore did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResourceError {
    /// There is no such object.
    #[error("there is no {object} in {place}")]
    NotFound { object: String, place: String },
    /// `create` of what is there.
    #[error("it is there already; `twillctl apply` or `replace` changes it")]
    Exists,
    /// It was changed since it was read.
    #[error("it has changed since it was read; get it again, and make the change there")]
    Conflict,
    /// The one that was read is gone, and another has its name.
    #[error(
        "it was deleted, and made anew, since it was read; get it again, or leave metadata.uid and \
         metadata.resourceVersion out to put this one in its place"
    )]
    Another,
    /// Server-side apply met fields of others.
    #[error("{message}; take these fields over with --force-conflicts, or leave them out")]
    Owned { message: String },
    /// Something uses it.
    #[error("{0}")]
    InUse(String),
    /// RBAC, or an admission policy.
    #[error("you may not {verb} {what}: {message}; ask for a role that grants it")]
    Forbidden { verb: &'static str, what: String, message: String },
    /// No valid credentials.
    #[error(
        "the API server {server} does not accept your credentials: {message}; they may have \
         expired: look at the user in the kubeconfig"
    )]
    Unauthorized { server: String, message: String },
    /// A kind that the server does not have.
    #[error(
        "the API server {server} has no {what}: apply Twill's definitions \
         (kubectl apply -f conf/crds), or name another cluster by --context"
    )]
    NotDefined { server: String, what: String },
    /// The schema, an expression, or an admission policy says no.
    #[error("{0}")]
    Invalid(String),
    /// No answer in time.
    #[error("the API server {server} has not answered {verb} {what} within {} s", limit.as_secs())]
    Late { server: String, verb: &'static str, what: String, limit: Duration },
    /// No connection.
    #[error("cannot reach the API server {server} (--context and --kubeconfig name another one)")]
    Unreachable {
        server: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Any other answer that is no.
    #[error("the API server answers {verb} {what} with {code}: {message}")]
    Refused { verb: &'static str, what: String, code: u16, message: String },
    /// Something in the directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// What a datastore holds has no JSON form, or not the one it should have.
    #[error("cannot read {what}")]
    Unreadable {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
