//! A disk in memory that forgets what was not synced, for tests that cut the power at every call.
//!
//! It is harsher than any real file system: names and contents reach the medium in any order, and of an unsynced write any
//! sectors may be there. Invariant: what was synced is there after every cut.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    Access, Disk,
    fs::{Before, Fs, FsFile},
};

/// What a medium writes at once.
const SECTOR_BYTES: usize = 512;
const TOTAL_BYTES: u64 = 64 * 1024 * 1024;

/// A call that changes the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Call {
    Create,
    Write,
    SyncFile,
    Cut,
    Rename,
    Remove,
    MakeFolder,
    SyncFolder,
}

/// What of the unsynced changes a power cut leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    Everything,
    /// Names before contents: a renamed file is there and empty.
    Names,
    /// Contents before names.
    Contents,
    /// Everything but the end of the last write, cut at a sector.
    AllButATornWrite,
    /// Any sectors and any names.
    Some(u64),
}

/// A file's content: what is on the medium, and what was written since.
#[derive(Clone, Default)]
struct Content {
    durable: Arc<Vec<u8>>,
    volatile: Arc<Vec<u8>>,
    /// Where the newest unsynced write begins.
    last_write: usize,
}

/// A folder's names, each with the number of its file. A pending change is a set of names that change together.
#[derive(Clone, Default)]
struct Folder {
    durable: BTreeMap<String, u64>,
    volatile: BTreeMap<String, u64>,
    pending: Vec<Vec<(String, Option<u64>)>>,
}

/// The disk at one moment.
#[derive(Clone, Default)]
pub(crate) struct State {
    files: BTreeMap<u64, Content>,
    folders: BTreeMap<PathBuf, Folder>,
    next: u64,
    last_written: Option<u64>,
}

struct Inner {
    state: State,
    calls: Vec<Call>,
    /// The disk before each call.
    before: Vec<State>,
    /// The call from which on, or at which, the disk answers with this error.
    failure: Option<(usize, Failure)>,
    keeps_history: bool,
}

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// From this call on there is no room for anything more.
    Full,
    /// This call and no other ends in an I/O error. A sync that fails loses what it was to save.
    Once,
}

/// The disk; cheap to clone.
#[derive(Clone)]
pub(crate) struct SimFs(Arc<Mutex<Inner>>);

impl SimFs {
    /// An empty disk with one folder.
    pub(crate) fn new(folder: &Path) -> SimFs {
        let mut state = State::default();
        state.folders.insert(folder.to_owned(), Folder::default());
        SimFs::from(state)
    }

    fn from(state: State) -> SimFs {
        SimFs(Arc::new(Mutex::new(Inner {
            state,
            calls: Vec::new(),
            before: Vec::new(),
            failure: None,
            keeps_history: false,
        })))
    }

    /// From now on every state is remembered, and calls are counted.
    pub(crate) fn restart_history(&self) {
        let mut inner = self.lock();
        inner.calls.clear();
        inner.before.clear();
        inner.keeps_history = true;
    }

    /// Lets the call with this number fail, counted from now.
    pub(crate) fn fail_at(&self, call: usize, failure: Failure) {
        let mut inner = self.lock();
        inner.calls.clear();
        inner.failure = Some((call, failure));
    }

    /// The disk works again.
    pub(crate) fn mend(&self) {
        self.lock().failure = None;
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk(Arc::new(self.clone()))
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// The disk before each call since the history is kept, and as it is now.
    pub(crate) fn history(&self) -> Vec<State> {
        let inner = self.lock();
        let mut states = inner.before.clone();
        states.push(inner.state.clone());
        states
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call; an error if the disk fails here.
    fn call(&self, call: Call) -> io::Result<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        if inner.keeps_history {
            let state = inner.state.clone();
            inner.before.push(state);
        }
        let number = inner.calls.len();
        inner.calls.push(call);
        let takes_room = matches!(call, Call::Create | Call::Write | Call::MakeFolder);
        match inner.failure {
            Some((from, Failure::Full)) if number >= from && takes_room => Err(io::ErrorKind::StorageFull.into()),
            Some((at, Failure::Once)) if number == at => Err(io::Error::other("the medium does not answer")),
            _ => Ok(inner),
        }
    }
}

/// SplitMix64: the same sequence for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn coin(&mut self) -> bool {
        self.next() & 1 == 1
    }
}

