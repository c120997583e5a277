//! What arrives: late, after an absence, large, and beside a client that does not read.

use crate::{client, client::Client, config, connect, start, start_default};
use skerry_broker::Limits;

#[tokio::test]
async fn retained_message_reaches_a_late_subscriber() {
    let broker = start_default().await;
    connect(&broker, "control")
        .await
        .retain("d/a/desired", "generation 7")
        .await
        .unwrap();
    let mut device = connect(&broker, "a").await;
    assert!(device.subscribe("d/a/desired").await);
    let message = device.message().await;
    assert_eq!((&message.payload[..], message.retain), (&b"generation 7"[..], true));
}

#[tokio::test]
async fn qos1_message_waits_for_an_offline_session() {
    let broker = start_default().await;
    let mut options = client::options(&broker, "a");
    options.set_clean_session(false);
    let mut device = Client::connect(options.clone()).await.unwrap();
    assert!(device.subscribe("d/a/desired").await);
    device.disconnect().await;

    let mut control = connect(&broker, "control").await;
    for n in 0..20 {
        control.publish("d/a/desired", format!("{n}")).await.unwrap();
    }
    let mut device = Client::connect(options).await.unwrap();
    assert!(device.session_present);
    for n in 0..20 {
        assert_eq!(device.text().await, format!("{n}"));
    }
}

#[tokio::test]
async fn payload_of_192_kib_passes() {
    let broker = start_default().await;
    let mut device = connect(&broker, "a").await;
    assert!(device.subscribe("d/a/chunk").await);
    let payload: Vec<u8> = (0..192 * 1024).map(|n: u32| n.to_le_bytes()[1]).collect();
    connect(&broker, "control")
        .await
        .publish("d/a/chunk", payload.clone())
        .await
        .unwrap();
    assert_eq!(device.message().await.payload, payload);
}

#[tokio::test]
async fn packet_above_the_limit_closes_only_its_sender() {
    let broker = start_default().await;
    let mut device = connect(&broker, "a").await;
    let mut sender = connect(&broker, "b").await;
    assert!(device.subscribe("d/a/desired").await);
    sender.publish("d/b/reported", vec![0; 256 * 1024]).await.unwrap_err();
    connect(&broker, "control")
        .await
        .publish("d/a/desired", "still here")
        .await
        .unwrap();
    assert_eq!(device.text().await, "still here");
}

#[tokio::test]
async fn stalled_subscriber_neither_stops_others_nor_piles_up() {
    /// 25 MiB: well over what the two socket buffers and the delivery channel of the stalled client take.
    const MESSAGES: usize = 400;
    let limits = Limits {
        client_channel_capacity: 8,
        ..Limits::default()
    };
    let broker = start(config(limits)).await;
    let mut stalled = connect(&broker, "a").await;
    let mut control = connect(&broker, "control").await;
    assert!(stalled.subscribe("d/a/chunk").await && control.subscribe("d/a/chunk").await);

    // The publisher is the healthy subscriber: it reads each message back before it sends the next, and nobody
    // polls the stalled one meanwhile.
    for _ in 0..MESSAGES {
        control.publish_qos0("d/a/chunk", vec![0; 64 * 1024]).await.unwrap();
        control.message().await;
    }

    control.publish("d/a/chunk", "end").await.unwrap();
    let mut received = 0;
    while stalled.message().await.payload != "end" {
        received += 1;
    }
    assert!(
        received < MESSAGES,
        "the broker kept all {MESSAGES} messages for a client that did not read"
    );
}
