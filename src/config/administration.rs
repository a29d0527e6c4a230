//! What administration needs of the file: the token, the agent check, the state file.

use std::path::PathBuf;

use super::Secret;
use super::address::bind_address;
use super::listener::{SocketToBind, Speaks};
use super::model::{AgentCheck, AgentSubject};
use super::reload_unit::ReloadUnit;
use super::section::Section;

pub(super) fn token(http: &Section<'_>) -> Option<Secret> {
    let field = http.field("token_file")?;
    http.context().within(ReloadUnit::Token, || {
        let token = field.secret_file()?;
        if token.expose().iter().all(u8::is_ascii_graphic) {
            return Some(token);
        }
        field.fault("the token must be letters, digits and punctuation: it stands in a header");
        None
    })
}

pub(super) fn agent_check<'a>(http: &Section<'a>, places: &mut Vec<SocketToBind<'a>>) -> Option<AgentCheck> {
    let section = http.section("agent_check");
    if !section.present() {
        return None;
    }
    let words = [
        ("router", Some(AgentSubject::Router)),
        ("local_member", Some(AgentSubject::LocalMember)),
    ];
    let about = section.one_of("about", &words);
    let field = section.required("address")?;
    let address = bind_address(&field)?;
    places.push(SocketToBind::written(address.clone(), field, Speaks::AgentCheck));
    Some(AgentCheck {
        address,
        about: about?,
    })
}

/// The file itself need not be there; its directory must.
pub(super) fn state_file(root: &Section<'_>) -> Option<PathBuf> {
    let field = root.field("state_file")?;
    let path = field.path()?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    match directory.map(std::fs::metadata) {
        _ if path.file_name().is_none() || path.is_dir() => {
            field.fault(format!("{}: is not the name of a file", path.display()));
        }
        Some(Ok(metadata)) if !metadata.is_dir() => {
            field.fault(format!("{}: its directory is none", path.display()));
        }
        Some(Err(error)) => field.fault(format!(
            "{}: its directory cannot be used: {error}",
            path.display()
        )),
        Some(Ok(_)) | None => return Some(path),
    }
    None
}
