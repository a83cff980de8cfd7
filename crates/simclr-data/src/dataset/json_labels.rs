//! Labels in the `.json` members of WebDataset samples: an integer, text, `true` or `false` under the first of the keys `label`,
//! `class`, `cls` and `class_id`. A text under `class_name` or `label_name` is the name of that class, or the label if there is
//! no other.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{notes::list_names, table_notes::NAMED, tables::plain};

/// Maximal size of a member that is read; larger ones describe a set, not a sample.
pub const MAX_BYTES: u64 = 1 << 20;
const LABELS: [&str; 4] = ["label", "class", "cls", "class_id"];
const NAMES: [&str; 2] = ["class_name", "label_name"];

/// Shard and key of a sample.
type Sample = (usize, String);

/// The labels in the members of all shards.
#[derive(Default)]
pub struct JsonLabels {
    found: Vec<(Sample, String, Option<String>)>,
    /// Samples and members with a label key but no usable label.
    unusable: Vec<(Sample, String)>,
}

impl JsonLabels {
    pub fn add(&mut self, sample: Sample, name: &str, bytes: &[u8]) {
        // Members of most large sets hold captions and URLs only and need not be parsed.
        if !mentions_label(bytes) {
            return;
        }
        let Ok(object) = serde_json::from_slice::<Map<String, Value>>(bytes) else {
            return self.unusable.push((sample, name.to_owned()));
        };
        let value = |keys: &[&str]| {
            let mut values = keys.iter().filter_map(|key| object.get(*key)).filter(|value| !value.is_null());
            values.next().map(plain)
        };
        match (value(&LABELS), value(&NAMES)) {
            (Some(Some(label)), class) => self.found.push((sample, label, class.flatten())),
            (None, Some(Some(class))) => self.found.push((sample, class, None)),
            (None, None) => {}
            _ => self.unusable.push((sample, name.to_owned())),
        }
    }

    /// Labels of the samples that are `wanted`; class names by label, if the relation is one to one; and a note on members
    /// without a usable label.
    pub fn into_labels(
        self,
        wanted: impl Fn(&Sample) -> bool,
    ) -> (Vec<(Sample, String)>, HashMap<String, String>, Option<String>) {
        let found: Vec<_> = self.found.into_iter().filter(|(sample, ..)| wanted(sample)).collect();
        let mut names = HashMap::new();
        let mut labels = HashMap::new();
        let mut is_one_to_one = true;
        for (_, label, class) in &found {
            let Some(class) = class else { continue };
            is_one_to_one &=
                names.insert(label.clone(), class.clone()).is_none_or(|earlier| earlier == *class);
            is_one_to_one &= labels.insert(class, label).is_none_or(|earlier| earlier == label);
        }
        let unusable = self.unusable.iter().filter(|(sample, _)| wanted(sample));
        let unusable: Vec<&str> = unusable.map(|(_, name)| name.as_str()).collect();
        let note = (!unusable.is_empty()).then(|| {
            let names = list_names(&unusable, NAMED);
            let count = unusable.len();
            format!("{count} .json members hold no integer or text as label and are skipped: {names}")
        });
        let labels = found.into_iter().map(|(sample, label, _)| (sample, label)).collect();
        (labels, if is_one_to_one { names } else { HashMap::new() }, note)
    }
}

fn mentions_label(bytes: &[u8]) -> bool {
    let keys: [&[u8]; 3] = [b"\"label", b"\"class", b"\"cls"];
    keys.iter().any(|key| bytes.windows(key.len()).any(|window| window == *key))
}
