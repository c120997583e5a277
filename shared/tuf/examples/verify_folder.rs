//! Verifies a folder of TUF metadata from its first root on, and looks for a target: `verify_folder FOLDER SECONDS TARGET`.
//!
//! Every rule of a device is linked and nothing else, which is why `docs/figures.md` measures this program's size. It
//! succeeds only if the target is signed for at that time, in seconds since 1970.

use std::{error::Error, ffi::OsString, path::PathBuf};

use skerry_tuf::{Expiry, SearchStep, TargetName, TrustedSet, UnixTime};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let [folder, seconds, target] = arguments.as_slice() else {
        return Err("use it as: verify_folder FOLDER SECONDS TARGET".into());
    };
    let text = |argument: &OsString| argument.to_str().map(str::to_owned).ok_or("an argument is not UTF-8");
    let folder = PathBuf::from(folder);
    let now = Expiry::Enforce(UnixTime::from_seconds(text(seconds)?.parse()?));
    let read = |name: &str| std::fs::read(folder.join(name));

    let mut set = TrustedSet::new(&read("1.root.json")?)?;
    for _ in 0..set.limits().root_steps {
        let next = folder.join(set.next_root_file().file_name);
        if !next.try_exists()? {
            break;
        }
        set.update_root(&std::fs::read(next)?)?;
    }
    set.update_timestamp(&read("timestamp.json")?, now)?;
    if let Some(wanted) = set.wanted_snapshot() {
        set.update_snapshot(&read(&wanted.file_name)?, now)?;
    }
    if let Some(wanted) = set.wanted_targets() {
        set.update_targets(&read(&wanted.file_name)?, now)?;
    }
    let name = TargetName::new(text(target)?)?;
    let mut search = set.search(&name, now)?;
    loop {
        match search.step()? {
            SearchStep::Found(_) => return Ok(()),
            SearchStep::Absent => return Err("no role signs for this target".into()),
            SearchStep::Needs { file, .. } => search.offer(&read(&file.file_name)?)?,
        }
    }
}
