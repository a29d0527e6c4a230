//! The token, the agent check and the state file.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::super::*;
use super::{Files, MINIMAL};

fn with_http(keys: &str) -> String {
    format!("{MINIMAL}http: {{{keys}}}\n")
}

fn token(files: &Files, contents: &str, mode: u32) {
    let path = files.path("token");
    fs::write(&path, contents).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_token_is_a_secret_of_visible_characters() {
    let files = Files::new();
    assert_eq!(files.ok(MINIMAL).http.token, None);
    token(&files, "0123456789abcdef\n", 0o600);
    let text = with_http("token_file: token");
    let config = files.ok(&text);
    assert_eq!(config.http.token.as_ref().unwrap().expose(), b"0123456789abcdef");
    assert!(config.files().of(&ReloadUnit::Token).is_some(), "it is watched");
    assert!(!format!("{config:?}").contains("0123456789abcdef"));
    let reloaded = reread(&config);
    assert!(matches!(
        reloaded.units.get(&ReloadUnit::Token),
        Some(Ok(ReloadedUnit::Token(_)))
    ));
    for (contents, mode, expected) in [
        ("0123456789abcde", 0o600, "is shorter than 16 bytes"),
        ("0123456789abcdef", 0o604, "is open to every user"),
        ("0123456789 abcdef", 0o600, "sent in a header"),
        ("0123456789äbcdef", 0o600, "sent in a header"),
    ] {
        token(&files, contents, mode);
        files.one_error(&text, expected);
    }
}

#[test]
fn the_page_is_there_unless_it_is_switched_off() {
    let files = Files::new();
    assert!(files.ok(MINIMAL).http.ui);
    assert!(!files.ok(&with_http("ui: false")).http.ui);
    assert!(files.ok(&with_http("ui: true")).http.ui);
    files.one_error(&with_http("ui: maybe"), "expected true or false");
}

#[test]
fn the_agent_check_has_an_address_of_its_own() {
    let files = Files::new();
    assert_eq!(files.ok(MINIMAL).http.agent_check, None);
    let check = |keys: &str| {
        let text = with_http(&format!("agent_check: {{{keys}}}"));
        files.ok(&text).http.agent_check.unwrap()
    };
    let usual = check("address: \"*:6435\"");
    assert_eq!(
        (usual.address.to_string().as_str(), usual.about),
        ("*:6435", AgentSubject::Router)
    );
    let member = check("address: \"*:6435\", about: local_member");
    assert_eq!(member.about, AgentSubject::LocalMember);
    for (keys, expected) in [
        ("{}", "`address` is missing"),
        ("{address: \"*:6434\"}", "overlaps"),
        (
            "{address: \"*:6435\", about: member}",
            "expected `router` or `local_member`",
        ),
    ] {
        files.one_error(&with_http(&format!("agent_check: {keys}")), expected);
    }
}

#[test]
fn a_control_socket_without_its_directory_is_a_warning() {
    let files = Files::new();
    let with = |path: PathBuf| format!("{MINIMAL}control_socket: {}\n", path.display());
    let found = |text: &str| {
        let warnings = files.ok(text).warnings();
        warnings
            .iter()
            .any(|warning| warning.contains("does not start without it"))
    };
    assert!(!found(&with(files.path("control.sock"))));
    // A service manager may create the directory later, so this is no error.
    assert!(found(&with(files.path("gone").join("control.sock"))));
}

#[test]
fn the_state_file_may_be_new_its_directory_not() {
    let files = Files::new();
    assert_eq!(files.ok(MINIMAL).state_file, None);
    let with = |name: &str| format!("{MINIMAL}state_file: {name}\n");
    assert_eq!(
        files.ok(&with("state.json")).state_file,
        Some(files.path("state.json"))
    );
    files.one_error(&with("missing/state.json"), "its directory cannot be used");
    files.one_error(&with("\".\""), "is not the name of a file");
}
