//! The idle connections of a pool to one member.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::time::Instant;

use super::connection::{PooledConnection, WorkerId};
use super::key::ConnectionKey;
use crate::session::stream::SessionStream;

/// Stacks that may be empty. An empty one is kept because connections come back to it at once.
const MOST_EMPTY: usize = 16;

/// By key and worker; of each, the one that was used last is used next.
#[derive(Debug)]
pub(super) struct Idle<S: SessionStream> {
    stacks: Vec<Stack<S>>,
    count: usize,
}

#[derive(Debug)]
struct Stack<S: SessionStream> {
    key: Arc<ConnectionKey>,
    worker: WorkerId,
    /// The longest idle one is first.
    connections: VecDeque<Box<PooledConnection<S>>>,
}

/// Where a walk over the connections has come to. Changes between two steps do no harm.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place {
    stack: usize,
    index: usize,
}

impl<S: SessionStream> Default for Idle<S> {
    fn default() -> Self {
        Self {
            stacks: Vec::new(),
            count: 0,
        }
    }
}

impl<S: SessionStream> Idle<S> {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn push(&mut self, connection: Box<PooledConnection<S>>) {
        self.count += 1;
        let (key, worker) = (&connection.key, connection.worker);
        let has_same = |stack: &&mut Stack<S>| Arc::ptr_eq(&stack.key, key) && stack.worker == worker;
        if let Some(stack) = self.stacks.iter_mut().find(has_same) {
            stack.connections.push_back(connection);
            return;
        }
        if self.stacks.len() >= MOST_EMPTY {
            self.stacks.retain(|stack| !stack.connections.is_empty());
        }
        self.stacks.push(Stack {
            key: Arc::clone(key),
            worker,
            connections: VecDeque::from([connection]),
        });
    }

    /// One of this key, if possible one that this worker drives.
    pub(super) fn take(
        &mut self,
        key: &Arc<ConnectionKey>,
        worker: WorkerId,
    ) -> Option<Box<PooledConnection<S>>> {
        let mut other = None;
        for (index, stack) in self.stacks.iter().enumerate() {
            if Arc::ptr_eq(&stack.key, key) && !stack.connections.is_empty() {
                if stack.worker == worker {
                    other = Some(index);
                    break;
                }
                other.get_or_insert(index);
            }
        }
        let taken = self.stacks[other?].connections.pop_back()?;
        self.count -= 1;
        Some(taken)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PooledConnection<S>> {
        self.stacks
            .iter()
            .flat_map(|stack| &stack.connections)
            .map(|one| &**one)
    }

    /// Since when the longest idle one is idle.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let oldest = |stack: &Stack<S>| Some(stack.connections.front()?.since);
        self.stacks.iter().filter_map(oldest).min()
    }

    /// The longest idle one, of another key than this.
    pub(super) fn take_oldest(
        &mut self,
        not: Option<&Arc<ConnectionKey>>,
    ) -> Option<Box<PooledConnection<S>>> {
        let wanted = self
            .stacks
            .iter_mut()
            .filter(|stack| not.is_none_or(|key| !Arc::ptr_eq(&stack.key, key)));
        let stack = wanted
            .filter(|stack| !stack.connections.is_empty())
            .min_by_key(|stack| stack.connections.front().map(|oldest| oldest.since))?;
        let taken = stack.connections.pop_front()?;
        self.count -= 1;
        Some(taken)
    }

    /// Takes those for which `is_taken` is true.
    pub(super) fn take_if(
        &mut self,
        mut is_taken: impl FnMut(&PooledConnection<S>) -> bool,
    ) -> Vec<Box<PooledConnection<S>>> {
        let mut taken = Vec::new();
        for stack in &mut self.stacks {
            if stack.connections.iter().any(|one| is_taken(one)) {
                let (out, kept) = std::mem::take(&mut stack.connections)
                    .into_iter()
                    .partition::<VecDeque<_>, _>(|one| is_taken(one));
                stack.connections = kept;
                taken.extend(out);
            }
        }
        self.count -= taken.len();
        taken
    }

    /// Looks at the next `most` connections from this place on, and takes those that are not quiet.
    /// Returns the next place, or `None` at the end.
    pub(super) fn take_unquiet(
        &mut self,
        from: Place,
        most: usize,
        out: &mut Vec<Box<PooledConnection<S>>>,
    ) -> Option<Place> {
        let (mut place, mut seen) = (from, 0);
        while let Some(stack) = self.stacks.get_mut(place.stack) {
            while let Some(connection) = stack.connections.get(place.index) {
                if seen == most {
                    return Some(place);
                }
                seen += 1;
                if connection.is_quiet() {
                    place.index += 1;
                } else if let Some(taken) = stack.connections.remove(place.index) {
                    self.count -= 1;
                    out.push(taken);
                }
            }
            place = Place {
                stack: place.stack + 1,
                index: 0,
            };
        }
        None
    }

    /// The keys and workers that have connections.
    pub(super) fn owners(&self) -> impl Iterator<Item = (&Arc<ConnectionKey>, WorkerId)> {
        let filled = self.stacks.iter().filter(|stack| !stack.connections.is_empty());
        filled.map(|stack| (&stack.key, stack.worker))
    }
}
