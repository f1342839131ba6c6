//! What is PostgreSQL's alone: connections, its catalog, and making an index beside those who write.

mod catalog;
mod connections;
mod index;

pub(super) use catalog::{shape, table_sql};
pub(crate) use connections::Connections;
pub(crate) use connections::Transaction;
pub(super) use index::make_index;
pub(crate) use index::{Indexes, drop_left_behind, indexes};
