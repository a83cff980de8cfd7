//! Class names and indices from stored labels (numbers or texts).

use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType,
    cast::AsArray,
    types::{Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type},
};
use arrow_schema::DataType;

use super::super::class_names::ClassNames;

#[derive(Debug, Clone)]
pub enum Label {
    Number(i64),
    Text(String),
}

/// Whether a column of this type can hold labels: integers, booleans, texts, or categories of these.
pub fn are_labels(stored: &DataType) -> bool {
    match stored {
        DataType::Dictionary(_, of) => are_labels(of),
        DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
        other => other.is_integer(),
    }
}

/// The label in each row; `None` for null.
///
/// # Errors
/// A column of a type other than [`are_labels`].
pub fn stored(column: &ArrayRef) -> Result<Vec<Option<Label>>, String> {
    let text = |text: Option<&str>| text.map(|text| Label::Text(text.to_owned()));
    let truth = |value: Option<bool>| value.map(|value| Label::Text(value.to_string()));
    Ok(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().iter().map(text).collect(),
        DataType::LargeUtf8 => column.as_string::<i64>().iter().map(text).collect(),
        DataType::Utf8View => column.as_string_view().iter().map(text).collect(),
        DataType::Boolean => column.as_boolean().iter().map(truth).collect(),
        DataType::Int8 => numbers::<Int8Type>(column),
        DataType::Int16 => numbers::<Int16Type>(column),
        DataType::Int32 => numbers::<Int32Type>(column),
        DataType::Int64 => numbers::<Int64Type>(column),
        DataType::UInt8 => numbers::<UInt8Type>(column),
        DataType::UInt16 => numbers::<UInt16Type>(column),
        DataType::UInt32 => numbers::<UInt32Type>(column),
        DataType::UInt64 => numbers::<UInt64Type>(column),
        DataType::Dictionary(..) => {
            let column = column.as_any_dictionary();
            // All rows are null; `normalized_keys` would panic.
            if column.values().is_empty() {
                return Ok(vec![None; column.len()]);
            }
            let values = stored(column.values())?;
            let keys = column.normalized_keys().into_iter().enumerate();
            keys.map(|(row, key)| values.get(key).filter(|_| !column.is_null(row)).cloned().flatten())
                .collect()
        }
        other => return Err(format!("expected integers, booleans or texts, got {other}")),
    })
}

/// Numbers that overflow become `i64::MAX`, which is refused as a label.
fn numbers<T: ArrowPrimitiveType<Native: TryInto<i64>>>(column: &ArrayRef) -> Vec<Option<Label>> {
    let number = |value: T::Native| Label::Number(value.try_into().unwrap_or(i64::MAX));
    column.as_primitive::<T>().iter().map(|value| value.map(number)).collect()
}

/// Indices into `classes`; `None` for a missing label or a negative one, which the hub writes for withheld labels.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{DictionaryArray, types::Int16Type};

    use super::*;

    #[test]
    fn rows_of_an_empty_dictionary_have_no_label() {
        let nothing: DictionaryArray<Int16Type> = [None::<&str>, None].into_iter().collect();
        assert!(nothing.values().is_empty());
        let column: ArrayRef = Arc::new(nothing);
        let found = stored(&column).unwrap();
        assert!(found.len() == 2 && found.iter().all(Option::is_none), "{found:?}");
    }
}