impl State {
    /// A disk as it is found after a power cut.
    pub(crate) fn after_cut(&self, left: Left) -> SimFs {
        let mut random = Random(match left {
            Left::Some(seed) => seed,
            _ => 0,
        });
        let mut after = State {
            next: self.next,
            ..State::default()
        };
        for (number, content) in &self.files {
            let bytes = match left {
                Left::Nothing | Left::Names => Arc::clone(&content.durable),
                Left::Everything | Left::Contents => Arc::clone(&content.volatile),
                Left::AllButATornWrite if self.last_written == Some(*number) => torn(content),
                Left::AllButATornWrite => Arc::clone(&content.volatile),
                Left::Some(_) => some_sectors(content, &mut random),
            };
            let content = Content {
                durable: Arc::clone(&bytes),
                last_write: bytes.len(),
                volatile: bytes,
            };
            after.files.insert(*number, content);
        }
        for (path, folder) in &self.folders {
            let mut names = folder.durable.clone();
            for change in &folder.pending {
                let kept = match left {
                    Left::Nothing | Left::Contents => false,
                    Left::Everything | Left::Names | Left::AllButATornWrite => true,
                    Left::Some(_) => random.coin(),
                };
                if kept {
                    apply(&mut names, change);
                }
            }
            let folder = Folder {
                durable: names.clone(),
                volatile: names,
                pending: Vec::new(),
            };
            after.folders.insert(path.clone(), folder);
        }
        after.forget_unreachable();
        SimFs::from(after)
    }

    /// A folder whose name is lost is lost with all that is in it; so is a file without a name.
    fn forget_unreachable(&mut self) {
        let folders = self.folders.clone();
        let named = |path: &Path| -> bool {
            let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
                return true;
            };
            match folders.get(parent) {
                Some(parent) => parent.volatile.contains_key(&*name.to_string_lossy()),
                None => true,
            }
        };
        self.folders.retain(|path, _| path.ancestors().all(named));
        let used: BTreeSet<u64> = self
            .folders
            .values()
            .flat_map(|folder| folder.volatile.values().copied())
            .collect();
        self.files.retain(|number, _| used.contains(number));
    }

    /// What tells two disks apart.
    pub(crate) fn fingerprint(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut all = Vec::new();
        for (path, folder) in &self.folders {
            all.push((path.clone(), Vec::new()));
            for (name, number) in &folder.volatile {
                if let Some(content) = self.files.get(number) {
                    all.push((path.join(name), content.volatile.to_vec()));
                }
            }
        }
        all
    }

    fn number(&self, path: &Path) -> Option<u64> {
        let (parent, name) = place(path);
        self.folders.get(parent)?.volatile.get(&name).copied()
    }

    fn change(&mut self, parent: &Path, change: Vec<(String, Option<u64>)>) -> io::Result<()> {
        let folder = self.folders.get_mut(parent).ok_or(io::ErrorKind::NotFound)?;
        apply(&mut folder.volatile, &change);
        folder.pending.push(change);
        Ok(())
    }

    fn used_bytes(&self) -> u64 {
        self.files.values().map(|content| content.volatile.len() as u64).sum()
    }
}

fn apply(names: &mut BTreeMap<String, u64>, change: &[(String, Option<u64>)]) {
    for (name, number) in change {
        match number {
            Some(number) => names.insert(name.clone(), *number),
            None => names.remove(name),
        };
    }
}

