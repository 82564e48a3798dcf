//! Frames: a length of four octets, big endian, then that many octets of JSON.
//!
//! [`encode`], [`body_length`] and [`decode`] are pure, for callers with an event loop of their
//! own; [`read_frame`] and [`write_frame`] do the same over blocking streams.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// The most octets that a frame's body may have: 16 MiB.
pub const MAX_FRAME: usize = 16 << 20;

/// Octets before the body.
const PREFIX: usize = 4;

/// How much of a body that is no JSON is quoted in the error.
const QUOTED: usize = 64;

/// Why a frame could not be made or understood.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The message is larger than a frame may be.
    #[error("a message of {0} octets does not fit into a frame; at most {MAX_FRAME} do")]
    TooLarge(usize),
    /// A length that no writer of frames sends: the other side speaks another protocol.
    #[error("a frame announces {0} octets, at most {MAX_FRAME} are allowed: not this protocol")]
    Oversized(u32),
    /// The stream ended inside a frame.
    #[error("the connection was closed inside a frame, after {got} of {expected} octets")]
    Truncated {
        /// Octets that came, of the length or of the body.
        got: usize,
        /// Octets that were to come.
        expected: usize,
    },
    /// A message that JSON cannot express.
    #[error("cannot write the message as JSON")]
    Encode(#[source] serde_json::Error),
    /// A body that is not the JSON of the expected message.
    #[error("cannot read the message `{quoted}`")]
    Decode {
        /// The beginning of the body.
        quoted: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The stream failed.
    #[error("the connection failed")]
    Io(#[source] io::Error),
}

/// A whole frame, ready to send.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut frame = vec![0; PREFIX];
    serde_json::to_writer(&mut frame, message).map_err(FrameError::Encode)?;
    let body = frame.len() - PREFIX;
    let length = match u32::try_from(body) {
        Ok(length) if body <= MAX_FRAME => length,
        _ => return Err(FrameError::TooLarge(body)),
    };
    frame[..PREFIX].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// How long the body is that follows these first four octets.
pub fn body_length(prefix: [u8; PREFIX]) -> Result<usize, FrameError> {
    let length = u32::from_be_bytes(prefix);
    match usize::try_from(length) {
        Ok(body) if body <= MAX_FRAME => Ok(body),
        _ => Err(FrameError::Oversized(length)),
    }
}

/// The message in a frame's body (without the length).
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    serde_json::from_slice(body).map_err(|source| {
        let start = &body[..body.len().min(QUOTED)];
        FrameError::Decode { quoted: String::from_utf8_lossy(start).into_owned(), source }
    })
}

/// Reads one frame and returns its body, or `None` if the stream ends where a frame would begin.
pub fn read_frame(reader: &mut impl Read) -> Result<Option<Vec<u8>>, FrameError> {
    let mut prefix = Vec::with_capacity(PREFIX);
    match read_up_to(reader, PREFIX, &mut prefix)? {
        0 => return Ok(None),
        PREFIX => {}
        got => {
            return Err(FrameError::Truncated { got, expected: PREFIX });
        }
    }
    let expected = body_length([prefix[0], prefix[1], prefix[2], prefix[3]])?;
    let mut body = Vec::new();
    match read_up_to(reader, expected, &mut body)? {
        got if got == expected => Ok(Some(body)),
        got => Err(FrameError::Truncated { got, expected }),
    }
}

/// Memory grows with what arrives, not with what the other side announces.
fn read_up_to(
    reader: &mut impl Read,
    length: usize,
    into: &mut Vec<u8>,
) -> Result<usize, FrameError> {
    reader.by_ref().take(length as u64).read_to_end(into).map_err(FrameError::Io)
}

/// Writes one frame.
pub fn write_frame<T: Serialize>(writer: &mut impl Write, message: &T) -> Result<(), FrameError> {
    let frame = encode(message)?;
    writer.write_all(&frame).and_then(|()| writer.flush()).map_err(FrameError::Io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let mut stream = Vec::new();
        write_frame(&mut stream, &"one").unwrap();
        write_frame(&mut stream, &[1, 2]).unwrap();
        assert_eq!(&stream[..9], b"\0\0\0\x05\"one\"");
        let mut stream = stream.as_slice();
        let body = read_frame(&mut stream).unwrap().unwrap();
        assert_eq!(decode::<String>(&body).unwrap(), "one");
        let body = read_frame(&mut stream).unwrap().unwrap();
        assert_eq!(decode::<Vec<u8>>(&body).unwrap(), [1, 2]);
        assert!(read_frame(&mut stream).unwrap().is_none());
    }

    #[test]
    fn a_frame_is_read_whole_or_not_at_all() {
        let frame = encode(&"some text").unwrap();
        for end in 1..frame.len() {
            let error = read_frame(&mut &frame[..end]).unwrap_err();
            assert!(matches!(error, FrameError::Truncated { .. }), "{end}: {error}");
        }
        assert_eq!(
            read_frame(&mut &frame[..7]).unwrap_err().to_string(),
            "the connection was closed inside a frame, after 3 of 11 octets"
        );
    }

    #[test]
    fn lengths_are_bounded() {
        let garbage = b"HTTP/1.1 400 Bad Request\r\n";
        assert!(matches!(read_frame(&mut &garbage[..]), Err(FrameError::Oversized(0x4854_5450))));
        assert!(matches!(body_length([1, 0, 0, 1]), Err(FrameError::Oversized(_))));
        assert_eq!(body_length([1, 0, 0, 0]).unwrap(), MAX_FRAME);
        let fits = "x".repeat(MAX_FRAME - 2);
        assert_eq!(encode(&fits).unwrap().len(), PREFIX + MAX_FRAME);
        assert!(matches!(encode(&(fits + "x")), Err(FrameError::TooLarge(_))));
    }

    #[test]
    fn a_bad_body_is_quoted_in_part() {
        let body = format!("{{\"a\": {}", "y".repeat(1000));
        let error = decode::<String>(body.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the message `{\"a\": yyy"), "{error}");
        assert!(error.len() < 120, "{error}");
        decode::<String>(b"\xff\xfe").unwrap_err();
    }
}
