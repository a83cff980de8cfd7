//! `simclr inspect`.

use std::{collections::BTreeMap, process::ExitCode};

use serde_json::{Map, Value, json};
use simclr::data::{
    Dataset, RangeChoice, Split, ValueRange,
    dataset::{ChannelValues, Channels, Examined, Missing, OpenOptions, Survey, as_one_path, list_counts},
};

use crate::{args::Inspect, failure::Failure, terminal};

/// Describes the splits and decodes every image once.
pub fn run(arguments: &Inspect) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.data)?;
    let mut failed = 0;
    let mut range = RangeChoice::Auto;
    let mut parts = Map::new();
    for split in Dataset::splits(&data) {
        let options = OpenOptions { channels: Channels::Auto, pages: arguments.pages };
        let set = Dataset::open(&data, split, options)?;
        let set = set.labelled(&arguments.labels_from, &data, &[split])?;
        let text = Text { is_shown: !arguments.json };
        text.describe(split, &set);
        let survey = set.survey();
        let (set, resolved) = set.with_range_of(&range, &survey)?;
        set.notes().iter().for_each(|note| text.show(&format!("note: {note}")));
        if split == Split::Train {
            text.describe_values(&survey, &resolved);
        }
        let contents = Contents::of(&set, &text);
        failed += contents.damaged.len();
        parts.insert(split.name().into(), facts(&set, &survey, &resolved, contents));
        // As in a run, the other splits are scaled by the range of the training split.
        range = RangeChoice::Set(resolved);
    }
    if arguments.json {
        terminal::result(&Value::Object(parts).to_string());
    }
    if failed == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    let hint = "training skips such images: up to the share data.max_bad_share of a set, in a small one up to 5, but at most a tenth of it";
    Err(Failure::user(format!("{failed} images cannot be decoded"), Some(hint.into())))
}

fn labelled(set: &Dataset) -> usize {
    set.samples().iter().filter(|sample| sample.label.is_some()).count()
}

/// The lines for people, printed as facts become known.
struct Text {
    is_shown: bool,
}

impl Text {
    fn show(&self, line: &str) {
        if self.is_shown {
            terminal::result(line);
        }
    }

    fn describe(&self, split: Split, set: &Dataset) {
        let labels = match labelled(set) {
            0 => "no labels".into(),
            some if some < set.len() => format!("{} classes of {some} images", set.classes().len()),
            _ => format!("{} classes", set.classes().len()),
        };
        self.show(&format!(
            "{}: {} images, {} channels, {labels}, fingerprint {}",
            split.name(),
            set.len(),
            set.channels(),
            set.fingerprint()
        ));
    }

    /// Quantiles of the values on a sample of the images, unless these have 8 bits.
    fn describe_values(&self, survey: &Survey, range: &ValueRange) {
        if is_8_bit(survey) {
            return;
        }
        self.show(&format!("values of a sample of {} images, data.range = {range}:", survey.images));
        for (channel, found) in survey.channels().into_iter().enumerate() {
            let text = match found {
                Some(ChannelValues { lowest, low, high, highest }) => {
                    format!(
                        "{lowest} to {highest}; from {low} to {high} without one in a thousand at either end"
                    )
                }
                None => "no valid value".into(),
            };
            self.show(&format!("  channel {channel}: {text}"));
        }
    }
}

fn is_8_bit(survey: &Survey) -> bool {
    survey.kinds.keys().all(|&kind| kind == "uint8")
}

/// What decoding every image finds.
#[derive(Default)]
struct Contents {
    /// Errors, with the names of their images.
    damaged: Vec<String>,
    missing: Missing,
    /// Number of images by type of values.
    kinds: BTreeMap<&'static str, usize>,
    /// Number of images by note of the decoder.
    notes: BTreeMap<String, usize>,
}

impl Contents {
    fn of(set: &Dataset, text: &Text) -> Self {
        let mut found = Self::default();
        set.examine(&mut |image| match image {
            Ok(Examined { kind, note, missing }) => {
                *found.kinds.entry(kind).or_default() += 1;
                if let Some(note) = note {
                    *found.notes.entry(note).or_default() += 1;
                }
                found.missing.merge(missing);
            }
            Err(error) => {
                let error = error.to_string();
                text.show(&error);
                found.damaged.push(error);
            }
        });
        let whole = set.len() - found.damaged.len();
        for (note, images) in &found.notes {
            text.show(&format!("all images: {images} of {whole}: {note}"));
        }
        if let Some(note) = found.missing.note(whole) {
            text.show(&format!("all images: {note}"));
        }
        if found.kinds.len() > 1 {
            text.show(&format!("all images: types of values: {}", list_counts(&found.kinds, usize::MAX)));
        }
        found
    }
}

fn facts(set: &Dataset, survey: &Survey, range: &ValueRange, contents: Contents) -> Value {
    let values = |found: Option<ChannelValues>| {
        found.map(|ChannelValues { lowest, low, high, highest }| {
            json!({"lowest": lowest, "low": low, "high": high, "highest": highest})
        })
    };
    let Contents { damaged, missing, kinds, notes } = contents;
    json!({
        "images": set.len(),
        "channels": set.channels(),
        "labelled": labelled(set),
        "classes": set.classes(),
        "fingerprint": set.fingerprint(),
        "range": range.to_string(),
        "sample": {
            "images": survey.images,
            "values": if is_8_bit(survey) { Vec::new() } else { survey.channels().into_iter().map(values).collect() },
        },
        "kinds": kinds,
        "missing_values": {"images": missing.images, "values": missing.values, "of": missing.of},
        "notes": set.notes(),
        "image_notes": notes,
        "undecodable": damaged,
    })
}
