//! `pg_ident.conf`: which system users may log in as which database users (PostgreSQL
//! documentation, "User Name Maps"). The syntax, the includes and the treatment of errors are those
//! of `pg_hba.conf`.
//!
//! A `\1` in a database user stands for the first group of the system user's regular expression.
//! Where the result could differ from PostgreSQL's, the line is refused.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use super::hba::regex::{Pattern, PatternError};
use super::hba::tokens::{self, Line};
use super::hba::{self, Files, HbaError, HbaErrorKind, Token};
use super::rules::{Holds, Known, Memberships, Need, UserMatch};

/// What the first column but one matches.
#[derive(Debug, Clone, PartialEq, Eq)]
enum SystemUser {
    Name(Bytes),
    Pattern(Pattern),
}

/// What the last column allows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum DatabaseUser {
    Fixed(UserMatch),
    /// The first group of the system user's expression between two texts; the result is a name,
    /// never a keyword.
    Group {
        before: Bytes,
        after: Bytes,
    },
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    path: Arc<Path>,
    line: u32,
    map: Bytes,
    system_user: SystemUser,
    database_user: DatabaseUser,
}

/// All maps, lines in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Maps {
    mappings: Vec<Mapping>,
}

/// Whether a system user may be a database user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    Yes,
    No,
    /// It depends on the database user's memberships.
    Needs(Need),
}

/// A file that has been read, and those it includes.
#[derive(Debug)]
pub struct IdentFile {
    lines: Vec<Result<Mapping, HbaError>>,
    watched: BTreeSet<PathBuf>,
}

/// One row of the view `pg_ident_file_mappings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentRow {
    /// From 1; none for a line with an error.
    pub map_number: Option<u32>,
    pub file_name: String,
    pub line_number: Option<u32>,
    pub map_name: Option<String>,
    pub sys_name: Option<String>,
    pub pg_username: Option<String>,
    pub error: Option<String>,
}

/// Reads a file and its includes, with limits on bytes, files and depth. Unlike `pg_hba.conf` it
/// may be empty.
pub fn read(files: &dyn Files, path: &Path) -> IdentFile {
    let tokens = tokens::read(files, path);
    IdentFile {
        lines: tokens.lines.iter().map(mapping).collect(),
        watched: tokens.watched,
    }
}

impl IdentFile {
    /// The files looked for, found or not, and the directories listed.
    pub fn watched(&self) -> &BTreeSet<PathBuf> {
        &self.watched
    }

    /// The maps, or every error.
    pub fn maps(self) -> Result<Maps, Vec<HbaError>> {
        let mut mappings = Vec::new();
        let mut errors = Vec::new();
        for line in self.lines {
            match line {
                Ok(mapping) => mappings.push(mapping),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(Maps { mappings })
        } else {
            Err(errors)
        }
    }

    /// As the view shows it; lines with errors too.
    pub fn rows(&self) -> Vec<IdentRow> {
        let mut number = 0;
        let rows = self.lines.iter().map(|line| match line {
            Ok(mapping) => {
                number += 1;
                mapping.row(number)
            }
            Err(error) => IdentRow {
                map_number: None,
                file_name: error.path.display().to_string(),
                line_number: (error.line > 0).then_some(error.line),
                map_name: None,
                sys_name: None,
                pg_username: None,
                error: Some(error.kind.to_string()),
            },
        });
        rows.collect()
    }
}

impl Maps {
    /// Whether a rule may name this map: one without lines allows no user.
    pub fn contains(&self, map: &[u8]) -> bool {
        self.mappings.iter().any(|mapping| mapping.map == map)
    }

    /// As the view `pg_ident_file_mappings` shows them.
    pub fn rows(&self) -> Vec<IdentRow> {
        let numbered = self.mappings.iter().zip(1..);
        numbered.map(|(mapping, number)| mapping.row(number)).collect()
    }

