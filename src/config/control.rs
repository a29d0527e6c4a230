//! `control_socket`.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::schema::kind::LONGEST_SOCKET_PATH;
use super::section::Section;

pub(super) fn socket(root: &Section<'_>) -> Option<PathBuf> {
    let field = root.field("control_socket")?;
    let path = PathBuf::from(field.text()?);
    if !path.is_absolute() || path.as_os_str().as_bytes().len() > LONGEST_SOCKET_PATH {
        field.fault(format!(
            "is not an absolute path of at most {LONGEST_SOCKET_PATH} bytes"
        ));
        return None;
    }
    Some(path)
}
