//! Who gets in, and what it may touch.

use crate::{client, client::Client, connect, start_default};
use rumqttc::{ConnectReturnCode, ConnectionError, LastWill, MqttOptions, QoS};

async fn check_refused(options: MqttOptions, expected: ConnectReturnCode) {
    match Client::connect(options).await {
        Err(ConnectionError::ConnectionRefused(code)) => assert_eq!(code, expected),
        Err(other) => panic!("expected a refusal, got {other}"),
        Ok(_) => panic!("the client was let in"),
    }
}

#[tokio::test]
async fn wrong_password_is_refused() {
    let broker = start_default().await;
    let mut options = client::options(&broker, "a");
    options.set_credentials("a", "password-b");
    check_refused(options, ConnectReturnCode::NotAuthorized).await;
}

#[tokio::test]
async fn missing_password_is_refused() {
    let broker = start_default().await;
    let address = broker.local_addr();
    let options = MqttOptions::new("a", address.ip().to_string(), address.port());
    check_refused(options, ConnectReturnCode::NotAuthorized).await;
}

#[tokio::test]
async fn client_id_of_another_is_refused() {
    let broker = start_default().await;
    let mut options = client::options(&broker, "a");
    options.set_client_id("b".into());
    check_refused(options, ConnectReturnCode::NotAuthorized).await;
}

#[tokio::test]
async fn client_learns_that_the_hook_could_not_answer() {
    let broker = start_default().await;
    check_refused(
        client::options(&broker, "unlucky"),
        ConnectReturnCode::ServiceUnavailable,
    )
    .await;
}

#[tokio::test]
async fn device_subscribes_only_its_own_topics() {
    let broker = start_default().await;
    let mut device = connect(&broker, "a").await;
    for filter in [
        "d/b/desired",
        "#",
        "+",
        "d/+/desired",
        "d/a/#",
        "d/a/+",
        "$SYS/#",
        "$share/g/#",
        "$share/g/d/b/desired",
        "$share/g/d/a/desired",
    ] {
        assert!(!device.subscribe(filter).await, "{filter} was granted");
    }
    assert!(device.subscribe("d/a/desired").await);
}

#[tokio::test]
async fn wildcards_and_share_groups_are_the_hooks_decision() {
    let broker = start_default().await;
    let mut control = connect(&broker, "control").await;
    assert!(control.subscribe("$share/ingest/d/+/reported").await);
    let mut device = connect(&broker, "a").await;
    device.publish("d/a/reported", "ok").await.unwrap();
    assert_eq!(control.text().await, "ok");
}

#[tokio::test]
async fn device_publishes_only_to_its_own_topics() {
    let broker = start_default().await;
    let mut control = connect(&broker, "control").await;
    assert!(control.subscribe("#").await);
    let mut device = connect(&broker, "a").await;
    // MQTT 3.1.1 has no way to say no to a PUBLISH: it is acknowledged and goes nowhere.
    device.publish("d/b/reported", "foreign").await.unwrap();
    device.publish("d/a/desired", "downward").await.unwrap();
    device.publish("d/a/reported", "own").await.unwrap();
    assert_eq!(control.text().await, "own");
}

#[tokio::test]
async fn last_will_on_a_foreign_topic_is_refused() {
    let broker = start_default().await;
    let mut options = client::options(&broker, "a");
    options.set_last_will(LastWill::new("d/b/status", "gone", QoS::AtLeastOnce, true));
    check_refused(options, ConnectReturnCode::NotAuthorized).await;
}

#[tokio::test]
async fn last_will_is_sent_when_the_connection_is_lost() {
    let broker = start_default().await;
    let mut control = connect(&broker, "control").await;
    assert!(control.subscribe("d/+/status").await);
    let mut options = client::options(&broker, "a");
    options.set_last_will(LastWill::new("d/a/status", "gone", QoS::AtLeastOnce, true));
    let device = Client::connect(options).await.unwrap();
    drop(device);
    assert_eq!(control.text().await, "gone");
}
