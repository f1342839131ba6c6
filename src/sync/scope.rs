//! Which voices a pass is about, and how far it goes.

use tokio::time::Instant;

use crate::core::request_budget::RequestBudget;
use crate::store::Agenda;

/// Which voices a pass is about, and how far it goes.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    /// Which voices.
    pub which: Which,
    /// At most so many voices.
    pub limit: Option<u64>,
    /// Nothing is claimed or asked about after this.
    pub until: Option<Instant>,
    /// Read and ask, but write nothing.
    pub dry_run: bool,
    /// What its requests are paid from, if they are.
    pub budget: Option<RequestBudget>,
    /// The process goes on after this pass: what others hold is left to a later one.
    pub continuous: bool,
}

/// Which voices in processing a pass is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    #[default]
    All,
    /// Those with these row or provider ids.
    Named(Vec<String>),
    /// Those that are due, topped up with some that will be next.
    Due(Agenda),
}

impl Which {
    /// Whether the application's hints count as well.
    pub(super) fn takes_hints(&self) -> bool {
        match self {
            Self::All | Self::Due(_) => true,
            Self::Named(_) => false,
        }
    }
}
