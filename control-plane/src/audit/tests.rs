#![allow(clippy::unwrap_used)]

use std::{path::PathBuf, sync::Arc};

use futures_util::TryStreamExt;
use rusqlite::Connection;
use skerry_shared::dsse::{Envelope, Signers};

use super::{
    chain::{Break, Checkpoint, Verified},
    export::{Against, ExportError, verify},
    *,
};
use crate::{
    app::CORE_MIGRATIONS,
    cli::keys,
    db::{Db, Durability},
    signing::online::{OnlineKeys, SigningFolder},
};

/// A log of ten entries in a file, with the online keys and the file of its checkpoints.
struct Log {
    folder: tempfile::TempDir,
    db: Db,
    keys: Arc<OnlineKeys>,
}

impl Log {
    async fn new() -> Log {
        let folder = tempfile::tempdir().unwrap();
        keys::init(&folder.path().join("keys")).unwrap();
        let keys = Arc::new(OnlineKeys::read(SigningFolder::plain(folder.path().join("keys/online")), None).unwrap());
        let db = Db::open(&folder.path().join("core.db"), Durability::Full, CORE_MIGRATIONS).unwrap();
        let log = Log { folder, db, keys };
        log.add(10).await;
        log
    }

    async fn add(&self, count: u64) {
        let write = self.db.write(move |conn| {
            (0..count).try_for_each(|n| {
                let fact = Fact::new("rollout.pause", format!("rollout/{n}")).with("before", "running");
                append(conn, &By::new("ada", 1000 + n), fact)
            })
        });
        write.await.unwrap();
    }

    fn checkpoints(&self) -> PathBuf {
        self.folder.path().join("checkpoints")
    }

    async fn checkpoint(&self) -> Checkpoint {
        let envelope = checkpoint::make(&self.db, &self.keys, &self.checkpoints(), 7)
            .await
            .unwrap();
        checkpoint::open(&envelope, &[self.signers()]).unwrap()
    }

    fn signers(&self) -> Signers {
        checkpoint::signers(&self.keys.current().root().time_keys().unwrap())
    }

    async fn export(&self) -> Vec<u8> {
        let pages: Vec<bytes::Bytes> = export::stream(&self.db).await.unwrap().try_collect().await.unwrap();
        pages.concat()
    }

    /// What an intruder does who owns the machine: changes the file, past the triggers.
    fn tamper(&self, sql: &str) {
        let conn = Connection::open(self.folder.path().join("core.db")).unwrap();
        let triggers = "SELECT name FROM sqlite_schema WHERE type = 'trigger' AND name LIKE 'audit_%'";
        let mut statement = conn.prepare(triggers).unwrap();
        let names = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        for name in names.map(Result::unwrap).collect::<Vec<_>>() {
            conn.execute_batch(&format!("DROP TRIGGER {name}")).unwrap();
        }
        conn.execute_batch(sql).unwrap();
    }

    async fn verify(&self, kept: Vec<Checkpoint>) -> Result<Verified, ExportError> {
        let signers = vec![self.signers()];
        verify(self.export().await.as_slice(), Against { kept, signers })
    }

