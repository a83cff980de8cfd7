//! Results: figures and their cache, tables, comparison of runs, plots.

pub mod compare; // results of several runs -> table, plot
pub mod curves; // metrics of several runs -> accuracy by seconds
mod figure; // one figure and its predicted labels
pub(crate) mod history; // results -> one file per set and configuration
pub mod per_class; // predictions -> recalls, confusion matrix, AUROC
mod plot; // accuracy by label fraction -> SVG
pub mod results; // results.json
mod results_cache; // figures of earlier evaluations
mod row_options; // options that some rows depend on only
mod significance; // predictions of two classifiers -> p
mod table; // results -> text

pub(crate) use figure::{Figure, Predictions};
pub(crate) use results::{Cell, Row, TransferRow, Tuned};
pub(crate) use results_cache::{FigureKey, ResultsCache};
