//! One SQLite file: a writer thread with group commit, and a small pool of readers.
//!
//! Not an ORM and not a home for SQL: that is each domain's `store.rs`. Invariant: [`Db::write`] answers after COMMIT, so what
//! it acknowledged survives a crash of the process, and with [`Durability::Full`] of the machine.

use std::{
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Works that may wait for the writer. More is back-pressure on whoever writes.
const QUEUE: usize = 1024;
/// Works in one transaction: bounds how long the first waits for its COMMIT.
const GROUP_MAX: usize = 256;
/// Readers open at once.
const READERS: usize = 4;

/// When a commit is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Before it is acknowledged: survives a power cut.
    Full,
    /// Soon after: a power cut may take the last moments, a crash of the process takes nothing.
    Normal,
}

/// A step of the schema. Forward only; a number is never reused.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Its place, from 1.
    pub number: u32,
    /// What it does.
    pub sql: &'static str,
}

/// Why a database call failed.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The file cannot be opened.
    #[error("cannot open database {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A migration failed; the schema is as before.
    #[error("cannot migrate database {path} to schema {number}")]
    Migrate {
        /// The file.
        path: PathBuf,
        /// The migration.
        number: u32,
        /// Why.
        source: rusqlite::Error,
    },
    /// The file was written by a newer version of this program.
    #[error("database {path} has schema {found}, this program knows {known}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest known schema.
        known: u32,
    },
    /// A statement failed.
    #[error("database statement failed")]
    Sqlite(#[from] rusqlite::Error),
    /// A stored value does not parse: the file was changed by somebody else.
    #[error("the database holds a value that does not parse: {0}")]
    Corrupt(String),
    /// A transaction could not begin or commit: nothing of it is stored.
    #[error("database transaction failed")]
    Transaction(#[source] Arc<rusqlite::Error>),
    /// The work panicked: a bug. What it wrote is undone.
    #[error("the work on the database panicked")]
    Panicked,
    /// The writer has ended.
    #[error("the database is closed")]
    Closed,
}

/// What the writer does for one caller: the work, in a transaction if one could begin, and what to answer once its fate is
/// known.
type Work = Box<dyn FnOnce(Result<&Connection, DbError>) -> Finish + Send>;
type Finish = Box<dyn FnOnce(Result<(), DbError>) + Send>;

/// A handle to one database; cheap to clone.
#[derive(Clone)]
pub struct Db {
    writer: mpsc::Sender<Work>,
    readers: Arc<Readers>,
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

impl Db {
    /// Opens or makes the file and brings its schema up to date.
    ///
    /// # Errors
    /// [`DbError::Open`], [`DbError::Newer`] or [`DbError::Migrate`].
    pub fn open(path: &Path, durability: Durability, migrations: &[Migration]) -> Result<Db, DbError> {
        let open = |source| DbError::Open {
            path: path.to_owned(),
            source,
        };
        let mut connection = Connection::open(path).map_err(open)?;
        prepare(&connection, durability).map_err(open)?;
        migrate(&mut connection, path, migrations)?;
        Db::start(connection, path)
    }

    /// Starts the writer of a connection that is ready.
    fn start(connection: Connection, path: &Path) -> Result<Db, DbError> {
        let (writer, queue) = mpsc::channel(QUEUE);
        thread::Builder::new()
            .name("db-writer".to_owned())
            .spawn(move || write_groups(&connection, queue))
            .map_err(|error| DbError::Open {
                path: path.to_owned(),
                source: rusqlite::Error::ToSqlConversionFailure(error.into()),
            })?;
        let readers = Readers {
            path: path.to_owned(),
            idle: Mutex::default(),
            permits: Semaphore::new(READERS),
        };
        Ok(Db {
            writer,
            readers: Arc::new(readers),
        })
    }

    /// Runs `work` on the writer thread and returns after COMMIT. An error undoes this work only.
    ///
    /// # Errors
    /// Whatever `work` returns, and [`DbError`] when the commit fails.
    pub async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Work = Box::new(move |begun| {
            let result = begun
                .map_err(E::from)
                .and_then(|connection| in_savepoint(connection, work));
            Box::new(move |committed: Result<(), DbError>| {
                // The caller may have gone; the commit stands.
                let _ = answer.send(match committed {
                    Ok(()) => result,
                    Err(error) => Err(error.into()),
                });
            })
        });
        self.writer.send(job).await.map_err(|_| DbError::Closed)?;
        answered.await.unwrap_or_else(|_| Err(DbError::Closed.into()))
    }

    /// Runs `work` on a read-only connection.
    ///
    /// # Errors
    /// Whatever `work` returns, and [`DbError`] when no connection can be had.
    pub async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        F: FnOnce(&Connection) -> Result<T, E> + Send + 'static,
        T: Send + 'static,
        E: From<DbError> + Send + 'static,
    {
        let readers = Arc::clone(&self.readers);
        let permit = readers.permits.acquire().await.map_err(|_| DbError::Closed)?;
        let pool = Arc::clone(&readers);
        let done = tokio::task::spawn_blocking(move || {
            let connection = pool.take()?;
            let result = work(&connection);
            pool.put_back(connection);
            result
        });
        let result = done.await.unwrap_or_else(|error| match error.is_panic() {
            true => Err(DbError::Panicked.into()),
            false => Err(DbError::Closed.into()),
        });
        drop(permit);
        result
    }
}

impl Readers {
    fn take(&self) -> Result<Connection, DbError> {
        if let Some(connection) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(connection);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let open = |source| DbError::Open {
            path: self.path.clone(),
            source,
        };
        let connection = Connection::open_with_flags(&self.path, flags).map_err(open)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(open)?;
        Ok(connection)
    }

    fn put_back(&self, connection: Connection) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(connection);
    }
}