    async fn broken(&self, kept: Vec<Checkpoint>) -> Break {
        match self.verify(kept).await {
            Err(ExportError::Broken(found)) => found,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_log_that_nobody_touched_is_whole() {
    let log = Log::new().await;
    let kept = log.checkpoint().await;
    log.add(3).await;
    let verified = log.verify(vec![kept]).await.unwrap();
    assert_eq!((verified.size, verified.confirmed_size), (13, 10));
}

#[tokio::test]
async fn the_database_itself_refuses_changes() {
    let log = Log::new().await;
    log.checkpoint().await;
    for sql in [
        "UPDATE audit_entries SET actor = 'eve' WHERE seq = 3",
        "DELETE FROM audit_entries WHERE seq = 10",
        "INSERT OR REPLACE INTO audit_entries SELECT seq, at_ms, 'eve', action, object, details, prev_hash, hash
         FROM audit_entries WHERE seq = 3",
        "INSERT INTO audit_entries SELECT 99, at_ms, actor, action, object, details, prev_hash, hash
         FROM audit_entries WHERE seq = 3",
        "DELETE FROM audit_checkpoints",
        "UPDATE audit_checkpoints SET size = 3",
        "UPDATE audit_log SET origin = 'other'",
    ] {
        let tried = log.db.write(move |conn| Ok::<_, DbError>(conn.execute(sql, [])?)).await;
        assert!(tried.is_err(), "{sql}");
    }
    assert_eq!(log.verify(vec![]).await.unwrap().size, 10);
}

#[tokio::test]
async fn a_flipped_bit_in_any_column_names_its_entry() {
    for column in ["at_ms", "actor", "action", "object", "details", "prev_hash", "hash"] {
        let log = Log::new().await;
        let flipped = match column {
            "at_ms" => "at_ms | 65536".to_owned(),
            "prev_hash" | "hash" => format!("(SELECT {column} FROM audit_entries WHERE seq = 7)"),
            "details" => "replace(details, 'running', 'runninG')".to_owned(),
            text => format!("{text} || 'x'"),
        };
        log.tamper(&format!("UPDATE audit_entries SET {column} = {flipped} WHERE seq = 4"));
        assert_eq!(log.broken(vec![]).await, Break::Changed(4), "{column}");
    }
}

#[tokio::test]
async fn details_that_do_not_parse_are_a_changed_entry_and_no_dead_end() {
    for details in [
        "nonsense",
        r#"{"before":"running","before":"running"}"#,
        r#"{"before": "running"}"#,
    ] {
        let log = Log::new().await;
        log.tamper(&format!("UPDATE audit_entries SET details = '{details}' WHERE seq = 4"));
        assert_eq!(log.broken(vec![]).await, Break::Changed(4), "{details}");
    }
}

#[tokio::test]
async fn a_deleted_entry_is_named() {
    let log = Log::new().await;
    log.tamper("DELETE FROM audit_entries WHERE seq = 6");
    assert_eq!(log.broken(vec![]).await, Break::OutOfPlace { expected: 6, found: 7 });
    let log = Log::new().await;
    log.tamper("DELETE FROM audit_entries WHERE seq = 6; UPDATE audit_entries SET seq = seq - 1 WHERE seq > 6");
    assert_eq!(log.broken(vec![]).await, Break::Changed(6));
}

#[tokio::test]
async fn two_entries_that_changed_places_are_named() {
    let log = Log::new().await;
    log.tamper(
        "UPDATE audit_entries SET seq = 100 WHERE seq = 3; UPDATE audit_entries SET seq = 3 WHERE seq = 8;
         UPDATE audit_entries SET seq = 8 WHERE seq = 100",
    );
    assert_eq!(log.broken(vec![]).await, Break::Changed(3));
}

#[tokio::test]
async fn a_truncated_log_is_found_by_the_checkpoint_that_was_kept() {
    let log = Log::new().await;
    let kept = log.checkpoint().await;
    log.tamper("DELETE FROM audit_entries WHERE seq > 8; DELETE FROM audit_checkpoints");
    assert_eq!(log.verify(vec![]).await.unwrap().size, 8);
    let found = log.broken(vec![kept.clone()]).await;
    assert_eq!(
        found,
        Break::Truncated {
            first_missing: 9,
            size: 10
        }
    );
    // The gap filled with something else does not help.
    log.add(4).await;
    assert_eq!(log.broken(vec![kept]).await, Break::Rewritten { good: 0, size: 10 });
}

#[tokio::test]
async fn a_log_in_place_of_another_is_found_by_the_checkpoint_that_was_kept() {
    let kept = Log::new().await.checkpoint().await;
    assert!(matches!(Log::new().await.broken(vec![kept]).await, Break::OtherLog(_)));
}

#[tokio::test]
async fn an_export_that_broke_off_is_not_taken_for_the_whole() {
    let log = Log::new().await;
    let export = log.export().await;
    let lines: Vec<&[u8]> = export.split_inclusive(|byte| *byte == b'\n').collect();
    let check = |bytes: &[u8]| verify(bytes, Against::default()).unwrap_err();
    let error = check(&lines[..lines.len() - 2].concat());
    assert_eq!(error.seq(), Some(9), "{error}");
    assert!(matches!(check(&export[..export.len() - 20]), ExportError::Line(11)));
    assert!(matches!(check(b""), ExportError::Line(1)));
}

#[tokio::test]
async fn a_checkpoint_is_signed_once_for_each_length_and_lies_in_a_file_too() {
    let log = Log::new().await;
    let first = log.checkpoint().await;
    assert_eq!(log.checkpoint().await, first);
    log.add(1).await;
    let second = log.checkpoint().await;
    assert_eq!((first.size, second.size), (10, 11));
    let file = std::fs::read(log.checkpoints()).unwrap();
    let read = |line: &[u8]| checkpoint::open(&Envelope::from_json(line).unwrap(), &[log.signers()]).unwrap();
    let lines: Vec<Checkpoint> = file
        .split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(read)
        .collect();
    assert_eq!(lines, [first, second]);
}

#[tokio::test]
async fn a_checkpoint_of_another_key_is_refused() {
    let (log, other) = (Log::new().await, Log::new().await);
    log.checkpoint().await;
    let against = Against {
        kept: vec![],
        signers: vec![other.signers()],
    };
    let refused = verify(log.export().await.as_slice(), against);
    assert!(
        matches!(refused, Err(ExportError::Checkpoint { line: 2, .. })),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_change_that_fails_leaves_no_entry() {
    let log = Log::new().await;
    let failing = log.db.write(|conn| {
        append(conn, &By::new("eve", 1), Fact::new("x.y", "z"))?;
        Err::<(), _>(DbError::Corrupt("no".to_owned()))
    });
    failing.await.unwrap_err();
    log.add(1).await;
    assert_eq!(log.verify(vec![]).await.unwrap().size, 11);
}

#[tokio::test]
async fn entries_are_found_by_actor_action_and_object() {
    let log = Log::new().await;
    let write = log.db.write(|conn| {
        append(conn, &By::new("eve\nada", 1), Fact::new("model.tag", "model/m/2"))?;
        append(conn, &By::new("eve", 1), Fact::new("model.tag", "model/mm"))
    });
    write.await.unwrap();
    let seqs = async |filter: Filter| -> Vec<u64> {
        let found = list(&log.db, Filter { limit: 100, ..filter }).await.unwrap();
        found.iter().map(|entry| entry.seq).collect()
    };
    let some = |text: &str| Some(text.to_owned());
    let (actor, action, object) = (some("eve ada"), some("model."), some("model/m"));
    assert_eq!(
        seqs(Filter {
            actor,
            ..Filter::default()
        })
        .await,
        [11]
    );
    assert_eq!(
        seqs(Filter {
            action,
            ..Filter::default()
        })
        .await,
        [12, 11]
    );
    assert_eq!(
        seqs(Filter {
            object,
            ..Filter::default()
        })
        .await,
        [11]
    );
    let page = Filter {
        before: Some(3),
        ..Filter::default()
    };
    assert_eq!(seqs(page).await, [2, 1]);
}
