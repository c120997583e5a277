//! What the service manager is told: that the agent is ready, and, again and again, that it still lives (sd_notify(3)).
//!
//! Invariant: the watchdog is fed only while both loops turn: the control loop, which counts its turns, and the local API, which
//! must answer a request over its own socket. Nobody feeds it for a process that merely exists. Without a service manager all
//! of this does nothing.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::sync::CancellationToken;

/// The answer of a healthy API to the shortest question.
const ALIVE: &[u8] = b"HTTP/1.1 200";

/// How often the control loop has turned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The control loop turns.
    pub(crate) fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Says that models serve and the API listens.
pub(crate) fn ready() {
    say(&[NotifyState::Ready]);
}

/// Says that the agent ends on purpose.
pub(crate) fn stopping() {
    say(&[NotifyState::Stopping]);
}

/// Feeds the service manager's watchdog until `shutdown`, if there is one.
pub(crate) async fn run(pulse: Pulse, api: SocketAddr, shutdown: CancellationToken) {
    if let Some(patience) = sd_notify::watchdog_enabled() {
        let feed = || say(&[NotifyState::Watchdog]);
        tokio::select! {
            () = watch(pulse, reachable(api), patience, feed) => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Looks four times within `patience`, so that one slow look is no reason to be killed.
async fn watch(pulse: Pulse, api: SocketAddr, patience: Duration, mut feed: impl FnMut()) {
    let between = patience / 4;
    let mut looks = tokio::time::interval(between);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first look is at once, before the control loop has had its time.
    let mut seen = pulse.count();
    looks.tick().await;
    loop {
        looks.tick().await;
        let now = pulse.count();
        if now == seen {
            tracing::error!("the control loop stands still, the watchdog is not fed");
        } else if !answers(api, between).await {
            tracing::error!("the local API does not answer, the watchdog is not fed");
        } else {
            feed();
        }
        seen = now;
    }
}

/// True if the API answers within `patience`.
async fn answers(api: SocketAddr, patience: Duration) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(api).await?;
        stream
            .write_all(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .await?;
        let mut answer = [0; ALIVE.len()];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer == ALIVE)
    };
    matches!(tokio::time::timeout(patience, asked).await, Ok(Ok(true)))
}

/// Where this machine reaches what listens on `address`.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot reach the service manager");
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::{net::TcpListener, sync::mpsc};

    use super::*;

    const SHORT: Duration = Duration::from_millis(40);

    /// An API that answers every request, or takes them and says nothing.
    async fn api(answer: Option<&'static [u8]>) -> (SocketAddr, mpsc::UnboundedReceiver<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (asked_in, asked) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = asked_in.send(());
                match answer {
                    Some(answer) => {
                        let mut request = [0; 16];
                        let _ = stream.read(&mut request).await;
                        let _ = stream.write_all(answer).await;
                    }
                    None => held.push(stream),
                }
            }
        });
        (address, asked)
    }

    fn beating() -> Pulse {
        let pulse = Pulse::default();
        let beats = pulse.clone();
        tokio::spawn(async move {
            loop {
                beats.beat();
                tokio::task::yield_now().await;
            }
        });
        pulse
    }

    #[tokio::test]
    async fn it_is_fed_again_and_again_while_both_loops_turn() {
        let (address, _asked) = api(Some(b"HTTP/1.1 200 OK\r\n\r\n")).await;
        let (fed_in, mut fed) = mpsc::unbounded_channel();
        tokio::spawn(watch(beating(), address, SHORT, move || fed_in.send(()).unwrap()));
        for _ in 0..3 {
            fed.recv().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_silent_or_failing_api_is_not_fed_for() {
        for answer in [None, Some(&b"HTTP/1.1 503 Service Unavailable\r\n\r\n"[..])] {
            let (address, mut asked) = api(answer).await;
            let watched = watch(beating(), address, SHORT, || panic!("fed for {answer:?}"));
            let asked_often = async {
                // What it learnt from the first two has been decided when it asks a third time.
                for _ in 0..3 {
                    asked.recv().await.unwrap();
                }
            };
            tokio::select! {
                () = watched => {}
                () = asked_often => {}
            }
        }
    }

    #[tokio::test]
    async fn a_control_loop_that_stands_still_is_not_fed_for() {
        let (address, _asked) = api(Some(b"HTTP/1.1 200 OK\r\n\r\n")).await;
        let watched = watch(Pulse::default(), address, SHORT, || {
            panic!("fed for a loop that stands still")
        });
        // Another one, which begins later and turns, shows that there was time to be wrong.
        let (fed_in, mut fed) = mpsc::unbounded_channel();
        let other = watch(beating(), address, SHORT, move || fed_in.send(()).unwrap());
        let fed_often = async {
            for _ in 0..3 {
                fed.recv().await.unwrap();
            }
        };
        tokio::select! {
            () = watched => {}
            () = other => {}
            () = fed_often => {}
        }
    }

    #[test]
    fn an_api_on_all_addresses_is_asked_on_loopback() {
        assert_eq!(
            reachable("0.0.0.0:8090".parse().unwrap()),
            "127.0.0.1:8090".parse().unwrap()
        );
        assert_eq!(reachable("[::]:8090".parse().unwrap()), "[::1]:8090".parse().unwrap());
        assert_eq!(
            reachable("192.0.2.7:8090".parse().unwrap()),
            "192.0.2.7:8090".parse().unwrap()
        );
    }
}