fn torn(content: &Content) -> Arc<Vec<u8>> {
    let unsynced = content.volatile.len() - content.last_write.min(content.volatile.len());
    let kept = content.volatile.len() - unsynced + unsynced / 2 / SECTOR_BYTES * SECTOR_BYTES;
    Arc::new(content.volatile[..kept].to_vec())
}

/// Each sector is the old or the new one; one past the old end that did not arrive reads as zeros.
fn some_sectors(content: &Content, random: &mut Random) -> Arc<Vec<u8>> {
    if Arc::ptr_eq(&content.durable, &content.volatile) {
        return Arc::clone(&content.durable);
    }
    let length = if random.coin() {
        content.volatile.len()
    } else {
        content.durable.len()
    };
    let mut bytes = vec![0; length];
    for (number, sector) in bytes.chunks_mut(SECTOR_BYTES).enumerate() {
        let source = if random.coin() {
            &content.volatile
        } else {
            &content.durable
        };
        let from = source.get(number * SECTOR_BYTES..).unwrap_or_default();
        let count = from.len().min(sector.len());
        sector[..count].copy_from_slice(&from[..count]);
    }
    Arc::new(bytes)
}

fn place(path: &Path) -> (&Path, String) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    (path.parent().unwrap_or(Path::new("")), name)
}

impl Fs for SimFs {
    fn open(&self, path: &Path) -> io::Result<Box<dyn FsFile>> {
        let number = self.lock().state.number(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(SimFile {
            fs: self.clone(),
            number,
        }))
    }

