//! Replacing a folder in one step: whoever looks, and whenever a kill comes, finds the old folder or the new one, whole.
//!
//! The new folder is written into a hidden, locked neighbour `.NAME.swap-*`, synced, and exchanged with the target by
//! `renameat2(RENAME_EXCHANGE)`. Where a file system has no exchange, the neighbour stays and the target is a symbolic
//! link to it, replaced by `rename`. The lock is the kernel's: it ends with its process, so what is unlocked is stale.
//! Beyond the names of a model's settings, this file knows nothing of what the folders hold.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The folder inside a neighbour that is exchanged with the target.
const NEW: &str = "new";
/// One of these marks a folder as something this library (or Hugging Face's) wrote and may replace.
const MARKS: [&str; 3] = [super::config::FILE, super::adapter::CONFIG_FILE, "dialoguellm.json"];

/// Files of a model folder beside its weights.
const SETTINGS: [&str; 11] = [
    super::config::FILE,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "LICENSE",
];
/// Far above any of them.
const SETTINGS_LIMIT: u64 = 1 << 30;

/// Copies what a model folder has beside its weights, as it is.
///
/// # Errors
/// Io; BadFile where a file is longer than such a file may be.
pub(crate) fn copy_settings(from: &Path, to: &Path) -> Result<()> {
    SETTINGS.iter().try_for_each(|name| copy(&from.join(name), &to.join(name)))
}

/// Copies one file, if it is there.
///
/// # Errors
/// As [`copy_settings`].
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    if !from.exists() {
        return Ok(());
    }
    let bytes = super::read_bounded(from, SETTINGS_LIMIT)?;
    fs::write(to, bytes).map_err(|error| Error::io("write", to, &error))
}

/// Refuses to replace what is still to be read.
///
/// # Errors
/// InvalidArgument.
pub(crate) fn refuse_source(out: &Path, source: &Path) -> Result<()> {
    match (out.canonicalize(), source.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => {
            Err(Error::invalid(format!("{} is read from and would be replaced; name a new folder", out.display())))
        }
        _ => Ok(()),
    }
}

/// Gives `write` an empty folder and puts it in `target`'s place. The old folder goes, with everything in it; one that
/// holds neither a model nor an adapter is refused instead. Parents are made.
///
/// # Errors
/// What `write` returns; Io; InvalidArgument where `target` is no folder of ours, or the file system cannot exchange it.
/// After an error the target is as it was, except that a failed last sync leaves the new folder there.
pub fn replace(target: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = Place::find(target)?;
    place.remove_stale();
    let neighbour = place.neighbour()?;
    let swapped = fill(&neighbour, write).and_then(|can_exchange| place.swap(&neighbour, can_exchange));
    let old = swapped.inspect_err(|_| drop(remove(&neighbour.path)))?;
    // Until the disk has the new name, the old folder must stay: after a power cut it may still be the target.
    sync(&neighbour.path)?;
    sync(&place.parent)?;
    // What cannot be removed is only in the way, and stale from now on.
    old.map_or(Ok(()), |old| remove(&old).or(Ok(())))
}

/// Where the target is, and where its neighbours are.
struct Place {
    target: PathBuf,
    parent: PathBuf,
    prefix: String,
}

/// What now stands at the target.
enum Old {
    Nothing,
    Folder,
    /// A link to a neighbour, by the neighbour's name.
    Link(PathBuf),
}

/// A locked folder beside the target.
struct Neighbour {
    path: PathBuf,
    /// Held until the swap is over: an unlocked neighbour may be removed by anyone.
    _lock: File,
}

impl Place {
    fn find(target: &Path) -> Result<Self> {
        let wrong = || Error::invalid(format!("{} has no name that a folder could get", target.display()));
        let name = target.file_name().ok_or_else(wrong)?.to_str().ok_or_else(wrong)?;
        let parent = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        sys(|| fs::create_dir_all(parent)).map_err(|e| Error::io("create", parent, &e))?;
        let place = Self { target: parent.join(name), parent: parent.to_owned(), prefix: format!(".{name}.swap-") };
        match fs::read_link(&place.target) {
            Ok(to) if place.is_neighbour(&to) => Ok(place),
            // Someone else's link: what it leads to is replaced.
            Ok(_) => Self::find(&fs::canonicalize(target).map_err(|e| Error::io("open", target, &e))?),
            Err(_) => Ok(place),
        }
    }

