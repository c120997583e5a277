//! Frames on disk until the control plane has committed them: append-only segments, bounded, oldest out first.
//!
//! A record is `length u32 | CRC32C u32 | recorded u64 | dropped u64 | points u32 | frame`, little-endian: each one carries the
//! counts of its moment, so that the newest whole record tells them after a kill. A segment file is removed when all its frames
//! are acknowledged, or dropped when the spool is full; the head is written first, with the counts and the segment's number, so
//! that a kill in between cannot count it twice. After a start new frames go to a new segment: a torn tail is never written over.
//!
//! One fsync per frame: at one frame a minute that is less wear than any log. Invariants: `recorded` counts every point
//! that [`Spool::append`] was ever given, and is what is acknowledged, dropped and pending together; the first
//! [`WINDOW`] pending frames, which may have reached the control plane, are never dropped.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use skerry_shared::{desired::FrameId, id::BootId, otlp::TelemetryFrame};

use super::collect::Frame;
use crate::disk::{Appender, Disk, DiskError, TwoCopies};

/// Frames that may be on their way at once.
pub(super) const WINDOW: usize = 8;
/// 16 MiB: two weeks offline at one frame a minute, a fraction of the smallest card.
pub(super) const SPOOL_BYTES: u64 = 16 * 1024 * 1024;
/// Segments in a full spool: one is dropped at a time, and [`WINDOW`] of them may be pinned.
const SEGMENTS: u64 = 64;
/// A completely acknowledged newest segment is removed from this size on: bounds what is sent again after a start.
const RETIRE_BYTES: u64 = 16 * 1024;
const RECORD_HEADER_BYTES: usize = 8;
const COUNTS_BYTES: usize = 20;

/// What the agent says about its telemetry. Points are counted over the device's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct TelemetryStatus {
    /// All points ever put into the spool.
    pub(crate) points_recorded: u64,
    /// Points that the control plane has committed, as far as this device knows.
    pub(crate) points_acked: u64,
    /// Points lost because the spool was full or the disk failed.
    pub(crate) points_dropped: u64,
    /// Frames that wait for their acknowledgement.
    pub(crate) frames_pending: u64,
    /// Bytes on disk.
    pub(crate) bytes: u64,
}

/// What must outlive the segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    points_recorded: u64,
    points_dropped: u64,
    /// The newest segment that was removed, or was about to be.
    removing: Option<u64>,
}

#[derive(Debug, Default)]
struct Segment {
    bytes: u64,
    pending: u32,
}

/// A frame without its acknowledgement. Kept small: a full spool has tens of thousands.
#[derive(Clone, Copy, Debug)]
struct Pending {
    boot: u32,
    points: u32,
    seq: u64,
    segment: u64,
    offset: u64,
    bytes: u32,
}

/// The spool.
pub(super) struct Spool {
    disk: Disk,
    folder: PathBuf,
    limit_bytes: u64,
    copies: TwoCopies,
    head: Head,
    segments: BTreeMap<u64, Segment>,
    active: Option<(u64, Appender)>,
    pending: VecDeque<Pending>,
    boots: Vec<BootId>,
}

impl Spool {
    /// Opens the spool with all that was not acknowledged when it was last used.
    pub(super) fn open(disk: &Disk, folder: &Path, limit_bytes: u64) -> Result<Spool, DiskError> {
        disk.make_folder(folder)?;
        let (copies, head) = TwoCopies::open::<Head>(disk, folder)?;
        let mut spool = Spool {
            disk: disk.clone(),
            folder: folder.to_owned(),
            limit_bytes,
            copies,
            head: head.unwrap_or_default(),
            segments: BTreeMap::new(),
            active: None,
            pending: VecDeque::new(),
            boots: Vec::new(),
        };
        let mut numbers: Vec<u64> = disk.list(folder)?.iter().filter_map(|name| number(name)).collect();
        numbers.sort_unstable();
        for number in numbers {
            let path = spool.path(number);
            if spool.head.removing == Some(number) {
                disk.remove(&path)?;
                continue;
            }
            let bytes = disk.read(&path)?.unwrap_or_default();
            let before = spool.pending.len();
            spool.read_segment(number, &bytes);
            if spool.pending.len() == before {
                // Nothing but a torn first record.
                disk.remove(&path)?;
                continue;
            }
            let pending = (spool.pending.len() - before) as u32;
            let bytes = bytes.len() as u64;
            spool.segments.insert(number, Segment { bytes, pending });
        }
        Ok(spool)
    }

    /// Takes the whole records; reading ends at the first one that is torn.
    fn read_segment(&mut self, segment: u64, bytes: &[u8]) {
        let mut offset = 0;
        while let Some(record) = decode(&bytes[offset..]) {
            self.head.points_recorded = self.head.points_recorded.max(record.recorded);
            self.head.points_dropped = self.head.points_dropped.max(record.dropped);
            if let Ok(frame) = TelemetryFrame::from_bytes(record.frame) {
                let pending = Pending {
                    boot: self.intern(&frame.id.boot_id),
                    points: record.points,
                    seq: frame.id.seq,
                    segment,
                    offset: offset as u64,
                    bytes: record.bytes as u32,
                };
                self.pending.push_back(pending);
            }
            offset += record.bytes;
        }
        if offset < bytes.len() {
            tracing::warn!(lost_bytes = bytes.len() - offset, "a telemetry segment has a torn tail");
        }
    }

