use std::fmt;

use twill_sys::MAX_KEY_LENGTH;

/// The password of a session (RFC 2385): 1 to 80 bytes, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

/// A text is no password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a password has 1 to {MAX_KEY_LENGTH} bytes, this one has {length}")]
pub struct PasswordError {
    /// Its length in bytes.
    pub length: usize,
}

impl Password {
    /// A password of these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, PasswordError> {
        let bytes = bytes.into();
        match bytes.len() {
            1..=MAX_KEY_LENGTH => Ok(Self(bytes)),
            length => Err(PasswordError { length }),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_have_a_length_and_no_text() {
        for length in [0, 81] {
            assert_eq!(Password::new(vec![b'x'; length]), Err(PasswordError { length }));
        }
        for length in [1, 80] {
            let password = Password::new(vec![b'x'; length]).unwrap();
            assert_eq!(format!("{password:?}"), "Password(..)");
        }
    }
}
