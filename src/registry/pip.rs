//! The user's pip, as a program of its own.
//!
//! Python looks for modules in the folder it is started in, and in others that the environment names. A server is
//! started in folders that were downloaded, so pip runs in an empty folder and isolated from all of them: no file of
//! theirs is ever imported. Its own settings (`pip config`, `PIP_` variables, proxies) remain in force.

use std::fs::{self, File};
use std::path::{self, Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::verify::io_error;
use crate::error::{Error, Result};

/// How often pip is asked whether it has ended.
const POLL: Duration = Duration::from_millis(20);

/// The number of pip's last error lines to report; the reason is in the last ones.
const STDERR_LINES: usize = 6;

/// A run of pip.
pub struct Pip<'a> {
    /// The Python interpreter.
    pub python: &'a Path,
    /// How long pip may run.
    pub timeout: Duration,
    /// An empty folder, into which it downloads.
    pub folder: &'a Path,
    /// Fails if the download is to end.
    pub keep_on: &'a dyn Fn() -> Result<()>,
}

impl Pip<'_> {
    /// Downloads the wheel of a requirement such as `name==1.0`, without those it depends on.
    ///
    /// # Errors
    /// When Python or pip is missing, pip fails or takes too long, or the download is to end.
    pub fn download(&self, requirement: &str) -> Result<()> {
        // Not in the folder of downloads: nothing that is downloaded is ever in a folder that Python runs in.
        let work = tempfile::tempdir().map_err(|error| io_error("write", &std::env::temp_dir(), &error))?;
        let (errors, empty) = (work.path().join("errors"), work.path().join("empty"));
        let stderr = fs::create_dir(&empty)
            .and_then(|()| File::create(&errors))
            .map_err(|error| io_error("write", work.path(), &error))?;
        let cannot_run = |error: std::io::Error| {
            Error::registry(format!(
                "cannot run {}: {error}; install Python with pip, or set PYTHON to its path",
                self.python.display()
            ))
        };
        let mut child = Command::new(self.program()?)
            // Isolated: no folder of the working directory, the user or the environment is searched for modules.
            .args(["-I", "-m", "pip", "download", "--no-deps", "--only-binary=:all:"])
            .args(["--disable-pip-version-check", "--no-input", "--progress-bar=off", "-d"])
            .arg(path::absolute(self.folder).map_err(cannot_run)?)
            .arg(requirement)
            // The same for programs that pip may start.
            .env("PYTHONSAFEPATH", "1")
            .env("PYTHONNOUSERSITE", "1")
            .env_remove("PYTHONPATH")
            .env_remove("PYTHONHOME")
            .env_remove("PYTHONSTARTUP")
            .current_dir(&empty)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // A file, since a pipe that nobody reads would fill up.
            .stderr(stderr)
            .spawn()
            .map_err(cannot_run)?;
        let status = self.wait(&mut child)?.map_err(cannot_run)?.ok_or_else(|| {
            Error::registry(format!(
                "pip has not finished after {} s and was ended; check the network, or download the file to this \
                 machine and pass its path",
                self.timeout.as_secs()
            ))
        })?;
        if status.success() {
            return Ok(());
        }
        let errors = last_lines(&fs::read(&errors).unwrap_or_default());
        let remedy = if errors.contains("No module named pip") {
            "install pip for this Python itself, not for a user only, or set PYTHON to the path of another"
        } else {
            "if this machine needs a mirror or a proxy, set it with `pip config` or a PIP_ variable"
        };
        Err(Error::registry(format!("pip failed ({status}): {errors}; {remedy}")))
    }

    /// Waits until a program has ended; ends it and returns `None` if it takes too long.
    ///
    /// # Errors
    /// When the download is to end; the program is ended, too.
    fn wait(&self, child: &mut Child) -> Result<std::io::Result<Option<ExitStatus>>> {
        let started = Instant::now();
        loop {
            match child.try_wait() {
                Ok(None) => {}
                ended => return Ok(ended),
            }
            if started.elapsed() >= self.timeout {
                return Ok(end(child).map(|()| None));
            }
            if let Err(e) = (self.keep_on)() {
                // What matters to the caller is why.
                let _ = end(child);
                return Err(e);
            }
            thread::sleep(POLL);
        }
    }

    /// The interpreter, independent of the folder it is started in. A bare name is looked up in `PATH`.
    fn program(&self) -> Result<PathBuf> {
        if self.python.components().count() < 2 {
            return Ok(self.python.to_owned());
        }
        path::absolute(self.python).map_err(|error| io_error("find", self.python, &error))
    }
}

/// Ends a program.
fn end(child: &mut Child) -> std::io::Result<()> {
    child.kill()?;
    child.wait().map(drop)
}

/// The last lines of a program's error output, joined into one.
fn last_lines(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match &lines[lines.len().saturating_sub(STDERR_LINES)..] {
        [] => "no error output".to_owned(),
        last => last.join("; "),
    }
}
