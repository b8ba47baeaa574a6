//! Files that are written when the work is done: whether they can be is asked before it begins.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

/// Whether `file` can be written, found out before work whose result it is to hold. What is there stays as it is.
///
/// # Errors
/// Those of writing it.
pub fn check(file: &Path) -> io::Result<()> {
    match fs::metadata(file) {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if found.is_file() => OpenOptions::new().write(true).open(file).map(drop),
        // Who reads a pipe would take a second opening for the end.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(file),
        Err(error) => Err(error),
    }
}

/// Only an attempt tells whether a file can be made there.
fn create(file: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).create_new(true).open(file) {
        Ok(_) => fs::remove_file(file),
        // A link to nothing yet, or somebody was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn what_can_be_written_is_left_alone() {
        let folder = std::env::temp_dir().join(format!("quire-output-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("file");
        check(&file).unwrap();
        assert!(!file.exists());
        std::fs::write(&file, "old").unwrap();
        check(&file).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"old");
        assert!(check(&folder).is_err());
        assert!(check(&file.join("below")).is_err());
        assert!(check(&folder.join("missing/file")).is_err());
        std::fs::remove_dir_all(folder).unwrap();
        check("/dev/null".as_ref()).unwrap();
    }
}
