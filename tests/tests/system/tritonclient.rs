//! Against the clients that others have: `tritonclient[http]` and `tritonclient[grpc]`, as they come. `.ci/run` installs them.

use std::process::Command;

use skerry_system_tests::{
    Fleet,
    fixtures::{IdentityTensor, MODEL},
};

use crate::PROGRAM;

const TENSORS: [IdentityTensor; 6] = [
    tensor("FP32", 1),
    tensor("INT64", 7),
    tensor("BOOL", 9),
    tensor("FP16", 10),
    tensor("BYTES", 8),
    tensor("UINT8", 2),
];

const fn tensor(datatype: &'static str, element_type: u64) -> IdentityTensor {
    IdentityTensor {
        datatype,
        element_type,
        length: 3,
    }
}

#[test]
fn interop_tritonclient_asks_over_http_and_grpc_and_gets_what_it_sent() {
    let fleet = Fleet::start(PROGRAM).unwrap();
    let devices = fleet.devices(&["dev-1"]).unwrap();
    fleet.release(1).unwrap();
    fleet.deploy(1).unwrap();
    fleet.deploy_identity("types", &TENSORS).unwrap();
    // Where the feature is on, its absence is a mistake and no reason to skip.
    let python = std::env::var("SKERRY_TEST_TRITONCLIENT").expect("a Python with tritonclient[http,grpc]");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/system/ask_with_tritonclient.py");
    let host = devices[0].url().strip_prefix("http://").unwrap();
    let output = Command::new(python).args([script, host, MODEL]).output().unwrap();
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{}\n{}", texts[0], texts[1]);
    assert_eq!(texts[0].lines().last(), Some("http and grpc: all as it was sent"));
}
