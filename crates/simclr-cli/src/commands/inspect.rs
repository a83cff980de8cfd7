//! `simclr inspect`.

use std::{collections::BTreeMap, process::ExitCode};

use simclr::data::{
    Dataset, RangeChoice, Split, ValueRange,
    dataset::{ChannelValues, Channels, Missing, OpenOptions, Survey, as_one_path},
};

use crate::{args::Inspect, failure::Failure, terminal};

/// Describes the splits and decodes every image once.
pub fn run(arguments: &Inspect) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.data)?;
    let (mut bad, mut range) = (0, RangeChoice::Auto);
    for split in Dataset::splits(&data) {
        let options = OpenOptions { channels: Channels::Auto, pages: arguments.pages };
        let set = Dataset::open(&data, split, options)?;
        let set = set.labelled(&arguments.labels_from, &data, &[split])?;
        let labels = match set.samples().iter().filter(|sample| sample.label.is_some()).count() {
            0 => "no labels".into(),
            some if some < set.len() => format!("{} classes of {some} images", set.classes().len()),
            _ => format!("{} classes", set.classes().len()),
        };
        let name = format!("{split:?}").to_lowercase();
        terminal::result(&format!(
            "{name}: {} images, {} channels, {labels}, fingerprint {}",
            set.len(),
            set.channels(),
            set.fingerprint()
        ));
        let survey = set.survey();
        let (set, found) = set.with_range_of(&range, &survey)?;
        set.notes().iter().for_each(|note| terminal::result(&format!("note: {note}")));
        if split == Split::Train {
            describe_values(&survey, &found);
        }
        // As in a run, the other parts are scaled by the range of the training part.
        range = RangeChoice::Set(found);
        bad += examine(&set);
    }
    if bad == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let hint = "training skips them: 5, up to a tenth of the set, or the share data.max_bad_share where that is more";
    Err(Failure::user(format!("{bad} images cannot be decoded"), Some(hint.into())))
}

/// What a sample of the images holds, channel by channel, where they are not of 8 bits.
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

/// Decodes every image; the number of those that cannot be, each with its reason.
fn examine(set: &Dataset) -> usize {
    let (mut bad, mut missing, mut kinds) = (0, Missing::default(), BTreeMap::<_, usize>::new());
    let mut notes = BTreeMap::<_, usize>::new();
    for index in 0..set.len() {
        match set.examine(index, &mut missing) {
            Ok((kind, note)) => {
                *kinds.entry(kind).or_default() += 1;
                note.into_iter().for_each(|note| *notes.entry(note).or_default() += 1);
            }
            Err(error) => {
                bad += 1;
                terminal::result(&error.to_string());
            }
        }
    }
    for (note, images) in notes {
        terminal::result(&format!("all images: {images} of {}: {note}", set.len() - bad));
    }
    if let Some(note) = missing.note(set.len() - bad) {
        terminal::result(&format!("all images: {note}"));
    }
    if kinds.len() > 1 {
        let kinds: Vec<_> = kinds.iter().map(|(kind, images)| format!("{kind} {images}")).collect();
        terminal::result(&format!("all images: types of values: {}", kinds.join(", ")));
    }
    bad
}
