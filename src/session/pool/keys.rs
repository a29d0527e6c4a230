//! What the sessions and connections of one key have in common, in memory once.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::connection::LoginParameters;
use super::key::{ConnectionKey, Recipe};
use super::session::Home;
use super::state::{Reported, Settings};
use crate::session::stream::SessionStream;

/// Keys that are remembered before the first look for those that nobody has any more.
const FEW: usize = 64;

/// The keys of a pool.
#[derive(Debug)]
pub(super) struct Keys<S: SessionStream> {
    known: HashMap<Arc<ConnectionKey>, Known<S>>,
    /// Keys to have before those that nobody has any more are forgotten.
    most: usize,
}

/// What is known of a key.
#[derive(Debug)]
struct Known<S: SessionStream> {
    recipe: Weak<Recipe>,
    /// Held by the sessions; one for each worker.
    homes: Vec<Weak<Home<S>>>,
    /// Held by the connections.
    login_parameters: Option<Weak<[(Bytes, Bytes)]>>,
    /// What the last session was told at its login, and had to be given.
    beginning: (Reported, Settings),
}

impl<S: SessionStream> Default for Known<S> {
    fn default() -> Self {
        Self {
            recipe: Weak::new(),
            homes: Vec::new(),
            login_parameters: None,
            beginning: Default::default(),
        }
    }
}

impl<S: SessionStream> Default for Keys<S> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            most: FEW,
        }
    }
}

impl<S: SessionStream> Keys<S> {
    /// Of a session that lives.
    pub(super) fn any_recipe(&self) -> Option<Arc<Recipe>> {
        self.known.values().find_map(|known| known.recipe.upgrade())
    }

    pub(super) fn intern(&mut self, key: ConnectionKey) -> Arc<ConnectionKey> {
        if let Some((known, _)) = self.known.get_key_value(&key) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.most {
            self.known.retain(|key, _| Arc::strong_count(key) > 1);
            self.most = FEW.max(self.known.len() * 2);
        }
        let key = Arc::new(key);
        self.known.insert(Arc::clone(&key), Known::default());
        key
    }

    pub(super) fn recipe(&mut self, recipe: Recipe) -> Arc<Recipe> {
        let key = self.intern(ConnectionKey::clone(&recipe.key));
        let known = self.known.entry(Arc::clone(&key)).or_default();
        if let Some(known) = known.recipe.upgrade() {
            return known;
        }
        let recipe = Arc::new(Recipe { key, ..recipe });
        known.recipe = Arc::downgrade(&recipe);
        recipe
    }

    pub(super) fn home(&mut self, home: Home<S>) -> Arc<Home<S>> {
        let known = self.known.entry(Arc::clone(&home.want.key)).or_default();
        let is_same = |other: &Arc<Home<S>>| {
            other.want.worker == home.want.worker && Arc::ptr_eq(&other.route, &home.route)
        };
        if let Some(same) = known.homes.iter().filter_map(Weak::upgrade).find(is_same) {
            return same;
        }
        let home = Arc::new(home);
        known.homes.retain(|home| home.strong_count() > 0);
        known.homes.push(Arc::downgrade(&home));
        home
    }

    /// One value for all connections that have reported the same.
    pub(super) fn reported(
        &mut self,
        key: &Arc<ConnectionKey>,
        parameters: LoginParameters,
    ) -> LoginParameters {
        let known = self.known.entry(Arc::clone(key)).or_default();
        let same = known.login_parameters.as_ref().and_then(Weak::upgrade);
        if let Some(same) = same.filter(|same| *same == parameters) {
            return same;
        }
        known.login_parameters = Some(Arc::downgrade(&parameters));
        parameters
    }

    /// A session begins; what it has in common with the one before is in memory once.
    pub(super) fn share(&mut self, key: &Arc<ConnectionKey>, told: &mut Reported, settings: &mut Settings) {
        let known = self.known.entry(Arc::clone(key)).or_default();
        told.unify(&mut known.beginning.0);
        settings.unify(&mut known.beginning.1);
        known.beginning = (told.clone(), settings.clone());
    }

    pub(super) fn login_parameters(&self, key: &Arc<ConnectionKey>) -> Option<LoginParameters> {
        self.known.get(key)?.login_parameters.as_ref()?.upgrade()
    }
}
