//! Fetches objects over the link: wants go out as the window and the bandwidth allow, parts come in and are checked.

use std::time::{Duration, Instant};

use skerry_shared::{
    chunk::{Chunk, ChunkIndex, Codec, unshuffle4},
    digest::Digest,
    schema::{Envelope, SchemaVersion},
    transfer::{Object, PART_BYTES, Part, PartContent, Want},
};
use tokio::sync::mpsc;

use crate::transfer::{Stop, Transfer, WINDOW};

/// How often time-outs are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the control plane does not have {0}")]
    NotFound(String),
    #[error("{0} is larger than allowed")]
    TooLarge(String),
    #[error("part {part} of {object} came broken too often")]
    BadPart { object: String, part: u32 },
    #[error("nothing came of {0} for too long")]
    Stalled(String),
    #[error("the link has ended")]
    Closed,
    #[error("cannot store a chunk")]
    Disk(#[from] crate::disk::DiskError),
}

impl FetchError {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            FetchError::NotFound(_) => "not_found",
            FetchError::TooLarge(_) => "too_large",
            FetchError::BadPart { .. } => "bad_chunk",
            FetchError::Stalled(_) => "stalled",
            FetchError::Closed => "closed",
            FetchError::Disk(error) if error.is_full() => "enospc",
            FetchError::Disk(_) => "disk",
        }
    }
}

/// Sends an encoded want, or loses it.
pub(crate) type SendWant = Box<dyn Fn(Vec<u8>) + Send + Sync>;

/// The fetching side of the link.
pub(crate) struct Fetcher {
    send: SendWant,
    parts: mpsc::Receiver<Vec<u8>>,
    bucket: Option<Bucket>,
    next_request: u64,
    /// Payload bytes received since the agent started.
    pub(crate) wire_bytes: u64,
    started: Instant,
}

impl Fetcher {
    pub(crate) fn new(send: SendWant, parts: mpsc::Receiver<Vec<u8>>, bytes_per_second: Option<u64>) -> Fetcher {
        let bucket = bytes_per_second.map(Bucket::new);
        Fetcher {
            send,
            parts,
            bucket,
            next_request: 1,
            wire_bytes: 0,
            started: Instant::now(),
        }
    }

    /// Fetches a file as a whole, at most `max_bytes`. `None` when the control plane does not have it.
    pub(crate) async fn file(&mut self, object: Object, max_bytes: usize) -> Result<Option<Vec<u8>>, FetchError> {
        let name = describe(&object);
        let mut pieces: Vec<Option<Vec<u8>>> = vec![None];
        let mut transfer = Transfer::new([0]);
        let mut known = false;
        let found = self
            .run(&object, &mut transfer, |transfer, part| {
                if !known {
                    known = true;
                    if part.parts as usize > max_bytes.div_ceil(PART_BYTES) {
                        return Err(FetchError::TooLarge(name.clone()));
                    }
                    pieces.resize(part.parts as usize, None);
                    transfer.add(1..part.parts);
                }
                let PartContent::Data(data) = part.content else {
                    return Ok(false);
                };
                match pieces.get_mut(part.part as usize) {
                    Some(piece) => *piece = Some(data.to_vec()),
                    None => return Ok(false),
                }
                Ok(true)
            })
            .await?;
        if !found {
            return Ok(None);
        }
        let bytes: Vec<u8> = pieces.into_iter().flatten().flatten().collect();
        if bytes.len() > max_bytes {
            Err(FetchError::TooLarge(name))
        } else {
            Ok(Some(bytes))
        }
    }

    /// Fetches chunks of a bundle; each is checked before and after it is decompressed, then handed to `store`.
    pub(crate) async fn chunks(
        &mut self,
        (digest, index): (Digest, &ChunkIndex),
        wanted: Vec<u32>,
        mut store: impl FnMut(&Chunk, &[u8]) -> Result<(), crate::disk::DiskError>,
    ) -> Result<(), FetchError> {
        let object = Object::Chunks(digest);
        let mut transfer = Transfer::new(wanted);
        let found = self
            .run(&object, &mut transfer, |_, part| {
                let PartContent::Data(wire) = part.content else {
                    return Ok(false);
                };
                let Some(chunk) = index.chunks().get(part.part as usize) else {
                    return Ok(false);
                };
                let Some(raw) = decode(chunk, wire) else {
                    return Ok(false);
                };
                store(chunk, &raw)?;
                Ok(true)
            })
            .await?;
        if found {
            Ok(())
        } else {
            Err(FetchError::NotFound(describe(&object)))
        }
    }

