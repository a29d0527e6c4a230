//! What is on the screen, and what keys do: pure functions of the last look.

use super::asking::Look;
use super::rates::Rates;
use super::terminal::Key;
use crate::admin::{Activity, SessionView, lasting};
use crate::cli::screen::{Line, Mood};
use crate::cli::status::screen::members;
use crate::cli::status::verdict::{Verdict, Wellness};
use crate::cli::table::Table;
use crate::cli::tables::bytes;
use crate::cli::words::counted;

/// The longest filter.
const MOST_FILTER: usize = 100;
/// How far the page keys go.
const PAGE: usize = 10;

const KEYS: &str = "q quit  s sort  / filter  k kill  p pause  h help  arrows move  space look now";

const HELP: [&str; 17] = [
    "Keys of trunkline top",
    "",
    "  q, Ctrl-C    quit",
    "  arrows       move the mark; Page Up, Page Down, Home and End, too",
    "  s            sort sessions by activity, age, bytes per second, or waiting time",
    "  /            show only sessions with this text in client, user, database, route, member or state;",
    "               Enter keeps the filter, / edits it, Ctrl-U empties it, Esc ends it",
    "  k            kill the marked session, after a question; needs the token",
    "  p            pause: the screen stays as it is",
    "  space        look now",
    "  h, ?         this help",
    "",
    "Columns: XACT/S and BYTES/S are what happened since the look before, of sessions that are still there.",
    "HELD BACK is how many clients of a route wait until it serves them again.",
    "SERVER FOR is for how long a session has had its server connection, or waits for one.",
    "",
    "any key goes back",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Sort {
    #[default]
    Activity,
    Age,
    Bytes,
    Waiting,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Activity => Self::Age,
            Self::Age => Self::Bytes,
            Self::Bytes => Self::Waiting,
            Self::Waiting => Self::Activity,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Activity => "activity",
            Self::Age => "age",
            Self::Bytes => "bytes",
            Self::Waiting => "waiting",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    Look,
    /// A filter is being written.
    Filter,
    /// Asks whether to kill this session.
    Kill(u64, String),
    Help,
}

/// What follows from a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    Stay,
    Look,
    Quit,
    Kill(u64),
}

#[derive(Debug, Default)]
pub(super) struct View {
    mode: Mode,
    sort: Sort,
    filter: String,
    is_paused: bool,
    /// The marked session.
    marked: Option<u64>,
    message: Option<String>,
}

impl View {
    pub(super) fn is_paused(&self) -> bool {
        self.is_paused
    }

    pub(super) fn say(&mut self, message: String) {
        self.message = Some(message);
    }

    /// The mark stays on its session as long as it is there.
    pub(super) fn keep_within(&mut self, look: &Look) {
        let is_there = |id: u64| look.sessions.iter().any(|session| session.id == id);
        self.marked = self.marked.filter(|id| is_there(*id));
    }

    pub(super) fn key(&mut self, key: Key, look: &Look) -> Action {
        if key == Key::Interrupt {
            return Action::Quit;
        }
        match std::mem::take(&mut self.mode) {
            Mode::Help => Action::Stay,
            Mode::Kill(id, _) => {
                if matches!(key, Key::Char('y' | 'Y')) {
                    return Action::Kill(id);
                }
                self.message = Some("nothing is killed".to_owned());
                Action::Stay
            }
            Mode::Filter => {
                match key {
                    Key::Enter => {}
                    Key::Escape => self.filter.clear(),
                    Key::Backspace => {
                        self.filter.pop();
                        self.mode = Mode::Filter;
                    }
                    Key::Empty => {
                        self.filter.clear();
                        self.mode = Mode::Filter;
                    }
                    Key::Char(c) if self.filter.len() < MOST_FILTER => {
                        self.filter.push(c);
                        self.mode = Mode::Filter;
                    }
                    _ => self.mode = Mode::Filter,
                }
                Action::Stay
            }
            Mode::Look => self.order(key, look),
        }
    }

    fn order(&mut self, key: Key, look: &Look) -> Action {
        self.message = None;
        match key {
            Key::Char('q') => return Action::Quit,
            Key::Char(' ') => return Action::Look,
            Key::Char('s') => self.sort = self.sort.next(),
            Key::Char('/') => self.mode = Mode::Filter,
            Key::Char('p') => self.is_paused = !self.is_paused,
            Key::Char('h' | '?') => self.mode = Mode::Help,
            Key::Escape => self.filter.clear(),
            Key::Char('k') => match self.marked_session(look) {
                Some(session) => {
                    let whose = format!("{} from {}, {}", session.user, session.client, session.database);
                    self.mode = Mode::Kill(session.id, whose);
                }
                None => self.message = Some("mark a session with the arrow keys first".to_owned()),
            },
            Key::Up => self.move_mark(look, |at, _| at.saturating_sub(1)),
            Key::Down => self.move_mark(look, |at, last| (at + 1).min(last)),
            Key::PageUp => self.move_mark(look, |at, _| at.saturating_sub(PAGE)),
            Key::PageDown => self.move_mark(look, |at, last| (at + PAGE).min(last)),
            Key::Home => self.move_mark(look, |_, _| 0),
            Key::End => self.move_mark(look, |_, last| last),
            _ => {}
        }
        Action::Stay
    }