    fn intern(&mut self, boot_id: &BootId) -> u32 {
        let known = self.boots.iter().position(|boot| boot == boot_id);
        let place = known.unwrap_or_else(|| {
            self.boots.push(boot_id.clone());
            self.boots.len() - 1
        });
        place as u32
    }

    /// Puts a frame on the disk: it survives a power cut when this returns.
    ///
    /// # Errors
    /// [`DiskError`]; the frame's points are counted as dropped then.
    pub(super) fn append(&mut self, frame: &Frame) -> Result<(), DiskError> {
        self.head.points_recorded += u64::from(frame.points);
        let appended = self.try_append(frame);
        if appended.is_err() {
            self.head.points_dropped += u64::from(frame.points);
            // What the disk now holds of it is unknown: nothing is written behind it.
            self.active = None;
        }
        appended
    }

    fn try_append(&mut self, frame: &Frame) -> Result<(), DiskError> {
        let record_bytes = (RECORD_HEADER_BYTES + COUNTS_BYTES + frame.bytes.len()) as u64;
        self.make_room(record_bytes)?;
        let segment_bytes = self.limit_bytes / SEGMENTS;
        let (number, mut file) = match self.active.take() {
            Some((number, file)) if file.bytes() < segment_bytes => (number, file),
            _ => {
                let number = self.next_number();
                let file = self.disk.create_growing(&self.path(number))?;
                self.segments.insert(number, Segment::default());
                (number, file)
            }
        };
        let record = encode(self.head, frame);
        let offset = match file.append(&record) {
            Ok(offset) => offset,
            Err(error) => {
                // A segment that never held a frame would stay for ever, and a full disk makes one with every try.
                if self
                    .segments
                    .get(&number)
                    .is_some_and(|segment| segment.bytes == 0 && segment.pending == 0)
                {
                    self.segments.remove(&number);
                    self.disk.remove(&self.path(number))?;
                }
                return Err(error);
            }
        };
        let pending = Pending {
            boot: self.intern(&frame.id.boot_id),
            points: frame.points,
            seq: frame.id.seq,
            segment: number,
            offset,
            bytes: record.len() as u32,
        };
        self.pending.push_back(pending);
        let segment = self.segments.entry(number).or_default();
        segment.bytes = file.bytes();
        segment.pending += 1;
        self.active = Some((number, file));
        Ok(())
    }

    /// A number that no segment had before, not even one that is removed already.
    fn next_number(&self) -> u64 {
        let newest = self.segments.last_key_value().map(|(number, _)| *number);
        newest.max(self.head.removing).map_or(1, |newest| newest + 1)
    }

    fn bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// Drops the oldest segments that cannot have been sent until `bytes` more fit.
    fn make_room(&mut self, bytes: u64) -> Result<(), DiskError> {
        while self.bytes() + bytes > self.limit_bytes {
            let pinned: Vec<u64> = self.pending.iter().take(WINDOW).map(|frame| frame.segment).collect();
            let active = self.active.as_ref().map(|(number, _)| *number);
            let droppable = |number: &&u64| !pinned.contains(number) && Some(**number) != active;
            let Some(oldest) = self.segments.keys().find(droppable).copied() else {
                return Err(self.full());
            };
            let lost = self.pending.iter().filter(|frame| frame.segment == oldest);
            let points: u64 = lost.map(|frame| u64::from(frame.points)).sum();
            tracing::warn!(points, "the telemetry spool is full, the oldest points are dropped");
            self.remove_segment(oldest, points)?;
        }
        Ok(())
    }

    fn full(&self) -> DiskError {
        DiskError::Io {
            action: "make room in",
            path: self.folder.clone(),
            source: std::io::ErrorKind::QuotaExceeded.into(),
        }
    }

    /// Forgets a segment with so many points that are lost by it; the head says so before the file goes. The head's own
    /// fsync of the folder makes the removal before this one durable.
    fn remove_segment(&mut self, number: u64, lost_points: u64) -> Result<(), DiskError> {
        let head = Head {
            points_dropped: self.head.points_dropped + lost_points,
            removing: Some(number),
            ..self.head
        };
        self.copies.write(&head)?;
        // In memory the highest number stays, so that none is used twice.
        let removing = head.removing.max(self.head.removing);
        self.head = Head { removing, ..head };
        self.segments.remove(&number);
        self.pending.retain(|frame| frame.segment != number);
        if self.active.as_ref().is_some_and(|(active, _)| *active == number) {
            self.active = None;
        }
        self.disk.remove(&self.path(number))
    }

