//! The search for one target through delegations (TUF §5.6.7).
//!
//! Pure: the caller fetches a role when [`TargetSearch::step`] asks for one. A delegated file has no standing of its own:
//! whether it comes from the network or from a cache, it is [offered](TargetSearch::offer) and checked against the role that
//! delegates to it on **this** path. That is the answer to a file that one delegator vouches for and another does not.
//!
//! Invariants: a rejected file changes nothing; no role is asked twice; a search ends after a bounded number of roles.

use std::collections::BTreeSet;

use crate::delegation::{RoleName, SearchOrder};
use crate::error::Error;
use crate::metadata::{Metadata, Role, TargetFile, Targets};
use crate::signed::Signed;
use crate::target_name::TargetName;
use crate::threshold::KeySet;
use crate::trusted_set::{Expiry, TrustedSet, Wanted, refuse_other_version, refuse_too_large};

/// A search under way. It borrows the set, so that what is trusted cannot change below it.
#[derive(Debug)]
pub struct TargetSearch<'a> {
    set: &'a TrustedSet,
    name: &'a TargetName,
    expiry: Expiry,
    found: Option<TargetFile>,
    /// Roles to ask; the next one is last.
    pending: Vec<Visit>,
    visited: BTreeSet<RoleName>,
}

/// A role to ask, as its delegator sees it.
#[derive(Debug)]
struct Visit {
    role: RoleName,
    delegator: String,
    keys: KeySet,
    depth: usize,
}

/// What the file of one role says about the target.
enum Look {
    Found(TargetFile),
    Ask { visits: Vec<Visit>, search: SearchOrder },
}

/// Where a search stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SearchStep {
    /// The target is there.
    Found(TargetFile),
    /// Nobody who may sign for the target has it.
    Absent,
    /// The file of this role is needed: [offer](TargetSearch::offer) it.
    Needs {
        /// The delegated role.
        role: RoleName,
        /// The file to fetch.
        file: Wanted,
    },
}

impl TrustedSet {
    /// Starts the search for the target called `name`, at the top-level targets.
    ///
    /// # Errors
    ///
    /// As [`TrustedSet::fresh_targets`].
    pub fn search<'a>(&'a self, name: &'a TargetName, expiry: Expiry) -> Result<TargetSearch<'a>, Error> {
        let mut search = TargetSearch {
            set: self,
            name,
            expiry,
            found: None,
            pending: Vec::new(),
            visited: BTreeSet::new(),
        };
        let look = search.look_in(self.fresh_targets(expiry)?, Role::Targets.as_str(), 0)?;
        search.go_on(look);
        Ok(search)
    }
}

impl TargetSearch<'_> {
    /// Returns what is found or needed. Asking again changes nothing.
    ///
    /// # Errors
    ///
    /// The snapshot does not list the next role, or too many roles were asked: whether the target exists is unknown.
    pub fn step(&mut self) -> Result<SearchStep, Error> {
        if let Some(file) = &self.found {
            return Ok(SearchStep::Found(file.clone()));
        }
        // §5.6.7.1: a role that was visited before is skipped, so that cycles end.
        while self
            .pending
            .pop_if(|visit| self.visited.contains(&visit.role))
            .is_some()
        {}
        let Some(visit) = self.pending.last() else {
            return Ok(SearchStep::Absent);
        };
        if self.visited.len() >= self.set.limits().delegated_roles {
            return Err(Error::TooManyDelegations {
                limit: self.set.limits().delegated_roles,
            });
        }
        let listed = self.set.current_snapshot(self.expiry)?.delegated_meta(&visit.role)?;
        let limit = self.set.limits().bytes_for(Role::Targets);
        Ok(SearchStep::Needs {
            role: visit.role.clone(),
            file: self.set.wanted_file(&visit.role.file_name(), listed, limit),
        })
    }

    /// Takes the file of the role that [`TargetSearch::step`] asked for, from a cache or from the repository. Where no role is
    /// needed, it changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Delegated`] around the rule that was broken: the file does not match the snapshot in length, digest or
    /// version, cannot be parsed, is not signed by enough of the keys that the delegator names, or has expired. Or the chain
    /// of delegations is too long. The same role is still needed.
    pub fn offer(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.skip_visited();
        let Some(visit) = self.pending.last() else {
            return Ok(());
        };
        let targets = self.verified(visit, bytes).map_err(|source| Error::Delegated {
            name: visit.role.to_string(),
            source: Box::new(source),
        })?;
        let look = self.look_in(&targets, visit.role.as_str(), visit.depth)?;
        self.visited.extend(self.pending.pop().map(|visit| visit.role));
        self.go_on(look);
        Ok(())
    }

    /// §5.6.7.1: a role that was visited before is skipped, so that cycles end.
    fn skip_visited(&mut self) {
        while self
            .pending
            .pop_if(|visit| self.visited.contains(&visit.role))
            .is_some()
        {}
    }

    fn verified(&self, visit: &Visit, bytes: &[u8]) -> Result<Targets, Error> {
        let listed = self.set.current_snapshot(self.expiry)?.delegated_meta(&visit.role)?;
        refuse_too_large(Role::Targets, bytes, self.set.limits())?;
        // §5.6.2: length and digest.
        listed.check(&visit.role.listed_as(), bytes)?;
        // §5.6.3: signatures, by the keys of the role that delegates here.
        let new = Signed::<Targets>::parse(bytes, self.set.limits())?;
        new.count(&visit.keys).map_err(|source| Error::DelegationThreshold {
            delegator: visit.delegator.clone(),
            source,
        })?;
        // §5.6.4: the version that is listed.
        let new = new.into_unverified();
        refuse_other_version(Role::Targets, listed.version, new.version())?;
        // §5.6.5: expiry.
        self.expiry.check(&new)?;
        Ok(new)
    }

    /// §5.6.7.2: the target, or the roles that may have it.
    fn look_in(&self, targets: &Targets, delegator: &str, depth: usize) -> Result<Look, Error> {
        if let Some(file) = targets.find(self.name) {
            return Ok(Look::Found(file.clone()));
        }
        let (mut visits, mut search) = (Vec::new(), SearchOrder::Continue);
        if let Some(delegations) = &targets.delegations {
            for role in &delegations.roles {
                if !role.paths.contains(self.name) {
                    continue;
                }
                visits.push(Visit {
                    role: role.name.clone(),
                    delegator: delegator.to_owned(),
                    keys: delegations.keys_of(role),
                    depth: depth + 1,
                });
                search = role.search;
                if search == SearchOrder::Terminate {
                    break;
                }
            }
        }
        let limit = self.set.limits().delegation_depth;
        if !visits.is_empty() && depth >= limit {
            return Err(Error::TooManyDelegations { limit });
        }
        Ok(Look::Ask { visits, search })
    }

    fn go_on(&mut self, look: Look) {
        match look {
            Look::Found(file) => {
                self.pending.clear();
                self.found = Some(file);
            }
            Look::Ask { visits, search } => {
                // §5.6.7.2.1: nobody after a terminating role is asked, here or further up.
                if search == SearchOrder::Terminate {
                    self.pending.clear();
                }
                // §5.6.7.2.2: pre-order and depth-first, in the order of the metadata.
                self.pending.extend(visits.into_iter().rev());
            }
        }
    }
}
