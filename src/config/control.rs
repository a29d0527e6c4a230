//! `control_socket`.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::section::Section;

/// `sun_path` without its zero.
const MAX_PATH: usize = 107;

pub(super) fn socket(root: &Section<'_>) -> Option<PathBuf> {
    let field = root.field("control_socket")?;
    let path = PathBuf::from(field.text()?);
    if !path.is_absolute() || path.as_os_str().as_bytes().len() > MAX_PATH {
        field.fault(format!("is not an absolute path of at most {MAX_PATH} bytes"));
        return None;
    }
    Some(path)
}
