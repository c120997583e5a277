//! One inference, for both protocols: wait in line, run on a thread of its own, give up at the deadline.
//!
//! Invariant: whoever waits or gives up holds no session; a session is held only while the model runs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use skerry_shared::oip::Tensor;

use crate::{
    serve::{refusal::Refusal, room::Held},
    serving::{ServingModel, admission::Full},
};

/// The moment after which nobody waits for the answer; `None` when there is none, or it is beyond all time.
pub(crate) fn deadline(arrived: Instant, limits: [Option<Duration>; 2]) -> Option<Instant> {
    let shortest = limits.into_iter().flatten().min()?;
    arrived.checked_add(shortest)
}

/// Runs a model once. `held` is the room of the request's body, which its tensors take from now on.
pub(crate) async fn run(
    model: &Arc<ServingModel>,
    inputs: Vec<Tensor>,
    held: Held,
    deadline: Option<Instant>,
) -> Result<Vec<Tensor>, Refusal> {
    let came = Instant::now();
    let turn = before(deadline, model.admission.enter()).await?;
    let turn = turn.map_err(|Full| Refusal::Busy("too many requests wait for this model"))?;
    let queued = came.elapsed();
    let running = Arc::clone(model);
    // Turn and room go with the inference: a client that gives up does not end it.
    let inference = move || {
        let _held = (turn, held);
        running.infer(inputs, queued)
    };
    let answer = before(deadline, tokio::task::spawn_blocking(inference)).await?;
    let answer = answer.map_err(|_| Refusal::Failed("inference ended badly".to_owned()))?;
    Ok(answer?)
}

async fn before<F: Future>(deadline: Option<Instant>, future: F) -> Result<F::Output, Refusal> {
    match deadline {
        None => Ok(future.await),
        Some(deadline) => tokio::time::timeout_at(deadline.into(), future)
            .await
            .map_err(|_| Refusal::Deadline),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_limit_counts() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        assert_eq!(deadline(now, [None, None]), None);
        assert_eq!(deadline(now, [Some(ms(2)), None]), Some(now + ms(2)));
        assert_eq!(deadline(now, [Some(ms(2)), Some(ms(1))]), Some(now + ms(1)));
        assert_eq!(deadline(now, [Some(Duration::MAX), None]), None);
    }

    #[tokio::test]
    async fn waiting_ends_at_the_deadline() {
        let passed = Some(Instant::now());
        let waited = before(passed, std::future::pending::<()>()).await;
        assert_eq!(waited, Err(Refusal::Deadline));
        assert_eq!(before(None, std::future::ready(7)).await, Ok(7));
    }
}
