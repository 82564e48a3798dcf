//! A panic is a CNI error like any other.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    sync::Mutex,
};

use crate::error::Error;

/// Where the last panic happened.
static PLACE: Mutex<String> = Mutex::new(String::new());

/// Runs `f`. Nothing that it changed is used after a panic but to report it.
pub(crate) fn catch<T>(f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    set_hook(Box::new(|info| {
        if let (Some(location), Ok(mut place)) = (info.location(), PLACE.lock()) {
            *place = location.to_string();
        }
    }));
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|payload| {
        let place = PLACE.lock().map(|place| place.clone()).unwrap_or_default();
        Err(Error::Panic { place, what: message(payload.as_ref()) })
    })
}

fn message(payload: &(dyn Any + Send)) -> String {
    match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "panic without a message".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_one_error_with_its_place() {
        let error = catch::<()>(|| panic!("the {} is gone", "floor")).unwrap_err();
        assert_eq!(error.code(), 999);
        let text = error.to_string();
        assert!(text.contains("the floor is gone") && text.contains("panic.rs:"), "{text}");
    }
}
