//! The log of a run: a bounded file that grows while others read it.
//!
//! Readers are told how far it has grown and whether the run has ended; they read the file themselves. Invariant: what a
//! reader is told of is in the file.

use std::{io, path::PathBuf, sync::Arc};

use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

/// One read of a log file.
const READ_BYTES: usize = 64 * 1024;

/// A run that has not ended: how to stop it, and how far its log is.
#[derive(Default)]
pub(super) struct Live {
    /// Asks the executor to kill it.
    pub(super) cancel: CancellationToken,
    progress: watch::Sender<Progress>,
}

#[derive(Clone, Copy, Default)]
struct Progress {
    written: u64,
    ended: bool,
}

impl Live {
    /// Ends all readers, after the run's end is in the database.
    pub(super) fn end(&self) {
        self.progress.send_modify(|progress| progress.ended = true);
    }

    /// Returns when the run has ended.
    pub(super) async fn ended(&self) {
        // An error says that the sender is gone, and it is a part of `self`.
        let _ = self.progress.subscribe().wait_for(|progress| progress.ended).await;
    }
}

/// The writing side.
pub(super) struct LogWriter {
    file: File,
    live: Arc<Live>,
    limit: u64,
    written: u64,
    dropped: u64,
    at_line_start: bool,
}

impl LogWriter {
    /// Makes the file. At most `limit` bytes of output go into it, and then the executor's own lines.
    pub(super) async fn create(path: PathBuf, limit: u64, live: Arc<Live>) -> io::Result<LogWriter> {
        Ok(LogWriter {
            file: File::create_new(path).await?,
            live,
            limit,
            written: 0,
            dropped: 0,
            at_line_start: true,
        })
    }

    /// Adds output of the script.
    pub(super) async fn append(&mut self, output: &[u8]) -> io::Result<()> {
        let room = usize::try_from(self.limit.saturating_sub(self.written)).unwrap_or(usize::MAX);
        let (kept, dropped) = output.split_at(room.min(output.len()));
        self.write(kept).await?;
        self.written += kept.len() as u64;
        if !dropped.is_empty() && self.dropped == 0 {
            self.note(&format!("the log is cut here, at its limit of {} bytes", self.limit))
                .await?;
        }
        self.dropped += dropped.len() as u64;
        Ok(())
    }

    /// Adds a line of the executor's own; there are few of them, and the limit does not hold for them.
    pub(super) async fn note(&mut self, text: &str) -> io::Result<()> {
        let break_line = if self.at_line_start { "" } else { "\n" };
        self.write(format!("{break_line}skerry: {text}\n").as_bytes()).await
    }

    /// Says what was dropped, if something was.
    pub(super) async fn finish(&mut self) -> io::Result<()> {
        match self.dropped {
            0 => Ok(()),
            dropped => self.note(&format!("{dropped} bytes of output were dropped")).await,
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(last) = bytes.last() else {
            return Ok(());
        };
        self.at_line_start = *last == b'\n';
        self.file.write_all(bytes).await?;
        // To the kernel: readers open the file themselves.
        self.file.flush().await?;
        self.live
            .progress
            .send_modify(|progress| progress.written += bytes.len() as u64);
        Ok(())
    }
}

/// Reads a log from its beginning: until the run ends if it is live, otherwise to the end of the file. No file is an empty
/// log: the run has not started, or never did.
pub(super) fn stream(path: PathBuf, live: Option<Arc<Live>>) -> impl Stream<Item = io::Result<Bytes>> + use<> {
    let reader = Reader {
        path,
        file: None,
        progress: live.map(|live| live.progress.subscribe()),
    };
    stream::try_unfold(reader, |mut reader| async move {
        loop {
            // Before the read: what is written after it makes the receiver changed again.
            let ended = reader.progress.as_mut().is_none_or(|p| p.borrow_and_update().ended);
            let bytes = reader.read().await?;
            if !bytes.is_empty() {
                return Ok(Some((bytes, reader)));
            }
            match &mut reader.progress {
                Some(progress) if !ended => {
                    if progress.changed().await.is_err() {
                        reader.progress = None;
                    }
                }
                _ => return Ok(None),
            }
        }
    })
}

struct Reader {
    path: PathBuf,
    file: Option<File>,
    progress: Option<watch::Receiver<Progress>>,
}

impl Reader {
    async fn read(&mut self) -> io::Result<Bytes> {
        let file = match &mut self.file {
            Some(file) => file,
            None => match File::open(&self.path).await {
                Ok(file) => self.file.insert(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Bytes::new()),
                Err(error) => return Err(error),
            },
        };
        let mut buffer = vec![0; READ_BYTES];
        let read = file.read(&mut buffer).await?;
        buffer.truncate(read);
        Ok(buffer.into())
    }
}