    fn marked_session<'l>(&self, look: &'l Look) -> Option<&'l SessionView> {
        let marked = self.marked?;
        // Nobody kills what the filter hides.
        let shown = self.sessions(look, &Rates::default());
        shown.into_iter().find(|session| session.id == marked)
    }

    /// By place in the list; the first key marks the first session.
    fn move_mark(&mut self, look: &Look, to: impl Fn(usize, usize) -> usize) {
        // The rates do not change between two looks, and hardly the order.
        let shown = self.sessions(look, &Rates::default());
        let Some(last) = shown.len().checked_sub(1) else {
            return;
        };
        let at = self
            .marked
            .and_then(|id| shown.iter().position(|session| session.id == id));
        let at = at.map_or(0, |at| to(at, last));
        self.marked = Some(shown[at].id);
    }

    /// Those that the filter lets through, in order.
    fn sessions<'l>(&self, look: &'l Look, rates: &Rates) -> Vec<&'l SessionView> {
        let wanted = self.filter.to_lowercase();
        let has = |session: &&SessionView| {
            let state = session.state.to_string();
            let texts = [
                &session.client,
                &session.user,
                &session.database,
                &session.route,
                &session.member,
                &state,
                &session.phase,
            ];
            wanted.is_empty() || texts.iter().any(|text| text.to_lowercase().contains(&wanted))
        };
        let mut shown: Vec<&SessionView> = look.sessions.iter().filter(has).collect();
        let bytes = |session: &SessionView| rates.session(session.id).bytes;
        let busy = |session: &SessionView| match session.state {
            Activity::Active => 2,
            Activity::IdleInTransaction => 1,
            Activity::Idle => 0,
        };
        shown.sort_by(|one, other| {
            let order = match self.sort {
                Sort::Activity => (busy(other), other.waiting_s, other.transactions).cmp(&(
                    busy(one),
                    one.waiting_s,
                    one.transactions,
                )),
                Sort::Age => other.age_s.cmp(&one.age_s),
                Sort::Bytes => bytes(other).total_cmp(&bytes(one)),
                Sort::Waiting => other.waiting_s.cmp(&one.waiting_s),
            };
            order.then(one.id.cmp(&other.id))
        });
        shown
    }

    /// `lost`: said instead of the first line.
    pub(super) fn lines(
        &self,
        look: &Look,
        rates: &Rates,
        lost: Option<&Line>,
        size: (usize, usize),
    ) -> Vec<Line> {
        let (_, height) = size;
        if self.mode == Mode::Help {
            return HELP.iter().map(|text| Line::plain(text)).take(height).collect();
        }
        let mut lines = vec![lost.cloned().unwrap_or_else(|| headline(look))];
        for cluster in &look.seen.clusters {
            lines.push(Line::new(
                Mood::Strong,
                &format!("cluster {}", cluster.about.name),
            ));
            lines.extend(members(&cluster.members));
        }
        lines.extend(routes(look, rates));
        let shown = self.sessions(look, rates);
        lines.push(self.bar(look, shown.len()));
        // The last line is for questions and keys.
        let room = height.saturating_sub(lines.len() + 2);
        let at = self
            .marked
            .and_then(|id| shown.iter().position(|session| session.id == id));
        let first = at.map_or(0, |at| (at + 1).saturating_sub(room.max(1)));
        lines.extend(self.session_lines(&shown, first, room, rates));
        lines.truncate(height.saturating_sub(1));
        lines.push(self.last_line());
        lines
    }

    fn bar(&self, look: &Look, shown: usize) -> Line {
        let filter = if self.filter.is_empty() && self.mode != Mode::Filter {
            String::new()
        } else {
            format!(", {shown} with \"{}\"", self.filter)
        };
        let paused = if self.is_paused {
            ", PAUSED (p goes on)"
        } else {
            ""
        };
        let text = format!(
            "{}{filter}, by {}{paused}",
            counted(look.sessions.len(), "session"),
            self.sort.word()
        );
        Line::new(Mood::Strong, &text)
    }

    fn session_lines(&self, shown: &[&SessionView], first: usize, room: usize, rates: &Rates) -> Vec<Line> {
        let headings = [
            "  ID",
            "CLIENT",
            "USER",
            "DATABASE",
            "ROUTE",
            "MEMBER",
            "STATE",
            "SERVER FOR",
            "AGE",
            "XACT/S",
            "BYTES/S",
        ];
        let mut table = Table::new(&headings).right(&["  ID", "SERVER FOR", "AGE", "XACT/S", "BYTES/S"]);
        let page = shown.iter().skip(first).take(room);
        for session in page.clone() {
            let rate = rates.session(session.id);
            let mark = if self.marked == Some(session.id) {
                "> "
            } else {
                "  "
            };
            table.row(vec![
                format!("{mark}{}", session.id),
                session.client.clone(),
                session.user.clone(),
                session.database.clone(),
                session.route.clone(),
                or_dash(&session.member),
                session.state.to_string(),
                match (session.waiting_s, session.held_s) {
                    (Some(waits), _) => format!("waits {}", lasting(waits)),
                    (None, Some(held)) => lasting(held),
                    (None, None) => "-".to_owned(),
                },
                lasting(session.age_s),
                format!("{:.1}", rate.transactions),
                rounded(rate.bytes),
            ]);
        }
        let moods = page.map(|session| match session.state {
            _ if self.marked == Some(session.id) => Mood::Strong,
            _ if session.waiting_s.is_some() => Mood::Warning,
            Activity::Active => Mood::Good,
            Activity::IdleInTransaction => Mood::Warning,
            Activity::Idle => Mood::Plain,
        });
        let text = table.text();
        let moods = std::iter::once(Mood::Plain).chain(moods);
        text.lines()
            .zip(moods)
            .map(|(text, mood)| Line::new(mood, text))
            .collect()
    }

    fn last_line(&self) -> Line {
        match (&self.mode, &self.message) {
            (Mode::Kill(id, whose), _) => {
                Line::new(Mood::Bad, &format!("kill session {id} of {whose}? y or n"))
            }
            (Mode::Filter, _) => Line::new(
                Mood::Strong,
                &format!(
                    "/{}_  (Enter keeps it, Ctrl-U empties it, Esc ends it)",
                    self.filter
                ),
            ),
            (_, Some(message)) => Line::new(Mood::Warning, message),
            (_, None) => Line::plain(KEYS),
        }
    }
}

