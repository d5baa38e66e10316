//! Models by id.
