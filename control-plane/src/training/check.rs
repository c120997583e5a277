//! What a submitted run may say. Pure: whether its content was uploaded is asked elsewhere.

use std::{collections::BTreeSet, time::Duration};

use skerry_shared::digest::{Digest, Hasher};

use super::run::{InputFile, NewRun};

/// MLflow's limits of a parameter.
const PARAM_KEY_BYTES: usize = 250;
const PARAM_VALUE_BYTES: usize = 6000;
/// Far below what an argument list may hold.
const PARAMS: usize = 200;
/// A larger data set is one archive, not more files.
const INPUTS: usize = 1000;
/// What file systems take.
const FILE_NAME_BYTES: usize = 255;
const EXPERIMENT_CHARS: usize = 128;
/// 30 days: a script that hangs must not hold the queue for ever.
const TIMEOUT_MAX: Duration = Duration::from_secs(30 * 86_400);

/// Why a run was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A name that could be a path or hides in a listing.
    #[error(
        "`{0}` is no plain file name: 1 to 255 bytes without `/`, `\\` and control characters, neither `.` nor `..`"
    )]
    FileName(String),
    /// Two inputs with one name.
    #[error("two inputs are called `{0}`")]
    SameName(String),
    /// A key that is no command-line option.
    #[error("`{0}` is no parameter key: 1 to 250 of A-Z, a-z, 0-9, `-` and `_`, not beginning with `-`")]
    ParamKey(String),
    /// A value that no process can get.
    #[error("the value of parameter `{0}` is longer than 6000 bytes or has a NUL in it")]
    ParamValue(String),
    /// Too many parameters or inputs.
    #[error("a run has at most {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// A name that nobody can read.
    #[error("an experiment's name has 1 to 128 characters without control characters")]
    Experiment,
    /// No time at all, or for ever.
    #[error("a run's time limit is 1 second to 30 days")]
    Timeout,
}

/// Checks everything that needs no look at a store.
pub(super) fn check(new: &NewRun) -> Result<(), Refusal> {
    let experiment = &new.experiment;
    if !(1..=EXPERIMENT_CHARS).contains(&experiment.chars().count()) || experiment.chars().any(char::is_control) {
        return Err(Refusal::Experiment);
    }
    if !(Duration::from_secs(1)..=TIMEOUT_MAX).contains(&new.timeout) {
        return Err(Refusal::Timeout);
    }
    for (what, count, max) in [
        ("parameters", new.params.len(), PARAMS),
        ("inputs", new.inputs.len(), INPUTS),
    ] {
        if count > max {
            return Err(Refusal::TooMany { what, max });
        }
    }
    for (key, value) in &new.params {
        if !is_param_key(key) {
            return Err(Refusal::ParamKey(shorten(key)));
        }
        if value.len() > PARAM_VALUE_BYTES || value.contains('\0') {
            return Err(Refusal::ParamValue(shorten(key)));
        }
    }
    let mut names = BTreeSet::new();
    for input in &new.inputs {
        if !is_file_name(&input.name) {
            return Err(Refusal::FileName(shorten(&input.name)));
        }
        if !names.insert(&input.name) {
            return Err(Refusal::SameName(shorten(&input.name)));
        }
    }
    if !is_file_name(&new.script.name) {
        return Err(Refusal::FileName(shorten(&new.script.name)));
    }
    Ok(())
}

fn is_param_key(key: &str) -> bool {
    (1..=PARAM_KEY_BYTES).contains(&key.len())
        && !key.starts_with('-')
        && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

/// No `\`, because `sha256sum` would escape it and the data set's digest could not be made by hand.
pub(super) fn is_file_name(name: &str) -> bool {
    (1..=FILE_NAME_BYTES).contains(&name.len())
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c.is_control() || c == '/' || c == '\\')
}

/// A hostile name may be long: keeps enough to recognise it.
fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

/// The digest of a data set: see [`super::run::Run::dataset`].
pub(crate) fn dataset_digest(inputs: &[InputFile]) -> Option<Digest> {
    let mut sorted: Vec<&InputFile> = inputs.iter().collect();
    sorted.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    let mut hasher = Hasher::new();
    for input in &sorted {
        hasher.update(format!("{}  {}\n", input.digest.to_hex(), input.name).as_bytes());
    }
    (!sorted.is_empty()).then(|| hasher.finish())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn file(name: &str) -> InputFile {
        let digest = Digest::of(name.as_bytes());
        InputFile {
            name: name.to_owned(),
            digest,
        }
    }

    fn good() -> NewRun {
        NewRun {
            experiment: "default".to_owned(),
            script: file("train.py"),
            inputs: vec![file("a.csv"), file(".hidden")],
            params: [("learning-rate".to_owned(), "-1".to_owned())].into(),
            timeout: Duration::from_secs(60),
            register_as: None,
        }
    }

    #[test]
    fn a_plain_run_is_accepted() {
        check(&good()).unwrap();
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "/etc/passwd",
            "a\0b",
            "a\nb",
            "a\\b",
            &"a".repeat(256),
        ] {
            let input = NewRun {
                inputs: vec![file(name)],
                ..good()
            };
            assert!(matches!(check(&input), Err(Refusal::FileName(_))), "{name:?}");
            let script = NewRun {
                script: file(name),
                ..good()
            };
            assert!(matches!(check(&script), Err(Refusal::FileName(_))), "{name:?}");
        }
    }

    #[test]
    fn parameters_that_are_no_options_are_refused() {
        for key in ["", "-x", "--x", "a b", "a=b", "a\0", "ä", "a.b"] {
            let params = [(key.to_owned(), String::new())].into();
            let run = NewRun { params, ..good() };
            assert!(matches!(check(&run), Err(Refusal::ParamKey(_))), "{key:?}");
        }
        for value in ["a\0b", &"a".repeat(6001)] {
            let params = [("k".to_owned(), value.to_owned())].into();
            let run = NewRun { params, ..good() };
            assert_eq!(check(&run), Err(Refusal::ParamValue("k".to_owned())));
        }
    }

    #[test]
    fn two_inputs_of_one_name_are_refused() {
        let inputs = vec![file("a"), file("b"), file("a")];
        let refused = check(&NewRun { inputs, ..good() });
        assert_eq!(refused, Err(Refusal::SameName("a".to_owned())));
    }

    #[test]
    fn a_run_needs_some_time_and_an_experiment() {
        for timeout in [Duration::ZERO, TIMEOUT_MAX * 2] {
            assert_eq!(check(&NewRun { timeout, ..good() }), Err(Refusal::Timeout));
        }
        let experiment = String::new();
        assert_eq!(check(&NewRun { experiment, ..good() }), Err(Refusal::Experiment));
    }

    #[test]
    fn a_data_set_has_the_digest_of_what_sha256sum_prints() {
        let inputs = [("b", "world\n"), ("a", "hello\n")].map(|(name, content)| InputFile {
            name: name.to_owned(),
            digest: Digest::of(content.as_bytes()),
        });
        // printf 'hello\n' > a; printf 'world\n' > b; sha256sum * | sha256sum
        let expected = "sha256:7a98675d6c0a04d2652ec158af69e6a26a2eb3e463b509ecea2172ffd546afa9";
        assert_eq!(dataset_digest(&inputs).unwrap().to_string(), expected);
        assert_eq!(dataset_digest(&[]), None);
    }
}
