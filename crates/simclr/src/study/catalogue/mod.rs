//! The studies, one file each.

mod augmentations;
mod batch_epochs;
mod batch_norm;
mod broader_augmentation;
mod color_histograms;
mod color_strength;
mod few_labels;
mod head;
mod linear_against_finetuning;
mod losses;
mod lr_scaling;
mod moco;
mod model_size;
mod neighbours;
mod optimizers;
mod parts;
mod supervised_longer;
mod temperature;
mod transfer;
mod transformations;
mod v2_distillation;
mod v2_head;

use super::design::Study;

/// In the order of the paper, then SimCLR v2, MoCo, and comparisons.
pub const ALL: [&Study; 22] = [
    &augmentations::STUDY,
    &color_histograms::STUDY,
    &color_strength::STUDY,
    &model_size::STUDY,
    &head::STUDY,
    &transformations::STUDY,
    &losses::STUDY,
    &temperature::STUDY,
    &batch_epochs::STUDY,
    &lr_scaling::STUDY,
    &broader_augmentation::STUDY,
    &supervised_longer::STUDY,
    &parts::STUDY,
    &linear_against_finetuning::STUDY,
    &few_labels::STUDY,
    &transfer::STUDY,
    &batch_norm::STUDY,
    &v2_head::STUDY,
    &v2_distillation::STUDY,
    &moco::STUDY,
    &optimizers::STUDY,
    &neighbours::STUDY,
];

/// The study of that name.
pub fn find(name: &str) -> Option<&'static Study> {
    ALL.into_iter().find(|study| study.name == name)
}

#[cfg(test)]
mod tests;
