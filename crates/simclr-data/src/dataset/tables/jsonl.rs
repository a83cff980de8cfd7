//! JSON lines: one object with plain values per line.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Row, Unusable, places, text_of};

pub fn read(path: &Path, images: &[&str]) -> Result<Vec<Row>, Unusable> {
    let text = text_of(path)?;
    // Objects need not have the same keys, so that the columns are those of all.
    let mut columns: Vec<String> = Vec::new();
    for object in objects(&text) {
        let (_, object) = object?;
        columns.extend(
            object.into_iter().map(|(key, _)| key).filter(|key| !columns.contains(key)).collect::<Vec<_>>(),
        );
    }
    let (image, label) = places(&columns, images)?;
    let (image, label) = (&columns[image], &columns[label]);
    let row = |object: Result<(usize, Map<String, Value>), Unusable>| {
        let (line, object) = object?;
        let damaged = |key: &str, value: &Value| {
            let expected = "expected a text, an integer or true or false";
            Unusable::Damaged(format!("line {line}: {key} is {value}, {expected}"))
        };
        let cell = |key: &str| match object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => plain(value).map(Some).ok_or_else(|| damaged(key, value)),
        };
        Ok(Row {
            image: cell(image)?.unwrap_or_default(),
            label: cell(label)?.filter(|label| !label.is_empty()),
        })
    };
    objects(&text).map(row).collect()
}

/// A text, an integer, `true` or `false`, as a class name.
pub fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.trim().to_owned()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

/// The objects, with line numbers.
fn objects(text: &str) -> impl Iterator<Item = Result<(usize, Map<String, Value>), Unusable>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines.map(|(at, line)| match serde_json::from_str(line) {
        Ok(object) => Ok((at + 1, object)),
        Err(error) => {
            let column = error.column();
            Err(Unusable::Damaged(format!("line {}, column {column}: expected a JSON object", at + 1)))
        }
    })
}
