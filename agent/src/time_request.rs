//! Asking the control plane what time it is: one question a connection, one signed answer.
//!
//! Invariant: an answer counts once, only for the newest question, and only while its age is known to be small.

use skerry_shared::{
    id::DeviceId,
    schema::SchemaVersion,
    time::{NONCE_BYTES, Nonce, TimeRequest},
};

use crate::{
    clock::Clock,
    verify::{Trust, VerifyError},
};

/// An answer that took longer is not taken: it says when it was signed, and whoever held it back could set the device's
/// clock back by as much.
const ANSWER_MS: u64 = 30_000;
/// A question without an answer is put again after this time.
const AGAIN_MS: u64 = 60_000;

/// The question under way.
#[derive(Default)]
pub(crate) struct Asking {
    question: Option<(Nonce, u64)>,
    /// When it was last asked, on the monotonic clock.
    asked_ms: Option<u64>,
}

/// Why an answer changes nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TimeError {
    #[error("the time was not asked for")]
    NotAsked,
    #[error("the time came {0} ms after the question: too late to say what time it is")]
    Late(u64),
    #[error("the time answers another question")]
    OtherQuestion,
    #[error("the time is refused")]
    Refused(#[from] VerifyError),
}

impl Asking {
    /// A new question; the one before is forgotten.
    pub(crate) fn ask(&mut self, random: [u8; NONCE_BYTES], monotonic_ms: u64) -> TimeRequest {
        let nonce = Nonce::new(random);
        self.question = Some((nonce, monotonic_ms));
        self.asked_ms = Some(monotonic_ms);
        TimeRequest {
            schema: SchemaVersion::CURRENT,
            nonce,
        }
    }

    /// True when a question has waited for long enough to be put again.
    pub(crate) fn is_overdue(&self, monotonic_ms: u64) -> bool {
        let asked = self.question.and(self.asked_ms);
        asked.is_some_and(|asked| monotonic_ms.saturating_sub(asked) >= AGAIN_MS)
    }

    /// Takes an answer, and sets the clock by it.
    ///
    /// # Errors
    /// [`TimeError`]; the clock stays as it was. A bad answer does not use the question up: a good one may follow.
    pub(crate) fn answered(
        &mut self,
        bytes: &[u8],
        device: &DeviceId,
        trust: &Trust,
        clock: &Clock,
    ) -> Result<(), TimeError> {
        let (nonce, asked_ms) = self.question.ok_or(TimeError::NotAsked)?;
        let answer = trust.time_answer(bytes, device)?;
        if answer.nonce != nonce {
            return Err(TimeError::OtherQuestion);
        }
        let waited = clock.monotonic_ms().saturating_sub(asked_ms);
        if waited > ANSWER_MS {
            return Err(TimeError::Late(waited));
        }
        self.question = None;
        clock.learn_answer(answer.time_ms);
        Ok(())
    }
}
