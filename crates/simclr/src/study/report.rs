//! The result of a study: `results.json`, from which the pages are made.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    criterion::{Judged, Verdict},
    design::Study,
    images::ImageSet,
    table::Table,
    workspace::Workspace,
};

/// File in the folder of a study.
pub(super) const FILE: &str = "results.json";

/// Everything on the page of a study but the text of its file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Name of the study.
    pub study: String,
    /// Version of this program.
    pub simclr: String,
    /// By the criterion.
    pub verdict: Verdict,
    /// Its claims.
    pub parts: Vec<Judged>,
    /// Figures by arm and seed.
    pub table: Table,
    /// Seeds of every arm.
    pub seeds: u64,
    /// Recipe: budget, images, epochs, batch.
    pub scale: serde_json::Value,
    /// Training and test images at hand, and classes.
    pub images: (usize, usize, usize),
    /// Shell command that computes it again.
    pub command: String,
}

impl Report {
    /// Judges the figures of `study`.
    pub fn of(workspace: &Workspace, study: &Study, table: Table, seeds: u64, command: &str) -> Self {
        let parts: Vec<Judged> =
            (study.parts)(&workspace.scale).iter().map(|part| part.judge(&table)).collect();
        let set = &workspace.opened(ImageSet::Given).set;
        Self {
            study: study.name.to_owned(),
            simclr: env!("CARGO_PKG_VERSION").to_owned(),
            verdict: Verdict::of(&parts),
            parts,
            table,
            seeds,
            scale: json!(workspace.scale),
            images: (set.train_indices.len(), set.test_indices.len(), set.train.classes().len()),
            command: command.to_owned(),
        }
    }

    /// Accuracy in points of always answering the same of equally frequent classes.
    pub fn chance(&self) -> f64 {
        100.0 / self.images.2.max(1) as f64
    }

    /// The stored result of `study`, if there is one.
    pub fn stored(out: &std::path::Path, study: &Study) -> Option<Self> {
        serde_json::from_slice(&fs_err::read(out.join(study.name).join(FILE)).ok()?).ok()
    }
}