    /// The control plane has committed a frame. One that is not known here is acknowledged already.
    ///
    /// # Errors
    /// [`DiskError`] when a segment cannot be removed; the frame is acknowledged all the same.
    pub(super) fn acked(&mut self, id: &FrameId) -> Result<(), DiskError> {
        let matches = |frame: &Pending| frame.seq == id.seq && self.boots[frame.boot as usize] == id.boot_id;
        let Some(place) = self.pending.iter().position(matches) else {
            return Ok(());
        };
        self.take(place).map(|_| ())
    }

    /// Takes a frame from the pending ones, and its segment from the disk if it was the last one in it.
    fn take(&mut self, place: usize) -> Result<u32, DiskError> {
        let Some(frame) = self.pending.remove(place) else {
            return Ok(0);
        };
        let Some(segment) = self.segments.get_mut(&frame.segment) else {
            return Ok(frame.points);
        };
        segment.pending -= 1;
        let active = self.active.as_ref().is_some_and(|(number, _)| *number == frame.segment);
        let retired = !active || segment.bytes >= RETIRE_BYTES.min(self.limit_bytes / SEGMENTS);
        if segment.pending == 0 && retired {
            self.remove_segment(frame.segment, 0)?;
        }
        Ok(frame.points)
    }

    /// The oldest pending frames, those that may be on their way at once.
    pub(super) fn window(&self) -> Vec<FrameId> {
        let id = |frame: &Pending| FrameId {
            boot_id: self.boots[frame.boot as usize].clone(),
            seq: frame.seq,
        };
        self.pending.iter().take(WINDOW).map(id).collect()
    }

    /// The bytes of a frame of the window. One that the disk no longer gives is dropped: it would hold up all others.
    pub(super) fn read(&mut self, id: &FrameId) -> Option<Vec<u8>> {
        let matches = |frame: &Pending| frame.seq == id.seq && self.boots[frame.boot as usize] == id.boot_id;
        let place = self.pending.iter().take(WINDOW).position(matches)?;
        let frame = self.pending[place];
        let record = self
            .disk
            .read_at(&self.path(frame.segment), frame.offset, frame.bytes as usize);
        let error = match record.as_deref().map(decode) {
            Ok(Some(record)) => return Some(record.frame.to_vec()),
            Ok(None) => "its checksum is wrong".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            error,
            points = frame.points,
            "a telemetry frame cannot be read back, it is dropped"
        );
        self.head.points_dropped += u64::from(frame.points);
        if let Err(error) = self.take(place) {
            tracing::warn!(%error, "cannot remove a telemetry segment");
        }
        None
    }

    pub(super) fn status(&self) -> TelemetryStatus {
        let pending: u64 = self.pending.iter().map(|frame| u64::from(frame.points)).sum();
        let (recorded, dropped) = (self.head.points_recorded, self.head.points_dropped);
        TelemetryStatus {
            points_recorded: recorded,
            points_acked: recorded.saturating_sub(dropped + pending),
            points_dropped: dropped,
            frames_pending: self.pending.len() as u64,
            bytes: self.bytes(),
        }
    }

    fn path(&self, segment: u64) -> PathBuf {
        self.folder.join(format!("segment-{segment:016}"))
    }
}

fn number(file_name: &str) -> Option<u64> {
    file_name.strip_prefix("segment-")?.parse().ok()
}

struct Record<'a> {
    /// Of the record as a whole.
    bytes: usize,
    recorded: u64,
    dropped: u64,
    points: u32,
    frame: &'a [u8],
}

fn encode(head: Head, frame: &Frame) -> Vec<u8> {
    let length = COUNTS_BYTES + frame.bytes.len();
    let mut out = Vec::with_capacity(RECORD_HEADER_BYTES + length);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&head.points_recorded.to_le_bytes());
    out.extend_from_slice(&head.points_dropped.to_le_bytes());
    out.extend_from_slice(&frame.points.to_le_bytes());
    out.extend_from_slice(&frame.bytes);
    let checksum = crc32c::crc32c(&out[RECORD_HEADER_BYTES..]);
    out[4..8].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// The record at the beginning of `bytes`, if it is whole.
fn decode(bytes: &[u8]) -> Option<Record<'_>> {
    let (header, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES)?;
    let length = u32::from_le_bytes(header[..4].try_into().ok()?) as usize;
    let (content, _) = rest.split_at_checked(length)?;
    if crc32c::crc32c(content) != u32::from_le_bytes(header[4..].try_into().ok()?) {
        return None;
    }
    let (counts, frame) = content.split_at_checked(COUNTS_BYTES)?;
    Some(Record {
        bytes: RECORD_HEADER_BYTES + length,
        recorded: u64::from_le_bytes(counts[..8].try_into().ok()?),
        dropped: u64::from_le_bytes(counts[8..16].try_into().ok()?),
        points: u32::from_le_bytes(counts[16..].try_into().ok()?),
        frame,
    })
}
