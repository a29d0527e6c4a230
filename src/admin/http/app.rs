//! What the handlers share: the state that every request reads, its query, and the member it is
//! about.

use axum::extract::Query;
use axum::http::{StatusCode, Uri};
use tokio::sync::watch;

use super::super::handles::{ClusterView, Handles};
use super::super::live::Live;
use super::super::local::Local;
use super::super::words::there_are;
use super::answer::JsonAnswer;
use super::guard::Guard;
use crate::cluster::snapshot::{Member, Snapshot};

/// What every request reads.
#[derive(Debug)]
pub(super) struct App {
    pub(super) handles: Handles,
    /// One per cluster, in the same order.
    pub(super) locals: Vec<watch::Receiver<Local>>,
    pub(super) guard: Guard,
    pub(super) live: Live,
}

/// The query of a request: the first value of a name counts, as with Patroni.
#[derive(Debug, Default)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn of(uri: &Uri) -> Self {
        Self(
            Query::try_from_uri(uri)
                .map(|Query(pairs)| pairs)
                .unwrap_or_default(),
        )
    }

    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// `?since=N`: the number of the last event, point or the like that the caller has; 0 without
    /// it.
    pub(super) fn since(&self, what: &str) -> Result<u64, JsonAnswer> {
        let Some(since) = self.first("since") else {
            return Ok(0);
        };
        since.parse().map_err(|_| {
            JsonAnswer::problem(
                StatusCode::BAD_REQUEST,
                "`since` is not a number",
                &format!("send the `number` of the last {what} that you have, or leave `since` out"),
            )
        })
    }

    /// `?name`, `?name=1`, `?name=true`.
    pub(super) fn is_set(&self, name: &str) -> bool {
        matches!(self.first(name), Some("" | "1" | "true" | "on" | "yes"))
    }
}

/// The member asked about, in the snapshot that is answered from.
pub(super) enum Subject<'a> {
    Member(&'a Member),
    /// Answered with 503: it may come.
    NotYet(&'static str),
    /// Answered with 404: the question is wrong.
    Missing(&'static str),
}

impl App {
    /// The cluster asked about, with its place; the answer to give where there is none of that
    /// name.
    pub(super) fn cluster(&self, params: &Params) -> Result<(usize, &ClusterView), JsonAnswer> {
        let clusters = &self.handles.clusters;
        let found = match params.first("cluster") {
            None => clusters.first().map(|first| (0, first)),
            Some(name) => clusters.iter().enumerate().find(|(_, view)| *view.name == *name),
        };
        found.ok_or_else(|| {
            let names = there_are(clusters.iter().map(|view| &*view.name));
            JsonAnswer::not_found(
                "there is no cluster of this name; the names are in the header X-Trunkline-Reason",
            )
            .because(format!("there is no cluster of this name; {names}"))
        })
    }

    /// The member this copy runs beside.
    pub(super) fn local<'s>(&self, cluster: usize, snapshot: &'s Snapshot) -> Subject<'s> {
        let local = self.locals[cluster].borrow();
        match &*local {
            Local::Member(name) => match snapshot.member(name) {
                Some(member) => Subject::Member(member),
                None if snapshot.members.is_empty() => Subject::NotYet("no members are known yet"),
                None => Subject::Missing(local.hint()),
            },
            Local::NotYetKnown => Subject::NotYet(local.hint()),
            Local::Off | Local::NoneHere | Local::SeveralHere => Subject::Missing(local.hint()),
        }
    }
}