    fn is_neighbour(&self, link: &Path) -> bool {
        let first = link.components().next().map(|c| c.as_os_str());
        first.and_then(|f| f.to_str()).is_some_and(|f| f.starts_with(&self.prefix)) && link.ends_with(NEW)
    }

    fn old(&self) -> Result<Old> {
        match fs::symlink_metadata(&self.target) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Old::Nothing),
            Err(e) => Err(Error::io("open", &self.target, &e)),
            Ok(kind) if kind.is_dir() => self.check_ours().map(|()| Old::Folder),
            Ok(kind) if kind.is_symlink() => {
                let link = fs::read_link(&self.target).map_err(|e| Error::io("read", &self.target, &e))?;
                Ok(Old::Link(link.parent().unwrap_or(Path::new("")).to_owned()))
            }
            Ok(_) => Err(Error::invalid(format!("{} is a file; name a folder", self.target.display()))),
        }
    }

    fn check_ours(&self) -> Result<()> {
        let entries = fs::read_dir(&self.target).map_err(|e| Error::io("read", &self.target, &e))?;
        if entries.count() > 0 && !MARKS.iter().any(|mark| self.target.join(mark).exists()) {
            let text = format!("{} holds files but none of {}", self.target.display(), MARKS.join(", "));
            return Err(Error::invalid(format!("{text}: it will not be replaced; name a new folder")));
        }
        Ok(())
    }

    /// A new, empty, locked neighbour.
    fn neighbour(&self) -> Result<Neighbour> {
        self.old()?; // what must not be replaced is refused before anything is written
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let n = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = self.parent.join(format!("{}{}-{n}", self.prefix, std::process::id()));
            match sys(|| fs::create_dir(&path)) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(Error::io("create", &path, &e)),
            }
            // Between creation and lock another process may take it for stale: then it is locked or gone.
            let lock = match File::open(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                opened => opened.map_err(|e| Error::io("open", &path, &e))?,
            };
            let locked = !matches!(lock.try_lock(), Err(fs::TryLockError::WouldBlock));
            if locked && same_folder(&lock, &path) {
                return Ok(Neighbour { path, _lock: lock });
            }
        }
    }

    /// Removes neighbours whose process has ended. Best effort: what cannot be removed is only in the way.
    fn remove_stale(&self) {
        let Ok(entries) = fs::read_dir(&self.parent) else { return };
        for path in entries.flatten().map(|e| e.path()) {
            let named = path.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(&self.prefix));
            if !named {
                continue;
            }
            // Locked first and looked up second: a live link could otherwise appear in between.
            let Ok(lock) = File::open(&path) else { continue };
            let in_use =
                || fs::read_link(&self.target).is_ok_and(|to| path.ends_with(to.parent().unwrap_or(Path::new(""))));
            if lock.try_lock().is_ok() && !in_use() {
                let _ = remove(&path);
            }
        }
    }

    /// Puts the new folder at the target and returns what is to be removed.
    fn swap(&self, neighbour: &Neighbour, can_exchange: bool) -> Result<Option<PathBuf>> {
        let new = neighbour.path.join(NEW);
        let swapped = match self.old()? {
            Old::Nothing if can_exchange => sys(|| fs::rename(&new, &self.target)),
            Old::Folder if can_exchange => sys(|| exchange(&new, &self.target)),
            Old::Folder => return Err(self.no_exchange()),
            Old::Nothing => return self.link(neighbour).map(|()| None),
            Old::Link(old) => return self.link(neighbour).map(|()| Some(self.parent.join(old))),
        };
        swapped.map_err(|e| self.not_swapped(&e))?;
        Ok(Some(neighbour.path.clone()))
    }

    /// Makes the target a link to the neighbour, in one rename.
    fn link(&self, neighbour: &Neighbour) -> Result<()> {
        let name = Path::new(neighbour.path.file_name().unwrap_or_default());
        let link = neighbour.path.join("link");
        sys(|| std::os::unix::fs::symlink(name.join(NEW), &link)).map_err(|e| self.not_swapped(&e))?;
        sync(&neighbour.path)?;
        sync(&self.parent)?; // the neighbour's own name, before anything leads to it
        sys(|| fs::rename(&link, &self.target)).map_err(|e| self.not_swapped(&e))
    }

    fn not_swapped(&self, e: &io::Error) -> Error {
        Error::io("put the new folder in place of", &self.target, e)
    }

    fn no_exchange(&self) -> Error {
        let text = "is a folder on a file system that cannot exchange two folders in one step; name a new folder";
        Error::invalid(format!("{} {text}", self.target.display()))
    }
}

