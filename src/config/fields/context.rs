//! What reading a configuration needs besides the tree, and where it reports errors.

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::config::error::ConfigError;
use crate::config::model::{Files, ReloadUnit};

/// What a conversion needs besides the tree, and where it reports.
pub(in crate::config) struct Context<'a> {
    pub(in crate::config) file: Arc<Path>,
    /// Relative file names start here.
    pub(in crate::config) directory: PathBuf,
    pub(in crate::config) environment: &'a dyn Fn(&str) -> Option<OsString>,
    /// Unix seconds.
    pub(in crate::config) now: i64,
    pub(in crate::config) provider: Arc<CryptoProvider>,
    /// What is being read: errors and files belong to it.
    pub(in crate::config) unit: RefCell<ReloadUnit>,
    pub(in crate::config) errors: RefCell<Vec<(ReloadUnit, ConfigError)>>,
    pub(in crate::config) files: RefCell<Files>,
    pub(in crate::config) warnings: RefCell<Vec<String>>,
}

impl<'a> Context<'a> {
    pub(in crate::config) fn new(
        path: &Path,
        now: i64,
        environment: &'a dyn Fn(&str) -> Option<OsString>,
    ) -> Self {
        Self {
            file: Arc::from(path),
            directory: path.parent().unwrap_or(Path::new("")).to_owned(),
            environment,
            now,
            provider: crate::tls::server_provider(),
            unit: RefCell::new(ReloadUnit::Rest),
            errors: RefCell::default(),
            files: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    pub(in crate::config) fn error(
        &self,
        path: &str,
        line: Option<usize>,
        message: String,
        hint: Option<String>,
    ) {
        let file = self.file.clone();
        let error = ConfigError {
            file,
            path: path.to_owned(),
            line,
            message,
            hint,
        };
        self.errors.borrow_mut().push((self.unit.borrow().clone(), error));
    }

    /// Reads a unit whose files are reloaded separately when they change.
    pub(in crate::config) fn within<T>(&self, unit: ReloadUnit, read: impl FnOnce() -> T) -> T {
        let before = self.unit.replace(unit);
        let value = read();
        self.unit.replace(before);
        value
    }

    /// A file is about to be read.
    pub(in crate::config) fn note_file(&self, path: &Path) {
        self.files.borrow_mut().record(self.unit.borrow().clone(), path);
    }

    pub(in crate::config) fn warn(&self, warning: String) {
        self.warnings.borrow_mut().push(warning);
    }
}
