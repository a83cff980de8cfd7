//! report

pub mod compare;
pub mod history;
pub mod per_class;
pub mod plot;
pub mod results;
pub mod results_cache;
pub mod significance;
