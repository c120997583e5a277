//! Reads request bodies: at most so many bytes each, so many together, within a time.
//!
//! Invariant: a byte is paid for before it is kept, and the payment lasts until the inference has ended: what clients can
//! make the device hold is known, however many there are and however slowly they send.

use std::{sync::Arc, time::Duration};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::serve::refusal::Refusal;

/// 16 MiB: a camera frame as floats, with room.
pub(crate) const BODY_LIMIT_BYTES: usize = 16 * 1024 * 1024;
/// 32 MiB for the bodies of all requests together: what busy clients can make the device hold.
const BODIES_BYTES: usize = 2 * BODY_LIMIT_BYTES;
/// Clients are on the same board, or near: a body that takes longer holds room that others need.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The room for bodies, one permit a byte.
pub(crate) struct Room {
    bytes: Arc<Semaphore>,
    patience: Duration,
}

/// A body's place; free again when this goes.
#[derive(Debug)]
pub(crate) struct Held(#[allow(dead_code, reason = "held for its end")] OwnedSemaphorePermit);

impl Room {
    pub(crate) fn new() -> Room {
        Room {
            bytes: Arc::new(Semaphore::new(BODIES_BYTES)),
            patience: BODY_TIMEOUT,
        }
    }

    /// Reads a whole body. With a length it is paid for before it is read, without one as it comes.
    pub(crate) async fn read(&self, announced: Option<usize>, body: Body) -> Result<(Bytes, Held), Refusal> {
        if announced.is_some_and(|length| length > BODY_LIMIT_BYTES) {
            return Err(too_large());
        }
        let held = self.take(announced.unwrap_or(0))?;
        match tokio::time::timeout(self.patience, self.collect(body, held)).await {
            Ok(read) => read,
            Err(_) => Err(Refusal::Slow),
        }
    }

    /// Pays for what has come another way.
    pub(crate) fn hold(&self, bytes: usize) -> Result<Held, Refusal> {
        self.take(bytes).map(Held)
    }

    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Refusal> {
        let bytes = u32::try_from(bytes).map_err(|_| too_large())?;
        let permits = Arc::clone(&self.bytes).try_acquire_many_owned(bytes);
        permits.map_err(|_| Refusal::Busy("too many requests at once: no room for the body"))
    }

    async fn collect(&self, mut body: Body, mut held: OwnedSemaphorePermit) -> Result<(Bytes, Held), Refusal> {
        let mut first = Bytes::new();
        let mut whole = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::Bad(format!("the request's body broke off: {error}")))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = whole.len().max(first.len()) + data.len();
            if length > BODY_LIMIT_BYTES {
                return Err(too_large());
            }
            if length > held.num_permits() {
                held.merge(self.take(length - held.num_permits())?);
            }
            // Most bodies come in one piece, which is not copied.
            if first.is_empty() && whole.is_empty() {
                first = data;
            } else {
                if whole.is_empty() {
                    whole.extend_from_slice(&std::mem::take(&mut first));
                }
                whole.extend_from_slice(&data);
            }
        }
        let bytes = if whole.is_empty() { first } else { whole.freeze() };
        Ok((bytes, Held(held)))
    }
}

fn too_large() -> Refusal {
    Refusal::TooLarge(format!("a request has at most {BODY_LIMIT_BYTES} bytes"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use axum::body::HttpBody;
    use http_body_util::Full;
    use hyper::body::Frame;

    use super::*;

    /// So many bytes in frames of a MiB, without a length.
    struct Endless(usize);

    impl HttpBody for Endless {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            let length = self.0.min(1024 * 1024);
            self.0 -= length;
            Poll::Ready((length > 0).then(|| Ok(Frame::data(vec![7; length].into()))))
        }
    }

    #[tokio::test]
    async fn a_body_holds_its_room_until_it_is_let_go() {
        let room = Room::new();
        let half = || Body::new(Endless(BODY_LIMIT_BYTES));
        let (first, held) = room.read(None, half()).await.unwrap();
        assert_eq!(first.len(), BODY_LIMIT_BYTES);
        let (_second, _held) = room.read(Some(BODY_LIMIT_BYTES), half()).await.unwrap();
        let small = || Body::new(Full::new(Bytes::from_static(b"x")));
        let refused = room.read(None, small()).await.unwrap_err();
        assert!(matches!(refused, Refusal::Busy(_)), "{refused:?}");
        drop(held);
        assert_eq!(room.read(Some(1), small()).await.unwrap().0, "x");
    }

    #[tokio::test]
    async fn too_large_a_body_is_refused_with_a_length_and_without() {
        let room = Room::new();
        let larger = BODY_LIMIT_BYTES + 1;
        for announced in [None, Some(larger)] {
            let refused = room.read(announced, Body::new(Endless(larger))).await.unwrap_err();
            assert!(matches!(refused, Refusal::TooLarge(_)), "{refused:?}");
        }
        assert_eq!(room.bytes.available_permits(), BODIES_BYTES, "nothing stays behind");
    }

    /// A client that says nothing.
    struct Silent;

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let room = Room {
            patience: Duration::ZERO,
            ..Room::new()
        };
        let refused = room.read(Some(10), Body::new(Silent)).await.unwrap_err();
        assert_eq!(refused, Refusal::Slow);
        assert_eq!(room.bytes.available_permits(), BODIES_BYTES);
    }
}
