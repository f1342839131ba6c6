//! Parts for PostgreSQL only: connections, the catalog, and concurrent index creation.

mod catalog;
mod connections;
mod index;

pub(super) use catalog::{shape, table_sql};
pub(crate) use connections::Connections;
pub(crate) use connections::Transaction;
pub(super) use index::make_index;
pub(crate) use index::{Indexes, drop_left_behind, indexes};
