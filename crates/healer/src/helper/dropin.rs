//! Drop-ins that tell units a port until the next boot.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where systemd reads drop-ins that do not outlive the machine's run.
pub(super) const RUNTIME: &str = "/run/systemd/system";
/// The file that tells a unit its port.
const OWN_PORT: &str = "50-lares-port.conf";

/// Whether a unit is where the helper moved it to: nobody has taken that back since, and the machine was not restarted.
pub(crate) fn is_moved(unit: &str) -> bool {
    Path::new(RUNTIME).join(format!("{unit}.d")).join(OWN_PORT).exists()
}

/// One drop-in: one variable of one unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DropIn {
    /// The unit that gets it.
    pub(super) unit: String,
    /// Name of the file.
    file: String,
    /// The variable.
    pub(super) variable: String,
    /// Its value.
    port: u16,
}

impl DropIn {
    /// Tells a unit its own port.
    pub(super) fn of(unit: &str, variable: &str, port: u16) -> Self {
        Self { unit: unit.into(), file: OWN_PORT.into(), variable: variable.into(), port }
    }

    /// Tells a unit the port of another one.
    pub(super) fn telling(unit: &str, of: &str, variable: &str, port: u16) -> Self {
        Self { unit: unit.into(), file: format!("50-lares-port-of-{of}.conf"), variable: variable.into(), port }
    }

    /// Whether the variable can be one: systemd reads what is written here as root.
    pub(super) fn is_sound(&self) -> bool {
        self.variable.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && self.variable.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    }

    /// The assignment as systemd shows it once it counts.
    pub(super) fn assignment(&self) -> String {
        format!("{}={}", self.variable, self.port)
    }

    fn directory(&self, root: &Path) -> PathBuf {
        root.join(format!("{}.d", self.unit))
    }

    fn path(&self, root: &Path) -> PathBuf {
        self.directory(root).join(&self.file)
    }

    /// A name that systemd does not read.
    fn draft(&self, root: &Path) -> PathBuf {
        self.directory(root).join(format!(".{}.new", self.file))
    }

    fn prepare(&self, root: &Path) -> io::Result<()> {
        let directory = self.directory(root);
        match fs::create_dir(&directory) {
            Ok(()) => fs::set_permissions(&directory, Permissions::from_mode(0o755))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let draft = self.draft(root);
        // Left by a helper that was killed.
        let _ = fs::remove_file(&draft);
        let mut file = File::create_new(&draft)?;
        writeln!(file, "[Service]\nEnvironment={}", self.assignment())?;
        // Whatever the umask is.
        file.set_permissions(Permissions::from_mode(0o644))
    }
}

/// Writes them all, or none: nothing is put into its place before everything is written.
pub(super) fn write(root: &Path, files: &[DropIn]) -> io::Result<()> {
    let put = || {
        files.iter().try_for_each(|file| file.prepare(root))?;
        files.iter().try_for_each(|file| fs::rename(file.draft(root), file.path(root)))
    };
    put().inspect_err(|_| {
        for file in files {
            let _ = fs::remove_file(file.draft(root));
        }
    })
}

/// Takes them away again.
pub(super) fn remove(root: &Path, files: &[DropIn]) {
    for file in files {
        let _ = fs::remove_file(file.path(root));
        // Only if nothing else is in it.
        let _ = fs::remove_dir(file.directory(root));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn both_sides_are_told_and_it_can_be_said_again() {
        let root = tempfile::tempdir().unwrap();
        for port in [9001, 9002] {
            let files = [
                DropIn::of("app.service", "PORT", port),
                DropIn::telling("web.service", "app.service", "APP_PORT", port),
            ];
            write(root.path(), &files).unwrap();
        }
        let own = root.path().join("app.service.d/50-lares-port.conf");
        assert_eq!(fs::read_to_string(&own).unwrap(), "[Service]\nEnvironment=PORT=9002\n");
        assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o7777, 0o644);
        let told = root.path().join("web.service.d");
        assert_eq!(fs::metadata(&told).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(names(&told), ["50-lares-port-of-app.service.conf"]);

        fs::write(root.path().join("web.service.d/mine.conf"), "").unwrap();
        let files =
            [DropIn::of("app.service", "PORT", 9002), DropIn::telling("web.service", "app.service", "APP_PORT", 9002)];
        remove(root.path(), &files);
        assert_eq!(names(root.path()), ["web.service.d"]);
        assert_eq!(names(&told), ["mine.conf"]);
    }

    #[test]
    fn nothing_is_in_place_when_not_everything_can_be_written() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("web.service.d"), "in the way").unwrap();
        let files =
            [DropIn::of("app.service", "PORT", 1), DropIn::telling("web.service", "app.service", "APP_PORT", 1)];
        assert!(write(root.path(), &files).is_err());
        assert!(names(&root.path().join("app.service.d")).is_empty());
    }
}
