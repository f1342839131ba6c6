//! The scope of a pass: its voices and its limits.

use tokio::time::Instant;

use crate::core::request_budget::RequestBudget;
use crate::store::Agenda;

/// The scope of a pass: its voices and its limits.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    pub which: Which,
    /// The maximum number of voices.
    pub limit: Option<u64>,
    /// No voice is claimed or looked up after this time.
    pub until: Option<Instant>,
    /// Read and look up, but write nothing.
    pub dry_run: bool,
    /// The request budget, if requests count against one.
    pub budget: Option<RequestBudget>,
    /// The process continues after this pass: voices and events that others have leased are left to a later pass.
    pub continuous: bool,
}

/// The voices in processing that a pass covers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Which {
    /// All voices.
    #[default]
    All,
    /// Voices with these row or provider ids.
    Named(Vec<String>),
    /// Voices that are due, filled up with some that are due next.
    Due(Agenda),
}

impl Which {
    /// Whether the application's hints are read too.
    pub(super) fn takes_hints(&self) -> bool {
        match self {
            Self::All | Self::Due(_) => true,
            Self::Named(_) => false,
        }
    }
}
