//! The renewal of the device's certificate: at two thirds of its life, with jitter, over HTTPS, with the certificate itself.
//!
//! An expired one still renews for 90 days (the control plane's rule), so a device that was switched off for two months comes
//! back by itself. Nothing here touches the models or the connection: the next handshake shows the new certificate.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    disk::Disk,
    enroll::{self, Broker, Certificate, Identity, Life, MqttAccess, Refused},
    jitter::{jitter as random, shortened},
    tls::{self, DeviceCertificate, DeviceKey},
};

/// The longest pause before the clock is asked again: it may be set meanwhile.
const LOOK_EVERY: Duration = Duration::from_secs(3600);
/// After a failure: a tenth of what is left of the certificate's life, or of what has passed since its end, between these.
const RETRY_MIN: Duration = Duration::from_secs(60);
const RETRY_MAX: Duration = Duration::from_secs(3600);
/// After a refusal at least: a revoked device is refused for ever, and one that is unknown until somebody does something.
const REFUSED_MIN: Duration = Duration::from_secs(600);
/// The least of all, for certificates that live for seconds.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// The time, in UTC milliseconds. It is at least when the certificate was issued, by the control plane's own clock, and what
/// has passed since this agent knows it: with a clock that says 1970 nothing would ever be due.
fn now_ms(clock: Duration, life: Life, known_for: Duration) -> u64 {
    let least = life.issued_at_ms.saturating_add(known_for.as_millis() as u64);
    least.max(clock.as_millis() as u64)
}

/// When a certificate is to be renewed, in UTC milliseconds: at two thirds of its life, up to a twentieth of it earlier by
/// `jitter` (0 to 1), so that a fleet that was enrolled in an hour does not come back in one.
fn due_at_ms(life: Life, jitter: f64) -> u64 {
    let whole = life.not_after_ms.saturating_sub(life.issued_at_ms) as f64;
    life.issued_at_ms + (whole * (2.0 / 3.0 - jitter / 20.0)).round() as u64
}

/// How a renewal failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The control plane said no.
    Refused,
    /// It was not reached, or is broken.
    Other,
}

impl Failure {
    fn of(error: &anyhow::Error) -> Failure {
        match error.downcast_ref::<Refused>() {
            Some(refused) if refused.status.is_client_error() => Failure::Refused,
            _ => Failure::Other,
        }
    }
}

/// How long to wait after a failure; half of it with `jitter` 0, all of it with 1.
fn retry_after(life: Life, now_ms: u64, failure: Failure, jitter: f64) -> Duration {
    let least = match failure {
        Failure::Refused => REFUSED_MIN,
        Failure::Other => RETRY_MIN,
    };
    // A certificate of minutes cannot wait for ten.
    let least = least.min(pause_after(life)).max(PAUSE_MIN);
    let pause = Duration::from_millis(life.not_after_ms.abs_diff(now_ms) / 10).clamp(least, RETRY_MAX);
    shortened(pause, jitter)
}

/// The least time from one renewal to the next: a tenth of the life.
fn pause_after(life: Life) -> Duration {
    Duration::from_millis(life.not_after_ms.saturating_sub(life.issued_at_ms) / 10)
}

/// Renews the certificate again and again.
pub(crate) struct Renewal {
    pub(crate) clock: Clock,
    pub(crate) disk: Disk,
    pub(crate) state_dir: PathBuf,
    pub(crate) identity: Identity,
    pub(crate) key: DeviceKey,
    pub(crate) certificate: Arc<DeviceCertificate>,
}

#[derive(Deserialize)]
struct Answer {
    certificate: Certificate,
    mqtt: MqttAccess,
}

