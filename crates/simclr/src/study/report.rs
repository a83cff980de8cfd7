//! The result of a study: `results.json`, from which the pages are made.

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    arm::ImageSet,
    criterion::{Judged, Verdict},
    design::Study,
    table::Table,
    workspace::Workspace,
};
use crate::{EvalError, checkpoint::write_atomically};

/// File in the folder of a study.
const FILE: &str = "results.json";

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

    /// Writes it and its pages into the folder of the study below that of `workspace`; returns the page.
    ///
    /// # Errors
    /// Files that cannot be written, a picture that cannot be drawn.
    pub fn write(&self, workspace: &Workspace, study: &Study) -> Result<std::path::PathBuf, EvalError> {
        let folder = workspace.out().join(study.name);
        fs_err::create_dir_all(&folder)?;
        let pictures = (study.pictures)(&workspace.scale, &self.table);
        let encode = |reason| EvalError::Encoding { what: format!("picture of {}", study.name), reason };
        let pictures: Vec<String> =
            pictures.iter().map(super::picture::Picture::svg).collect::<Result<_, _>>().map_err(encode)?;
        let page = folder.join("report.html");
        write_atomically(&folder.join(FILE), format!("{:#}\n", json!(self)).as_bytes())?;
        write_atomically(&folder.join("report.md"), super::page::markdown(study, self).as_bytes())?;
        write_atomically(&page, super::page::html(study, self, &pictures).as_bytes())?;
        Ok(page)
    }

    /// The stored result of `study`, if there is one.
    pub fn stored(out: &std::path::Path, study: &Study) -> Option<Self> {
        serde_json::from_slice(&fs_err::read(out.join(study.name).join(FILE)).ok()?).ok()
    }
}