/// Lets `write` fill the neighbour and syncs it; whether folders can be exchanged here is found out first.
fn fill(neighbour: &Neighbour, write: impl FnOnce(&Path) -> Result<()>) -> Result<bool> {
    let (new, probe) = (neighbour.path.join(NEW), neighbour.path.join("probe"));
    for dir in [&new, &probe] {
        sys(|| fs::create_dir(dir)).map_err(|e| Error::io("create", dir, &e))?;
    }
    let can_exchange = match sys(|| exchange(&new, &probe)) {
        Ok(()) => true,
        Err(e) if cannot_exchange(&e) => false,
        Err(e) => return Err(Error::io("exchange folders in", &neighbour.path, &e)),
    };
    sys(|| fs::remove_dir(&probe)).map_err(|e| Error::io("remove", &probe, &e))?;
    write(&new)?;
    sync_tree(&new)?;
    sync(&neighbour.path)?;
    Ok(can_exchange)
}

fn cannot_exchange(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
}

fn same_folder(open: &File, path: &Path) -> bool {
    match (open.metadata(), fs::metadata(path)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Syncs every file below `dir`, then the folders, inner ones first.
fn sync_tree(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).map_err(|e| Error::io("read", dir, &e))? {
        let entry = entry.map_err(|e| Error::io("read", dir, &e))?;
        let kind = entry.file_type().map_err(|e| Error::io("read", &entry.path(), &e))?;
        match kind.is_dir() {
            true => sync_tree(&entry.path())?,
            false => sync(&entry.path())?,
        }
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<()> {
    sys(|| File::open(path)?.sync_all()).map_err(|e| Error::io("sync", path, &e))
}

fn remove(dir: &Path) -> io::Result<()> {
    sys(|| fs::remove_dir_all(dir))
}

/// Every call that changes a disk goes through here, so that tests can fail or stop at each.
fn sys<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    #[cfg(test)]
    tests::before_call()?;
    call()
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)] // the standard library has no renameat2
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    #[cfg(test)]
    tests::before_exchange()?;
    let (a, b) = (CString::new(a.as_os_str().as_bytes())?, CString::new(b.as_os_str().as_bytes())?);
    // SAFETY: both are NUL-terminated and live until the call returns; AT_FDCWD makes the paths ordinary ones.
    let rc = unsafe { libc::renameat2(libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), libc::RENAME_EXCHANGE) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(libc::ENOSYS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Code;
    use std::cell::Cell;

    /// What happens at the n-th call from now, on this thread.
    #[derive(Clone, Copy, PartialEq)]
    enum Fault {
        /// The call fails, later ones work.
        Fail(usize),
        /// The process ends before the call (here: a panic; nothing in this file cleans up in a destructor).
        Kill(usize),
    }

    thread_local! {
        static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
        static NO_EXCHANGE: Cell<bool> = const { Cell::new(false) };
    }

    pub(super) fn before_call() -> io::Result<()> {
        let (now, later) = match FAULT.get() {
            None => return Ok(()),
            Some(Fault::Fail(n)) => (n == 0, n.checked_sub(1).map(Fault::Fail)),
            Some(Fault::Kill(n)) => (n == 0, n.checked_sub(1).map(Fault::Kill)),
        };
        match (now, FAULT.replace(later)) {
            (true, Some(Fault::Kill(_))) => std::panic::panic_any("killed"),
            (true, _) => Err(io::Error::from_raw_os_error(libc::EIO)),
            (false, _) => Ok(()),
        }
    }

    pub(super) fn before_exchange() -> io::Result<()> {
        if NO_EXCHANGE.get() { Err(io::Error::from_raw_os_error(libc::EINVAL)) } else { Ok(()) }
    }

    /// In memory where the system has such a file system: thousands of syncs take seconds on a disk.
    fn scratch() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    /// Writes two files and a folder with a third; each write is a call that can fail or be the last.
    fn save(target: &Path, value: &str) -> Result<()> {
        replace(target, |dir| {
            fs::create_dir(dir.join("inner")).unwrap();
            for name in ["adapter_config.json", "weights", "inner/state"] {
                sys(|| fs::write(dir.join(name), value)).map_err(|e| Error::io("write", &dir.join(name), &e))?;
            }
            Ok(())
        })
    }

    /// The value that all files of a whole folder hold.
    fn saved(target: &Path) -> String {
        let read = |name: &str| fs::read_to_string(target.join(name)).unwrap();
        let value = read("weights");
        assert!(read("adapter_config.json") == value && read("inner/state") == value, "a mixture");
        assert_eq!(fs::read_dir(target).unwrap().count(), 3, "something else is in it");
        value
    }

    fn neighbours(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().flatten().filter(|e| e.file_name().to_str().unwrap().contains(".swap-")).count()
    }

    /// Runs `save` with a fault at every call in turn, until one run meets none. Returns how many calls there were.
    fn at_every_call(start: Option<&str>, fault: fn(usize) -> Fault, live_neighbours: usize) -> usize {
        for n in 0.. {
            let dir = scratch();
            let target = dir.path().join("a");
            start.iter().for_each(|old| save(&target, old).unwrap());
            FAULT.set(Some(fault(n)));
            let result = std::panic::catch_unwind(|| save(&target, "new"));
            let met = FAULT.replace(None).is_none();
            match start {
                None if !target.exists() => assert!(!matches!(result, Ok(Ok(()))), "call {n}"),
                _ => assert!(["new", start.unwrap_or("new")].contains(&saved(&target).as_str()), "call {n}"),
            }
            if matches!(result, Ok(Ok(()))) {
                assert_eq!(saved(&target), "new", "call {n}");
            }
            save(&target, "next").unwrap();
            assert_eq!((saved(&target).as_str(), neighbours(dir.path())), ("next", live_neighbours), "call {n}");
            if !met {
                return n;
            }
        }
        unreachable!()
    }

    #[test]
    fn a_kill_at_any_call_leaves_the_old_folder_or_the_new_one() {
        assert!(at_every_call(Some("old"), Fault::Kill, 0) > 10);
        assert!(at_every_call(None, Fault::Kill, 0) > 10);
    }

    #[test]
    fn a_failure_of_any_call_leaves_the_old_folder_or_the_new_one() {
        assert!(at_every_call(Some("old"), Fault::Fail, 0) > 10);
        assert!(at_every_call(None, Fault::Fail, 0) > 10);
    }

    #[test]
    fn without_exchange_a_link_does_the_same() {
        NO_EXCHANGE.set(true);
        for fault in [Fault::Kill, Fault::Fail] {
            assert!(at_every_call(Some("old"), fault, 1) > 10);
            assert!(at_every_call(None, fault, 1) > 10);
        }
    }

    #[test]
    fn without_exchange_a_plain_folder_stays_and_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        save(&target, "old").unwrap();
        NO_EXCHANGE.set(true);
        let error = save(&target, "new").unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.text().contains("cannot exchange"), "{error}");
        assert_eq!((saved(&target).as_str(), neighbours(dir.path())), ("old", 0));
    }

    #[test]
    fn a_folder_with_other_files_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "years").unwrap();
        for target in [dir.path().to_owned(), dir.path().join("thesis.tex")] {
            assert_eq!(save(&target, "new").unwrap_err().code(), Code::InvalidArgument);
        }
        assert_eq!(fs::read_to_string(dir.path().join("thesis.tex")).unwrap(), "years");
    }

    #[test]
    fn a_link_of_the_users_stays_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        save(&real, "old").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        save(&link, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(saved(&real), "new");
    }

    #[test]
    fn a_save_in_progress_is_not_stale() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("a");
        replace(&target, |new| {
            fs::write(new.join("weights"), "outer").unwrap();
            save(&target, "inner").unwrap();
            assert_eq!(fs::read_to_string(new.join("weights")).unwrap(), "outer");
            fs::write(new.join("config.json"), "{}").map_err(|e| Error::io("write", new, &e))
        })
        .unwrap();
        assert_eq!(fs::read_to_string(target.join("weights")).unwrap(), "outer");
        assert_eq!(neighbours(dir.path()), 0);
    }

    #[test]
    fn what_write_returns_comes_back_and_parents_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("runs/1/a");
        let error = replace(&target, |_| Err(Error::invalid("no"))).unwrap_err();
        assert_eq!((error.text(), target.exists()), ("no", false));
        save(&target, "new").unwrap();
        assert_eq!(saved(&target), "new");
    }
}
