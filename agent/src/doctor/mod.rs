//! `skerry-agent doctor`: what keeps this device from working, in words, with what to do about it.
//!
//! It looks and changes nothing, and needs no running agent. `facts` looks at the world, `checks` judges what was seen; this file
//! prints.

mod checks;
mod facts;

use std::path::Path;

use serde_json::{Value, json};

use checks::{Finding, Level};

/// The findings about a device.
pub(crate) struct Report(Vec<Finding>);

/// Examines this device.
pub(crate) fn examine(state_dir: &Path) -> Report {
    Report(checks::check(&facts::collect(state_dir)))
}

impl Report {
    /// True if nothing is broken.
    pub(crate) fn is_healthy(&self) -> bool {
        self.0.iter().all(|finding| finding.level != Level::Fail)
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        json!({"healthy": self.is_healthy(), "findings": self.0})
    }

    /// For people: a line for each finding, the advice below.
    pub(crate) fn table(&self) -> String {
        let mut lines = Vec::new();
        for finding in &self.0 {
            let level = finding.level.as_str();
            lines.push(format!("{level:<5} {:<11} {}", finding.check, finding.found));
            lines.extend(finding.advice.as_ref().map(|advice| format!("{:18}{advice}", "")));
        }
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_advice_below_its_finding() {
        let findings = [
            Finding {
                check: "clock",
                level: Level::Ok,
                found: "is right".to_owned(),
                advice: None,
            },
            Finding {
                check: "broker",
                level: Level::Fail,
                found: "refuses".to_owned(),
                advice: Some("start it".to_owned()),
            },
        ];
        let expected = "ok    clock       is right\nFAIL  broker      refuses\n                  start it";
        assert_eq!(Report(findings.to_vec()).table(), expected);
    }

    #[test]
    fn a_device_that_is_not_enrolled_is_not_healthy() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let report = examine(folder.path());
        assert!(!report.is_healthy());
        let report = report.json();
        let findings = report["findings"].as_array().expect("findings");
        let enrolment = findings.iter().find(|finding| finding["check"] == "enrolment");
        assert_eq!(enrolment.expect("a finding about it")["level"], "fail");
    }
}
