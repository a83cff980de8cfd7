//! `simclr inspect`.

use std::{collections::BTreeMap, process::ExitCode};

use simclr::data::{
    Dataset, RangeChoice, Split, ValueRange,
    dataset::{ChannelValues, Channels, Missing, OpenOptions, Survey, as_one_path, list_counts},
};

use crate::{args::Inspect, failure::Failure, terminal};

/// Describes the splits and decodes every image once.
pub fn run(arguments: &Inspect) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.data)?;
    let mut failed = 0;
    let mut range = RangeChoice::Auto;
    for split in Dataset::splits(&data) {
        let options = OpenOptions { channels: Channels::Auto, pages: arguments.pages };
        let set = Dataset::open(&data, split, options)?;
        let set = set.labelled(&arguments.labels_from, &data, &[split])?;
        describe(split, &set);
        let survey = set.survey();
        let (set, resolved) = set.with_range_of(&range, &survey)?;
        set.notes().iter().for_each(|note| terminal::result(&format!("note: {note}")));
        if split == Split::Train {
            describe_values(&survey, &resolved);
        }
        // As in a run, the other splits are scaled by the range of the training split.
        range = RangeChoice::Set(resolved);
        failed += examine(&set);
    }
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let hint = "training skips them: 5, up to a tenth of the set, or the share data.max_bad_share where that is more";
    Err(Failure::user(format!("{failed} images cannot be decoded"), Some(hint.into())))
}

fn describe(split: Split, set: &Dataset) {
    let labels = match set.samples().iter().filter(|sample| sample.label.is_some()).count() {
        0 => "no labels".into(),
        some if some < set.len() => format!("{} classes of {some} images", set.classes().len()),
        _ => format!("{} classes", set.classes().len()),
    };
    terminal::result(&format!(
        "{}: {} images, {} channels, {labels}, fingerprint {}",
        split.name(),
        set.len(),
        set.channels(),
        set.fingerprint()
    ));
}

/// Prints quantiles of the values on a sample of the images, unless these have 8 bits.
fn describe_values(survey: &Survey, range: &ValueRange) {
    if survey.kinds.keys().all(|&kind| kind == "uint8") {
        return;
    }
    terminal::result(&format!("values of a sample of {} images, data.range = {range}:", survey.images));
    for (channel, found) in survey.channels().into_iter().enumerate() {
        let text = match found {
            Some(ChannelValues { lowest, low, high, highest }) => {
                format!("{lowest} to {highest}; from {low} to {high} without one in a thousand at either end")
            }
            None => "no valid value".into(),
        };
        terminal::result(&format!("  channel {channel}: {text}"));
    }
}

/// Decodes every image; prints errors and notes, and returns the number of errors.
fn examine(set: &Dataset) -> usize {
    let mut failed = 0;
    let mut missing = Missing::default();
    let mut kinds = BTreeMap::<_, usize>::new();
    let mut notes = BTreeMap::<_, usize>::new();
    for index in 0..set.len() {
        match set.examine(index, &mut missing) {
            Ok((kind, note)) => {
                *kinds.entry(kind).or_default() += 1;
                if let Some(note) = note {
                    *notes.entry(note).or_default() += 1;
                }
            }
            Err(error) => {
                failed += 1;
                terminal::result(&error.to_string());
            }
        }
    }
    for (note, images) in notes {
        terminal::result(&format!("all images: {images} of {}: {note}", set.len() - failed));
    }
    if let Some(note) = missing.note(set.len() - failed) {
        terminal::result(&format!("all images: {note}"));
    }
    if kinds.len() > 1 {
        let kinds = list_counts(&kinds, usize::MAX);
        terminal::result(&format!("all images: types of values: {kinds}"));
    }
    failed
}
