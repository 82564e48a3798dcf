//! A token that stands in a file, which others replace. kube reads such a file once a minute, and refuses one that
//! ends with a new line; ours is read for each request, of which a node has few, so that no request bears a
//! token that was replaced before.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use hyper::{
    Request,
    header::{AUTHORIZATION, HeaderValue},
};
use kube::{
    Error,
    client::{AuthError, Body},
    config::AuthInfo,
};

/// The file, and what stood there last.
#[derive(Debug, Clone)]
pub(super) struct TokenFile {
    path: PathBuf,
    last: Arc<Mutex<HeaderValue>>,
}

/// The file of who authenticates by one: what else there may be comes first, as kube has it.
pub(super) fn read(auth: &AuthInfo) -> kube::Result<Option<TokenFile>> {
    let has_password = auth.username.is_some() && auth.password.is_some();
    if auth.auth_provider.is_some() || has_password || auth.token.is_some() {
        return Ok(None);
    }
    let Some(path) = auth.token_file.as_ref().map(PathBuf::from) else { return Ok(None) };
    let text = fs::read_to_string(&path);
    let text = text.map_err(|error| Error::Auth(AuthError::ReadTokenFile(error, path.clone())))?;
    let value = header(&text).map_err(|error| Error::Auth(AuthError::InvalidBearerToken(error)))?;
    Ok(Some(TokenFile { path, last: Arc::new(Mutex::new(value)) }))
}

impl TokenFile {
    pub(super) fn put_on(&self, mut request: Request<Body>) -> Request<Body> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // One that cannot be read, or is being written, changes nothing: the API server says whether the last
        // one still holds.
        if let Ok(value) = of(&self.path) {
            *last = value;
        }
        request.headers_mut().insert(AUTHORIZATION, last.clone());
        request
    }
}

fn of(path: &Path) -> io::Result<HeaderValue> {
    let text = fs::read_to_string(path)?;
    if text.trim().is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    header(&text).map_err(io::Error::other)
}

fn header(text: &str) -> Result<HeaderValue, hyper::header::InvalidHeaderValue> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", text.trim()))?;
    value.set_sensitive(true);
    Ok(value)
}