    /// Whether `system_user`, already authenticated, may log in as `database_user`. Without a map,
    /// or with the empty name for one, the two must be equal. `memberships` are those of
    /// `database_user`.
    pub fn check(
        &self,
        map: Option<&[u8]>,
        system_user: &[u8],
        database_user: &[u8],
        memberships: Option<&Memberships>,
    ) -> Allowed {
        let Some(map) = map.filter(|map| !map.is_empty()) else {
            return if system_user == database_user {
                Allowed::Yes
            } else {
                Allowed::No
            };
        };
        let known = Known {
            memberships,
            ..Known::default()
        };
        let mut result = Allowed::No;
        for mapping in self.mappings.iter().filter(|mapping| mapping.map == map) {
            match mapping.allows(system_user, database_user, &known) {
                Holds::Yes => return Allowed::Yes,
                Holds::No => {}
                Holds::Needs(need) => result = Allowed::Needs(need),
            }
        }
        result
    }
}

impl Mapping {
    fn allows(&self, system_user: &[u8], database_user: &[u8], known: &Known<'_>) -> Holds {
        let is_match = match &self.system_user {
            SystemUser::Name(name) => name == system_user,
            SystemUser::Pattern(pattern) => pattern.is_match(system_user),
        };
        if !is_match {
            return Holds::No;
        }
        match (&self.database_user, &self.system_user) {
            (DatabaseUser::Fixed(user), _) => user.holds(database_user, known),
            (DatabaseUser::Group { before, after }, SystemUser::Pattern(pattern)) => {
                let name = pattern
                    .group(system_user)
                    .map(|group| [before, group, &after[..]].concat());
                (name.as_deref() == Some(database_user)).into()
            }
            (DatabaseUser::Group { .. }, SystemUser::Name(_)) => Holds::No,
        }
    }

    fn row(&self, number: u32) -> IdentRow {
        let lossy = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        IdentRow {
            map_number: Some(number),
            file_name: self.path.display().to_string(),
            line_number: Some(self.line),
            map_name: Some(lossy(&self.map)),
            sys_name: Some(match &self.system_user {
                SystemUser::Name(name) => lossy(name),
                SystemUser::Pattern(pattern) => format!("/{}", lossy(pattern.source())),
            }),
            pg_username: Some(match &self.database_user {
                DatabaseUser::Fixed(user) => hba::rows::user(user),
                DatabaseUser::Group { before, after } => format!("{}\\1{}", lossy(before), lossy(after)),
            }),
            error: None,
        }
    }
}

fn mapping(line: &Line) -> Result<Mapping, HbaError> {
    match &line.fields {
        Ok(fields) => parse(fields, line).map_err(|kind| line.error(kind)),
        Err(kind) => Err(line.error(kind.clone())),
    }
}

/// Fields after the third are ignored, as in PostgreSQL.
fn parse(fields: &[Vec<Token>], line: &Line) -> Result<Mapping, HbaErrorKind> {
    let mut fields = fields.iter().map(Vec::as_slice);
    let mut field = |what| match fields.next() {
        Some([token]) => Ok(token),
        Some([]) | None => Err(HbaErrorKind::Missing(what)),
        Some(_) => Err(HbaErrorKind::Multiple(what)),
    };
    let map = field("map name")?;
    let system_user = field("system user")?;
    let database_user = field("database user")?;
    let system_user = match hba::pattern(&system_user.text)? {
        Some(pattern) => SystemUser::Pattern(pattern),
        None => SystemUser::Name(system_user.text.clone()),
    };
    let database_user = match (hba::user(database_user)?, &system_user) {
        (UserMatch::Name(name), SystemUser::Pattern(pattern)) => {
            grouped(name, pattern).map_err(HbaErrorKind::Group)?
        }
        (user, _) => DatabaseUser::Fixed(user),
    };
    Ok(Mapping {
        path: Arc::clone(&line.path),
        line: line.number,
        map: map.text.clone(),
        system_user,
        database_user,
    })
}

/// The first `\1` counts, no other.
fn grouped(name: Bytes, pattern: &Pattern) -> Result<DatabaseUser, PatternError> {
    let Some(at) = name.windows(2).position(|pair| pair == br"\1") else {
        return Ok(DatabaseUser::Fixed(UserMatch::Name(name)));
    };
    pattern.has_certain_group()?;
    Ok(DatabaseUser::Group {
        before: name.slice(..at),
        after: name.slice(at + 2..),
    })
}