/// Another process may hold the file for a moment: a backup, a person with a shell.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

fn prepare(connection: &Connection, durability: Durability) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = match durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "foreign_keys", "ON")
}

fn migrate(connection: &mut Connection, path: &Path, migrations: &[Migration]) -> Result<(), DbError> {
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = migrations.last().map_or(0, |migration| migration.number);
    if found > known {
        return Err(DbError::Newer {
            path: path.to_owned(),
            found,
            known,
        });
    }
    for migration in migrations.iter().filter(|migration| migration.number > found) {
        let number = migration.number;
        let failed = |source| DbError::Migrate {
            path: path.to_owned(),
            number,
            source,
        };
        let transaction = connection.transaction().map_err(failed)?;
        transaction.execute_batch(migration.sql).map_err(failed)?;
        transaction
            .pragma_update(None, "user_version", number)
            .map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}

/// Commits what has queued up together: one fsync for all of them.
fn write_groups(connection: &Connection, mut queue: mpsc::Receiver<Work>) {
    while let Some(first) = queue.blocking_recv() {
        let begun = connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| {
            // Whoever holds the file holds it for all that wait now.
            tracing::error!(%error, "cannot begin a database transaction");
            roll_back(connection);
            Arc::new(error)
        });
        let start = || match &begun {
            Ok(()) => Ok(connection),
            Err(error) => Err(DbError::Transaction(Arc::clone(error))),
        };
        let mut finishes = vec![first(start())];
        while finishes.len() < GROUP_MAX
            && let Ok(next) = queue.try_recv()
        {
            finishes.push(next(start()));
        }
        let committed = match &begun {
            Ok(()) => connection.execute_batch("COMMIT").map_err(|error| {
                tracing::error!(%error, "cannot commit to the database");
                roll_back(connection);
                Arc::new(error)
            }),
            // They have been told.
            Err(_) => Ok(()),
        };
        for finish in finishes {
            finish(committed.clone().map_err(DbError::Transaction));
        }
    }
}

/// After an error: SQLite may have rolled back by itself, or not.
fn roll_back(connection: &Connection) {
    if !connection.is_autocommit() {
        let _ = connection.execute_batch("ROLLBACK");
    }
}

/// A panic of `work` is an error of `work` alone: the others of its group, and all that come later, need the writer.
fn in_savepoint<T, E: From<DbError>>(
    connection: &Connection,
    work: impl FnOnce(&Connection) -> Result<T, E>,
) -> Result<T, E> {
    let batch = |sql| connection.execute_batch(sql).map_err(DbError::from);
    batch("SAVEPOINT work")?;
    // What the work has touched is rolled back or dropped with it.
    let result = panic::catch_unwind(AssertUnwindSafe(|| work(connection))).unwrap_or_else(|_| {
        tracing::error!("a database write panicked, it is undone");
        Err(DbError::Panicked.into())
    });
    if result.is_err() {
        batch("ROLLBACK TO work")?;
    }
    batch("RELEASE work")?;
    result
}