impl Renewal {
    /// Runs until `shutdown`.
    pub(crate) async fn run(mut self, shutdown: CancellationToken) {
        let jitter = random();
        // By the monotonic clock: the time of day may be corrected by months meanwhile.
        let mut not_before = Instant::now();
        let mut known_since = Instant::now();
        loop {
            let now_ms = now_ms(
                Duration::from_millis(self.clock.now().ms),
                self.identity.certificate,
                known_since.elapsed(),
            );
            let until_due = Duration::from_millis(due_at_ms(self.identity.certificate, jitter).saturating_sub(now_ms));
            let pause = until_due
                .max(not_before.saturating_duration_since(Instant::now()))
                .min(LOOK_EVERY);
            if !pause.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(pause) => continue,
                    () = shutdown.cancelled() => return,
                }
            }
            let renewed = tokio::task::spawn_blocking(move || {
                let done = self.renew();
                (self, done)
            });
            let (this, done) = tokio::select! {
                renewed = renewed => match renewed {
                    Ok(renewed) => renewed,
                    Err(error) => return tracing::error!(%error, "the renewal of the certificate broke"),
                },
                () = shutdown.cancelled() => return,
            };
            self = this;
            match done {
                Ok(()) => {
                    known_since = Instant::now();
                    // A clock that is ahead finds the new one due, too: it must not ask without a pause.
                    not_before = known_since + pause_after(self.identity.certificate);
                    tracing::info!("the certificate is renewed");
                }
                Err(error) => {
                    let retry = retry_after(self.identity.certificate, now_ms, Failure::of(&error), random());
                    not_before = Instant::now() + retry;
                    tracing::warn!(
                        error = format!("{error:#}"),
                        retry_s = retry.as_secs(),
                        "the certificate cannot be renewed"
                    );
                }
            }
        }
    }

    /// Asks once, and puts the answer to use.
    fn renew(&mut self) -> anyhow::Result<()> {
        let http = tls::http(
            &self.identity.authority()?,
            Some(Arc::clone(&self.certificate)),
            &self.clock,
        )?;
        let url = format!("{}/api/v1/renew", self.identity.server);
        let answer: Answer = enroll::post(&http, &url, &json!({"request": self.key.request()?}))?;
        // The certificate first: with the old identity it is only renewed too early.
        self.certificate
            .replace(&self.disk, &self.state_dir, &self.key, &answer.certificate.chain)?;
        // It is in use, whatever the rest of the answer is good for.
        self.identity.certificate = answer.certificate.life;
        let mut identity = self.identity.clone();
        identity.mqtt = Broker::at(answer.mqtt, &identity.server)?;
        identity.write(&self.disk, &self.state_dir)?;
        self.identity = identity;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_MS: u64 = 86_400_000;
    const LIFE: Life = Life {
        issued_at_ms: 100 * DAY_MS,
        not_after_ms: 130 * DAY_MS,
    };

    #[test]
    fn a_certificate_is_due_at_two_thirds_of_its_life_or_a_little_earlier() {
        assert_eq!(due_at_ms(LIFE, 0.0), 120 * DAY_MS);
        assert_eq!(due_at_ms(LIFE, 1.0), 118 * DAY_MS + DAY_MS / 2);
        let none = Life {
            issued_at_ms: 5,
            not_after_ms: 4,
        };
        assert_eq!(due_at_ms(none, 0.5), 5);
    }

    #[test]
    fn a_clock_that_says_1970_does_not_keep_a_certificate_from_being_renewed() {
        let day = Duration::from_millis(DAY_MS);
        assert_eq!(now_ms(Duration::ZERO, LIFE, day * 20), due_at_ms(LIFE, 0.0));
        assert_eq!(now_ms(day * 125, LIFE, day), 125 * DAY_MS);
    }

    #[test]
    fn whoever_fails_asks_more_often_towards_the_end_and_never_stops() {
        let retry = |now_ms| retry_after(LIFE, now_ms, Failure::Other, 1.0);
        assert_eq!(retry(120 * DAY_MS), RETRY_MAX);
        assert_eq!(retry(130 * DAY_MS - 1_200_000), Duration::from_secs(120));
        assert_eq!(retry(130 * DAY_MS), RETRY_MIN);
        // It is over: the longer, the more rarely.
        assert_eq!(retry(130 * DAY_MS + 6_000_000), Duration::from_secs(600));
        assert_eq!(retry(190 * DAY_MS), RETRY_MAX);
    }

    #[test]
    fn a_refusal_is_not_answered_within_minutes() {
        for now_ms in [120 * DAY_MS, 130 * DAY_MS, 131 * DAY_MS] {
            assert!(retry_after(LIFE, now_ms, Failure::Refused, 0.0) >= REFUSED_MIN / 2);
        }
    }

    #[test]
    fn a_certificate_of_seconds_is_asked_for_within_its_life() {
        let short = Life {
            issued_at_ms: 0,
            not_after_ms: 15_000,
        };
        for failure in [Failure::Refused, Failure::Other] {
            assert_eq!(retry_after(short, 12_000, failure, 1.0), Duration::from_millis(1500));
        }
    }

    #[test]
    fn a_fleet_does_not_come_back_at_once() {
        let retry = |jitter| retry_after(LIFE, 130 * DAY_MS, Failure::Other, jitter);
        assert_eq!((retry(0.0), retry(0.5)), (RETRY_MIN / 2, RETRY_MIN * 3 / 4));
    }
}