    fn create(&self, path: &Path, _: Access, before: Before) -> io::Result<Box<dyn FsFile>> {
        let mut inner = self.call(Call::Create)?;
        let number = match (inner.state.number(path), before) {
            (Some(_), Before::Absent) => return Err(io::ErrorKind::AlreadyExists.into()),
            (Some(number), Before::Emptied) => {
                let content = inner.state.files.entry(number).or_default();
                content.volatile = Arc::default();
                content.last_write = 0;
                number
            }
            (None, _) => {
                let number = inner.state.next;
                inner.state.next += 1;
                inner.state.files.insert(number, Content::default());
                let (parent, name) = place(path);
                inner.state.change(parent, vec![(name, Some(number))])?;
                number
            }
        };
        drop(inner);
        Ok(Box::new(SimFile {
            fs: self.clone(),
            number,
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.call(Call::Rename)?;
        let number = inner.state.number(from).ok_or(io::ErrorKind::NotFound)?;
        let ((parent, old), (_, new)) = (place(from), place(to));
        inner.state.change(parent, vec![(old, None), (new, Some(number))])
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if self.lock().state.number(path).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let (parent, name) = place(path);
        self.call(Call::Remove)?.state.change(parent, vec![(name, None)])
    }

    fn make_folder(&self, path: &Path) -> io::Result<bool> {
        if self.lock().state.folders.contains_key(path) {
            return Ok(false);
        }
        let (parent, name) = place(path);
        if !self.lock().state.folders.contains_key(parent) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut inner = self.call(Call::MakeFolder)?;
        let number = inner.state.next;
        inner.state.next += 1;
        inner.state.change(parent, vec![(name, Some(number))])?;
        inner.state.folders.insert(path.to_owned(), Folder::default());
        Ok(true)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        let synced = self.call(Call::SyncFolder);
        let mut inner = match synced {
            Ok(inner) => inner,
            Err(error) => {
                // The names stay in memory and never reach the medium, as after a failed write-back.
                if let Some(folder) = self.lock().state.folders.get_mut(path) {
                    folder.pending.clear();
                }
                return Err(error);
            }
        };
        if let Some(folder) = inner.state.folders.get_mut(path) {
            folder.durable = folder.volatile.clone();
            folder.pending.clear();
        }
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<(String, u64)>> {
        let inner = self.lock();
        let names = inner.state.folders.get(folder).ok_or(io::ErrorKind::NotFound)?;
        let bytes = |number| {
            inner
                .state
                .files
                .get(number)
                .map_or(0, |content| content.volatile.len() as u64)
        };
        Ok(names
            .volatile
            .iter()
            .map(|(name, number)| (name.clone(), bytes(number)))
            .collect())
    }

    fn free_and_total_bytes(&self, _: &Path) -> io::Result<(u64, u64)> {
        Ok((TOTAL_BYTES.saturating_sub(self.lock().state.used_bytes()), TOTAL_BYTES))
    }
}

struct SimFile {
    fs: SimFs,
    number: u64,
}

impl FsFile for SimFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.fs.call(Call::Write)?;
        inner.state.last_written = Some(self.number);
        let content = inner.state.files.entry(self.number).or_default();
        content.last_write = content.volatile.len();
        let mut whole = content.volatile.to_vec();
        whole.extend_from_slice(bytes);
        content.volatile = Arc::new(whole);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.fs.call(Call::SyncFile)?;
        if let Some(content) = inner.state.files.get_mut(&self.number) {
            content.durable = Arc::clone(&content.volatile);
            content.last_write = content.volatile.len();
        }
        Ok(())
    }

    fn cut(&mut self, length: u64) -> io::Result<()> {
        let mut inner = self.fs.call(Call::Cut)?;
        if let Some(content) = inner.state.files.get_mut(&self.number) {
            let length = usize::try_from(length)
                .unwrap_or(usize::MAX)
                .min(content.volatile.len());
            content.volatile = Arc::new(content.volatile[..length].to_vec());
            content.last_write = length;
        }
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let inner = self.fs.lock();
        let content = inner.state.files.get(&self.number).ok_or(io::ErrorKind::NotFound)?;
        let from = usize::try_from(offset)
            .ok()
            .and_then(|offset| content.volatile.get(offset..));
        let from = from.unwrap_or_default();
        let count = from.len().min(buffer.len());
        buffer[..count].copy_from_slice(&from[..count]);
        Ok(count)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn disk() -> (SimFs, Disk, PathBuf) {
        let folder = PathBuf::from("/s");
        let fs = SimFs::new(&folder);
        (fs.clone(), fs.disk(), folder.join("file"))
    }

    fn found(fs: &SimFs, left: Left, path: &Path) -> Option<Vec<u8>> {
        fs.state().after_cut(left).disk().read(path).unwrap()
    }

    #[test]
    fn a_whole_file_is_there_after_every_cut() {
        let (fs, disk, path) = disk();
        disk.write(&path, b"whole", Access::Everybody).unwrap();
        for left in [Left::Nothing, Left::Names, Left::Some(1), Left::AllButATornWrite] {
            assert_eq!(found(&fs, left, &path).as_deref(), Some(&b"whole"[..]), "{left:?}");
        }
    }

    #[test]
    fn an_unsynced_file_is_there_only_by_luck() {
        let (fs, disk, path) = disk();
        disk.write_unsynced(&path, &[7; 2000]).unwrap();
        assert_eq!(found(&fs, Left::Nothing, &path), None);
        assert_eq!(found(&fs, Left::Names, &path), Some(Vec::new()));
        assert_eq!(found(&fs, Left::AllButATornWrite, &path), Some(vec![7; 512]));
        assert_eq!(found(&fs, Left::Everything, &path), Some(vec![7; 2000]));
    }

    #[test]
    fn a_folder_that_was_not_synced_into_its_parent_takes_its_files_with_it() {
        let (fs, disk, _) = disk();
        let folder = PathBuf::from("/s/folder");
        fs.make_folder(&folder).unwrap();
        disk.write(&folder.join("file"), b"synced", Access::Everybody).unwrap();
        assert_eq!(found(&fs, Left::Nothing, &folder.join("file")), None);
        fs.sync_folder(Path::new("/s")).unwrap();
        assert_eq!(
            found(&fs, Left::Nothing, &folder.join("file")).as_deref(),
            Some(&b"synced"[..])
        );
    }
}