    /// Runs a transfer to its end; `accept` says whether a part is good. False when the object is not there.
    async fn run(
        &mut self,
        object: &Object,
        transfer: &mut Transfer,
        mut accept: impl FnMut(&mut Transfer, &Part<'_>) -> Result<bool, FetchError>,
    ) -> Result<bool, FetchError> {
        let request = self.next_request;
        self.next_request += 1;
        let stop = |stop| match stop {
            Stop::BadPart(part) => FetchError::BadPart {
                object: describe(object),
                part,
            },
            Stop::Stalled => FetchError::Stalled(describe(object)),
        };
        while !transfer.is_done() {
            let now_ms = self.now_ms();
            transfer.on_time(now_ms).map_err(stop)?;
            let allowed = self.bucket.as_mut().map_or(WINDOW, |bucket| bucket.parts(now_ms));
            let parts = transfer.next_wants(allowed, now_ms);
            if !parts.is_empty() {
                if let Some(bucket) = &mut self.bucket {
                    bucket.spend(parts.len());
                }
                let want = Want {
                    schema: SchemaVersion::CURRENT,
                    request,
                    object: object.clone(),
                    parts,
                };
                // A want that does not leave is repeated after its time-out.
                (self.send)(want.to_json());
            }
            let wait = self.bucket.as_ref().map_or(TICK, |bucket| bucket.wait().min(TICK));
            let message = match tokio::time::timeout(wait, self.parts.recv()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(FetchError::Closed),
                Err(_) => continue,
            };
            self.wire_bytes += message.len() as u64;
            if let Some(bucket) = &mut self.bucket {
                bucket.refund(message.len());
            }
            let Ok(part) = Part::from_bytes(&message) else { continue };
            if part.request != request {
                continue;
            }
            match part.content {
                PartContent::NotFound => return Ok(false),
                PartContent::Busy => continue,
                PartContent::Data(_) if !transfer.expects(part.part) => continue,
                PartContent::Data(_) => {}
            }
            if accept(transfer, &part)? {
                transfer.on_good(part.part);
            } else {
                tracing::warn!(part = part.part, "a part came broken");
                transfer.on_bad(part.part).map_err(stop)?;
            }
        }
        Ok(true)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }
}

fn describe(object: &Object) -> String {
    match object {
        Object::Metadata(name) => name.clone(),
        Object::Blob(digest) => format!("object {digest:?}"),
        Object::Chunks(digest) => format!("the bundle with index {digest:?}"),
    }
}

/// The content of a chunk, or nothing if these bytes are not it. The wire digest is checked before decompression.
fn decode(chunk: &Chunk, wire: &[u8]) -> Option<Vec<u8>> {
    if wire.len() != chunk.wire_len as usize || Digest::of(wire) != chunk.wire {
        return None;
    }
    let raw_len = chunk.raw_len as usize;
    let raw = match chunk.codec {
        Codec::Raw => wire.to_vec(),
        Codec::Zstd => one_frame(wire, raw_len)?,
        Codec::Shuffle4Zstd => unshuffle4(&one_frame(wire, raw_len)?),
    };
    (raw.len() == raw_len && Digest::of(&raw) == chunk.raw).then_some(raw)
}

/// Decompresses exactly one frame, into at most `raw_len` bytes. The decoder alone would go on with what follows the frame.
fn one_frame(wire: &[u8], raw_len: usize) -> Option<Vec<u8>> {
    let frame_bytes = zstd::zstd_safe::find_frame_compressed_size(wire).ok()?;
    (frame_bytes == wire.len()).then(|| zstd::bulk::decompress(wire, raw_len).ok())?
}

/// A token bucket over bytes: the device is the limiter of its own link.
struct Bucket {
    bytes_per_second: u64,
    tokens: f64,
    updated_ms: u64,
}

impl Bucket {
    fn new(bytes_per_second: u64) -> Bucket {
        let bytes_per_second = bytes_per_second.max(1);
        Bucket {
            bytes_per_second,
            tokens: PART_BYTES as f64,
            updated_ms: 0,
        }
    }

    /// How many parts may be asked for now. One part is always possible once the bucket is not in debt.
    fn parts(&mut self, now_ms: u64) -> usize {
        let passed = now_ms.saturating_sub(self.updated_ms) as f64 / 1000.0;
        self.updated_ms = now_ms;
        let full = (self.bytes_per_second as f64).max(PART_BYTES as f64);
        self.tokens = (self.tokens + passed * self.bytes_per_second as f64).min(full);
        (self.tokens / PART_BYTES as f64) as usize
    }

    /// Parts are paid for when they are asked for, at the most that they may have.
    fn spend(&mut self, parts: usize) {
        self.tokens -= (parts * PART_BYTES) as f64;
    }

    /// A part was smaller than that.
    fn refund(&mut self, received: usize) {
        self.tokens += PART_BYTES.saturating_sub(received) as f64;
    }

    fn wait(&self) -> Duration {
        let lacking = (PART_BYTES as f64 - self.tokens).max(0.0);
        Duration::from_secs_f64(lacking / self.bytes_per_second as f64).max(Duration::from_millis(5))
    }
}
