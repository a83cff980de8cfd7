//! What a study measures on a network.

mod entropy; // views -> entropy of the contrastive distribution
mod features; // network, images -> h and z
mod frozen; // h and z -> linear classifiers, kNN, transfer
mod histograms; // crops -> colour histograms, retrieval
mod projection; // h and z -> two dimensions
mod spectrum; // linear head -> eigenvalues
mod transformations; // h and z of transformed images -> which transformation

use super::{
    arm::{How, OWN, PRETEXT, Probe, Run},
    table::Figures,
    train::{ACCURACY, last_accuracy},
    workspace::Workspace,
};
use crate::{
    EvalError,
    eval::semi_supervised::accuracy,
    train::{Observer, RunFolder},
};
use features::Network;

/// Most test images of a projection.
const PROJECTED: usize = 500;

/// Measures `probe` on `run`, which is trained; `note` is what its training returned.
pub(super) fn measure(
    workspace: &Workspace,
    (run, seed): (&Run, u64),
    probe: &Probe,
    note: &Figures,
    observer: &mut dyn Observer,
) -> Result<Figures, EvalError> {
    let network = || Network::load(workspace, run, seed);
    match probe {
        Probe::Frozen => {
            let mut figures = frozen::frozen(&network()?, run, observer)?;
            let config = run.config(&workspace.scale, seed)?;
            if run.is_contrastive(&config) {
                let folder = RunFolder::open(&workspace.run_folder(run, seed)?).map_err(Box::new)?;
                figures.set(PRETEXT, last_accuracy(&folder, &config)?);
            }
            Ok(figures)
        }
        Probe::Classifier => classifier(workspace, (run, seed), note),
        Probe::FewLabels(shares) => frozen::few_labels(&network()?, run, (shares, seed), observer),
        Probe::Transfer(name, images) => frozen::transfer(&network()?, (name, images), observer),
        Probe::Transformations => transformations::transformations(&network()?, run, seed),
        Probe::Spectrum => spectrum::spectrum(&network()?),
        Probe::Entropy => entropy::entropy(&network()?, run),
        Probe::Projection => projection::projection(&network()?, run, PROJECTED, observer),
        Probe::Histograms => histograms::histograms(workspace, run, seed),
        Probe::Pixels => frozen::pixels(&network()?, run, observer),
    }
}

/// Accuracy of the classifier that the run trained.
fn classifier(workspace: &Workspace, (run, seed): (&Run, u64), note: &Figures) -> Result<Figures, EvalError> {
    if run.how != How::Fit {
        return Ok(Figures::of(OWN, note.values.get(ACCURACY).copied().unwrap_or(f64::NAN)));
    }
    let folder = RunFolder::open(&workspace.run_folder(run, seed)?).map_err(Box::new)?;
    let (accuracy, _) = accuracy(&folder, &workspace.opened(run.images.set).set)?;
    Ok(Figures::of(OWN, 100.0 * accuracy))
}
