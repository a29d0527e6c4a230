//! Where the router runs, or will run: its user, its process, its unit.

use std::ffi::CString;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist, getgroups};

use super::unit::Unit;
use crate::admin::RouterView;
use crate::cli::administer::understood;
use crate::cli::remote::Remote;
use crate::cluster::examine::Finding;
use crate::config::Config;

/// A running router answers in less.
const ANSWER: Duration = Duration::from_secs(2);

pub(super) struct Place {
    pub(super) user: Account,
    /// The process that serves by this configuration.
    pub(super) running: Option<u32>,
    pub(super) unit: Option<Unit>,
    /// Why a unit that was found does not count.
    other_unit: Option<String>,
    /// Where the user is known from.
    by: &'static str,
}

/// A user, and the groups whose files it may use.
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    groups: Vec<u32>,
}

impl Account {
    fn of(user: &User) -> Self {
        let name = CString::new(user.name.as_str()).unwrap_or_default();
        let groups = getgrouplist(&name, user.gid).unwrap_or_else(|_| vec![user.gid]);
        Self {
            name: user.name.clone(),
            uid: user.uid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
        }
    }

    fn own() -> Self {
        let uid = geteuid();
        let groups = getgroups().unwrap_or_default();
        let named = User::from_uid(uid).ok().flatten();
        named.as_ref().map_or_else(
            || Self {
                name: uid.to_string(),
                uid: uid.as_raw(),
                groups: groups.into_iter().map(Gid::as_raw).collect(),
            },
            Self::of,
        )
    }

    pub(super) fn is_root(&self) -> bool {
        self.uid == 0
    }

    /// Whether the mode of a file or directory gives all of `bits` (4, 2, 1). Access lists are not
    /// looked at.
    pub(super) fn may(&self, metadata: &std::fs::Metadata, bits: u32) -> bool {
        let shift = if metadata.uid() == self.uid {
            6
        } else if self.groups.contains(&metadata.gid()) {
            3
        } else {
            0
        };
        self.is_root() || metadata.mode() >> shift & bits == bits
    }

    /// The first thing on the way to `path` that this user may not pass, or the file itself.
    pub(super) fn obstacle<'p>(&self, path: &'p Path, bits: u32) -> Option<&'p Path> {
        let directories = path
            .ancestors()
            .skip(1)
            .filter(|parent| !parent.as_os_str().is_empty());
        let mut closed = directories
            .filter(|parent| std::fs::metadata(parent).is_ok_and(|metadata| !self.may(&metadata, 1)));
        let way = closed.next();
        way.or_else(|| {
            let metadata = std::fs::metadata(path).ok()?;
            (!self.may(&metadata, bits)).then_some(path)
        })
    }
}

impl Place {
    /// # Errors
    /// There is no such user, or the unit cannot be read.
    pub(super) fn find(config: &Config, user: Option<&str>, unit: Option<&Path>) -> Result<Self, String> {
        let running = running(&config.path);
        let (unit, other_unit) = match unit {
            Some(path) => (Some(Unit::read(path)?), None),
            None => match Unit::installed() {
                Some(unit) if unit.starts(&config.path) => (Some(unit), None),
                Some(unit) => {
                    let why = format!(
                        "{} does not start the router with this configuration",
                        unit.path.display()
                    );
                    (None, Some(why))
                }
                None => (None, None),
            },
        };
        let named = |name: &str| {
            let found = User::from_name(name).ok().flatten();
            found.ok_or_else(|| format!("there is no user {name} on this host (give another --user)"))
        };
        let of_process = running.and_then(|pid| {
            let process = std::fs::metadata(format!("/proc/{pid}")).ok()?;
            User::from_uid(Uid::from_raw(process.uid())).ok().flatten()
        });
        let of_unit = unit.as_ref().and_then(|unit| unit.value("User"));
        let (user, by) = match (user, of_process, of_unit) {
            (Some(name), _, _) => (Account::of(&named(name)?), "as --user says"),
            (None, Some(user), _) => (Account::of(&user), "as the running router"),
            (None, None, Some(name)) => match named(name) {
                Ok(user) => (Account::of(&user), "as the unit says"),
                Err(_) => (
                    Account::own(),
                    "this command's: the unit's user does not exist yet",
                ),
            },
            (None, None, None) => (Account::own(), "this command's"),
        };
        Ok(Self {
            user,
            running,
            unit,
            other_unit,
            by,
        })
    }

    pub(super) fn finding(&self) -> Finding {
        let user = format!("user {}, {}", self.user.name, self.by);
        let found = match self.running {
            Some(pid) => format!("{user}; a router runs by this configuration, process {pid}"),
            None => format!("{user}; no router runs by this configuration"),
        };
        Finding::good("the router".to_owned(), found)
    }

    pub(super) fn unit_findings(&self, config: &Config) -> Vec<Finding> {
        match (&self.unit, &self.other_unit) {
            (Some(unit), _) => unit.findings(config),
            (None, Some(why)) => vec![Finding::untried("service of systemd".to_owned(), why.clone())],
            (None, None) => {
                let why = "no trunkline.service is installed";
                vec![Finding::untried("service of systemd".to_owned(), why)]
            }
        }
    }
}

/// The router that answers on the HTTP port of this configuration, if its process reads this file.
fn running(path: &Path) -> Option<u32> {
    let router = Remote::by_configuration(path).router_within(ANSWER).ok()?;
    let state: RouterView = understood(&router.look("/api/v1/router").ok()?).ok()?;
    let pid = state.process_id;
    // Another router's port may be in this file by mistake.
    match std::fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(command) => {
            let mut words = command.split(|byte| *byte == 0);
            let name = path.file_name()?.as_encoded_bytes();
            words.any(|word| word.ends_with(name)).then_some(pid)
        }
        Err(_) => None,
    }
}
