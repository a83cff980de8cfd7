//! Stored labels (numbers or texts) to class names and indices.

use arrow_array::{
    Array, ArrayRef,
    cast::AsArray,
    types::{Int32Type, Int64Type},
};

use super::{super::class_names::ClassNames, file::File};
use crate::DataError;

/// Largest number of classes: a column of identifiers is no label column, and each class gets a name.
const MAX_CLASSES: i64 = 1 << 20;

/// A label as stored.
#[derive(Debug, Clone)]
pub enum Label {
    Number(i64),
    Text(String),
}

/// The label in a row, where there is one.
pub fn stored(column: &ArrayRef, row: usize) -> Option<Label> {
    if column.is_null(row) {
        return None;
    }
    if let Some(column) = column.as_primitive_opt::<Int64Type>() {
        return Some(Label::Number(column.value(row)));
    }
    if let Some(column) = column.as_primitive_opt::<Int32Type>() {
        return Some(Label::Number(column.value(row).into()));
    }
    if let Some(column) = column.as_string_opt::<i64>() {
        return Some(Label::Text(column.value(row).to_owned()));
    }
    column.as_string_opt::<i32>().map(|column| Label::Text(column.value(row).to_owned()))
}

/// Class names of a set: from the hub's metadata, else the sorted texts, else the numbers.
pub fn classes(files: &[File]) -> Result<ClassNames, DataError> {
    let mut numbers = 0;
    for file in files {
        let most = file.labels.iter().flatten().filter_map(|label| match label {
            Label::Number(number) => Some(number.saturating_add(1)),
            Label::Text(_) => None,
        });
        let most = most.max().unwrap_or(0);
        if most > MAX_CLASSES {
            let reason = format!("label {}, expected below {MAX_CLASSES}", most - 1);
            return Err(DataError::Format { path: file.path.clone(), reason });
        }
        numbers = numbers.max(most);
    }
    if let Some(file) = files.iter().find(|file| !file.class_names.is_empty()) {
        if (file.class_names.len() as i64) < numbers {
            let reason = format!(
                "label {}, expected below {}, the number of class names",
                numbers - 1,
                file.class_names.len()
            );
            return Err(DataError::Format { path: file.path.clone(), reason });
        }
        return Ok(ClassNames::numbered(file.class_names.clone()));
    }
    let texts = files.iter().flat_map(|file| file.labels.iter().flatten()).filter_map(|label| match label {
        Label::Text(text) => Some(text.clone()),
        Label::Number(_) => None,
    });
    let texts = ClassNames::sorted(texts);
    let numbered = || ClassNames::numbered((0..numbers).map(|class| class.to_string()).collect());
    Ok(if texts.names.is_empty() { numbered() } else { texts })
}

/// Indices into `classes`; none for a missing label or a negative one, which the hub writes where labels are withheld.
pub fn indices(labels: &[Option<Label>], classes: &ClassNames) -> impl Iterator<Item = Option<u32>> {
    labels.iter().map(move |label| match label {
        Some(Label::Number(number)) => u32::try_from(*number).ok(),
        Some(Label::Text(text)) => classes.label(text),
        None => None,
    })
}

/// `{"info": {"features": {"label": {"names": [...]}}}}` of the schema metadata.
pub fn hub_class_names(text: &str, label: &str) -> Option<Vec<String>> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = value.get("info")?.get("features")?.get(label)?.get("names")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}
