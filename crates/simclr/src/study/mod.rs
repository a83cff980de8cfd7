//! The studies of the paper at the scale of a machine: jobs are planned with their cost, run in run folders of their own, and reported
//! on a page with a verdict by a criterion that the study's file states beforehand.

mod arm; // a network, and what is measured on it
pub mod catalogue; // one file per study
mod conduct; // jobs -> figures
mod cost; // configurations -> seconds
pub mod criterion; // differences between arms -> verdict
mod images; // which images a run trains on
mod design; // what a study consists of
mod page; // report -> HTML, markdown
mod plan; // studies -> jobs with their cost
mod probes; // network -> figures
mod report; // figures -> results.json, pages
mod scale; // budget -> recipe
mod table; // figures by arm and seed
mod train; // network -> run folder
mod workspace; // image sets, folders, stored figures

pub use arm::{Arm, How, Probe, Run};
pub use conduct::{collect, conduct};
pub use design::Study;
pub use images::{Classes, ImageSet, Images};
pub use page::{overview, write};
pub use plan::{Job, Plan};
pub use report::Report;
pub use scale::{Budget, Scale};
pub use table::{Figures, Summary, Table};
pub use workspace::Workspace;