fn headline(look: &Look) -> Line {
    let verdict = Verdict::of(&look.seen);
    let mood = match verdict.wellness() {
        Wellness::Well => Mood::Good,
        Wellness::Degraded => Mood::Warning,
        Wellness::NoService => Mood::Bad,
    };
    Line::new(mood, &verdict.sentence())
}

fn routes(look: &Look, rates: &Rates) -> Vec<Line> {
    let headings = [
        "  ROUTE",
        "STATE",
        "SERVED BY",
        "SESSIONS",
        "POOL",
        "XACT/S",
        "BYTES/S",
        "HELD BACK",
    ];
    let mut table = Table::new(&headings).right(&["SESSIONS", "XACT/S", "BYTES/S", "HELD BACK"]);
    for route in &look.seen.routes {
        let rate = rates.route(&route.name);
        table.row(vec![
            format!("  {}", route.name),
            if route.paused_s.is_some() {
                "paused".to_owned()
            } else {
                route.admin.clone()
            },
            if route.members.is_empty() {
                "nobody".to_owned()
            } else {
                route.members.join(",")
            },
            route.sessions.to_string(),
            route.pool.clone(),
            format!("{:.1}", rate.transactions),
            rounded(rate.bytes),
            route
                .hold
                .as_ref()
                .map_or_else(|| "-".to_owned(), |hold| hold.clients.to_string()),
        ]);
    }
    let mut lines = vec![Line::new(Mood::Strong, "routes")];
    lines.extend(table.text().lines().map(Line::plain));
    lines
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for a person"
)]
fn rounded(rate: f64) -> String {
    bytes(rate as u64)
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::cli::status::scene::{session, sound};

    const SIZE: (usize, usize) = (80, 24);

    fn look() -> Look {
        Look {
            at: Instant::now(),
            seen: sound(),
            sessions: vec![
                session(1, "idle", 500, 9, 0),
                session(2, "active", 3, 1, 0),
                session(3, "idle in transaction", 40, 2, 0),
            ],
        }
    }

    fn text(view: &View, look: &Look) -> String {
        let lines = view.lines(look, &Rates::default(), None, SIZE);
        assert!(lines.len() <= SIZE.1, "{}", lines.len());
        let lines: Vec<String> = lines.into_iter().map(|line| line.text).collect();
        lines.join("\n")
    }

    fn order(view: &View, look: &Look) -> Vec<u64> {
        view.sessions(look, &Rates::default())
            .iter()
            .map(|session| session.id)
            .collect()
    }

    fn press(view: &mut View, look: &Look, keys: &str) -> Action {
        let mut last = Action::Stay;
        for key in keys.chars() {
            last = view.key(
                match key {
                    '<' => Key::Escape,
                    '\n' => Key::Enter,
                    'v' => Key::Down,
                    '^' => Key::Up,
                    key => Key::Char(key),
                },
                look,
            );
        }
        last
    }

    #[test]
    fn sessions_are_sorted_and_filtered() {
        let (mut view, look) = (View::default(), look());
        assert_eq!(
            order(&view, &look),
            [2, 3, 1],
            "those that do something come first"
        );
        press(&mut view, &look, "s");
        assert_eq!(order(&view, &look), [1, 3, 2], "by age");
        press(&mut view, &look, "/10.0.0.9:3\n");
        assert_eq!(order(&view, &look), [3]);
        assert!(text(&view, &look).contains("3 sessions, 1 with \"10.0.0.9:3\", by age"));
        // A kept filter is edited, emptied, and ended.
        press(&mut view, &look, "/");
        assert!(
            text(&view, &look).contains("/10.0.0.9:3_  (Enter keeps it, Ctrl-U empties it, Esc ends it)")
        );
        view.key(Key::Backspace, &look);
        press(&mut view, &look, "2\n");
        assert_eq!(order(&view, &look), [2]);
        press(&mut view, &look, "/");
        view.key(Key::Empty, &look);
        press(&mut view, &look, "10.0.0.9:1\n");
        assert_eq!(order(&view, &look), [1]);
        press(&mut view, &look, "/<");
        assert_eq!(order(&view, &look).len(), 3);
        press(&mut view, &look, "/3\n<");
        assert_eq!(order(&view, &look).len(), 3, "also without editing it");
        press(&mut view, &look, "/q");
        assert_eq!(
            press(&mut view, &look, "q"),
            Action::Stay,
            "a letter of the filter quits nothing"
        );
    }

    #[test]
    fn one_heading_has_one_meaning() {
        let (view, look) = (View::default(), look());
        let text = text(&view, &look);
        assert!(!text.contains("HELD  ") && !text.contains("HELD\n"), "{text}");
        assert!(
            text.contains("HELD BACK") && text.contains("SERVER FOR"),
            "{text}"
        );
        let help = HELP.join("\n");
        for heading in ["HELD BACK", "SERVER FOR", "XACT/S", "BYTES/S"] {
            assert!(help.contains(heading), "{heading}");
        }
    }

    #[test]
    fn nothing_is_killed_without_a_mark_and_a_yes() {
        let (mut view, mut look) = (View::default(), look());
        assert_eq!(press(&mut view, &look, "ky"), Action::Stay);
        press(&mut view, &look, "vv^");
        assert!(text(&view, &look).contains("> 2"), "{}", text(&view, &look));
        press(&mut view, &look, "k");
        assert!(text(&view, &look).contains("kill session 2 of app from 10.0.0.9:2, app? y or n"));
        assert_eq!(press(&mut view, &look, "n"), Action::Stay);
        assert_eq!(press(&mut view, &look, "ky"), Action::Kill(2));
        press(&mut view, &look, "k");
        look.sessions.retain(|session| session.id != 2);
        view.keep_within(&look);
        assert_eq!(
            press(&mut view, &look, "y"),
            Action::Kill(2),
            "the question named it"
        );
        assert_eq!(
            press(&mut view, &look, "ky"),
            Action::Stay,
            "the mark is gone with its session"
        );
    }

    #[test]
    fn keys_that_change_what_is_looked_at() {
        let (mut view, look) = (View::default(), look());
        assert_eq!(press(&mut view, &look, " "), Action::Look);
        press(&mut view, &look, "p");
        assert!(view.is_paused() && text(&view, &look).contains("PAUSED"));
        press(&mut view, &look, "h");
        assert!(text(&view, &look).starts_with("Keys of trunkline top"));
        assert_eq!(
            press(&mut view, &look, "q"),
            Action::Stay,
            "any key leaves the help"
        );
        assert_eq!(press(&mut view, &look, "q"), Action::Quit);
        assert_eq!(view.key(Key::Interrupt, &look), Action::Quit);
    }

    #[test]
    fn a_small_terminal_and_many_sessions_are_kept_within_its_lines() {
        let (mut view, mut look) = (View::default(), look());
        look.sessions = (0..5000).map(|id| session(id, "idle", 1, 0, 0)).collect();
        view.key(Key::Down, &look);
        view.key(Key::End, &look);
        let marked = view.marked.expect("the last one");
        assert!(
            text(&view, &look).contains(&format!("> {marked}")),
            "the mark is on the screen"
        );
        for height in 0..30 {
            let lines = view.lines(&look, &Rates::default(), None, (10, height));
            assert!(lines.len() <= height.max(1), "{height}: {}", lines.len());
        }
    }
}