/// Reads a stored JSON column.
pub(crate) fn from_json<T: DeserializeOwned>(text: &str) -> Result<T, DbError> {
    serde_json::from_str(text).map_err(|error| DbError::Corrupt(error.to_string()))
}

/// Writes a JSON column.
pub(crate) fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("stored values have string keys only")
}

/// Writes a state as its bare word, so that SQL can compare it.
pub(crate) fn to_word<T: Serialize>(state: &T) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("a state is an enum without data, not {other:?}"),
    }
}

/// Reads a state from its bare word.
pub(crate) fn from_word<T: DeserializeOwned>(word: String) -> Result<T, DbError> {
    serde_json::from_value(word.into()).map_err(|error| DbError::Corrupt(error.to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SCHEMA: [Migration; 1] = [Migration {
        number: 1,
        sql: "CREATE TABLE t (n INTEGER PRIMARY KEY) STRICT",
    }];

    async fn insert(db: &Db, n: i64) -> Result<(), DbError> {
        db.write(move |c| Ok(c.execute("INSERT INTO t VALUES (?1)", [n]).map(|_| ())?))
            .await
    }

    async fn count(db: &Db) -> i64 {
        db.read(|c| Ok::<_, DbError>(c.query_row("SELECT count(*) FROM t", [], |row| row.get(0))?))
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_failed_work_undoes_itself_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("t.db"), Durability::Full, &SCHEMA).unwrap();
        let failing = db.write(|c| {
            c.execute("INSERT INTO t VALUES (100)", [])?;
            Err::<(), _>(DbError::Corrupt("no".to_owned()))
        });
        let (good, bad, twice) = tokio::join!(insert(&db, 1), failing, insert(&db, 1));
        good.unwrap();
        bad.unwrap_err();
        twice.unwrap_err();
        assert_eq!(count(&db).await, 1);
    }

    #[tokio::test]
    async fn a_panic_undoes_its_work_and_the_writer_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("t.db"), Durability::Full, &SCHEMA).unwrap();
        let panics = db.write(|c| {
            c.execute("INSERT INTO t VALUES (100)", [])?;
            if true {
                panic!("a bug");
            }
            Ok::<_, DbError>(())
        });
        let (good, bad, after) = tokio::join!(insert(&db, 1), panics, insert(&db, 2));
        good.unwrap();
        assert!(matches!(bad, Err(DbError::Panicked)), "{bad:?}");
        after.unwrap();
        insert(&db, 3).await.unwrap();
        assert_eq!(count(&db).await, 3);
    }

    #[tokio::test]
    async fn a_file_that_another_holds_is_the_reason_that_is_given() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        drop(Db::open(&path, Durability::Full, &SCHEMA).unwrap());
        let impatient = Connection::open(&path).unwrap();
        impatient.busy_timeout(Duration::ZERO).unwrap();
        let db = Db::start(impatient, &path).unwrap();
        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        let refused = insert(&db, 1).await.unwrap_err();
        let DbError::Transaction(reason) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(reason.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
        other.execute_batch("ROLLBACK").unwrap();
        insert(&db, 1).await.unwrap();
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_when_the_file_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        let db = Db::open(&path, Durability::Full, &SCHEMA).unwrap();
        for n in 0..50 {
            insert(&db, n).await.unwrap();
        }
        let again = Db::open(&path, Durability::Full, &SCHEMA).unwrap();
        assert_eq!(count(&again).await, 50);
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.db");
        Connection::open(&path)
            .unwrap()
            .pragma_update(None, "user_version", 7)
            .unwrap();
        assert!(matches!(
            Db::open(&path, Durability::Full, &SCHEMA),
            Err(DbError::Newer { found: 7, known: 1, .. })
        ));
    }

    #[tokio::test]
    async fn readers_cannot_write() {
        let folder = tempfile::tempdir().unwrap();
        let db = Db::open(&folder.path().join("t.db"), Durability::Normal, &SCHEMA).unwrap();
        let tried = db
            .read(|c| Ok::<_, DbError>(c.execute("INSERT INTO t VALUES (1)", [])?))
            .await;
        assert!(tried.is_err());
    }
}
