//! CSV with commas, semicolons or tabs: with a header, or two columns without one.

use std::path::Path;

use ::csv::{ErrorKind, ReaderBuilder, StringRecord, Trim};

use super::{super::layout, Row, Unusable, places, text_of};

const SEPARATORS: [char; 3] = [',', ';', '\t'];

pub fn read(path: &Path, images: &[&str]) -> Result<Vec<Row>, Unusable> {
    let text = text_of(path)?;
    let mut builder = ReaderBuilder::new();
    builder.has_headers(false).trim(Trim::All).delimiter(separator(&text));
    let mut records = builder.from_reader(text.as_bytes()).into_records();
    let empty = || Unusable::OtherColumns("it is empty".into());
    let first = records.next().ok_or_else(empty)?.map_err(damaged)?;
    let (places, is_row) = layout_of(&first, images)?;
    let mut rows: Vec<Row> = is_row.then(|| row(&first, places)).into_iter().collect();
    for record in records {
        rows.push(row(&record.map_err(damaged)?, places));
    }
    Ok(rows)
}

/// The most frequent separator in the first line.
fn separator(text: &str) -> u8 {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let count = |separator: &char| first.matches(*separator).count();
    // Ties go to the last one: the comma.
    SEPARATORS.into_iter().rev().max_by_key(count).unwrap_or(',') as u8
}

/// Columns of image and label, and whether the first line is a row.
fn layout_of(first: &StringRecord, images: &[&str]) -> Result<((usize, usize), bool), Unusable> {
    let columns: Vec<String> = first.iter().map(str::to_owned).collect();
    let found = places(&columns, images);
    match (&columns[..], found) {
        ([one, other], Err(_)) if layout::is_image(one) && !layout::is_image(other) => Ok(((0, 1), true)),
        ([one, other], Err(_)) if layout::is_image(other) && !layout::is_image(one) => Ok(((1, 0), true)),
        (_, found) => Ok((found?, false)),
    }
}

fn row(record: &StringRecord, (image, label): (usize, usize)) -> Row {
    let cell = |at: usize| record.get(at).unwrap_or_default().to_owned();
    Row { image: cell(image), label: Some(cell(label)).filter(|label| !label.is_empty()) }
}

fn damaged(error: ::csv::Error) -> Unusable {
    let line = error.position().map(|at| format!("line {}: ", at.line())).unwrap_or_default();
    Unusable::Damaged(match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            format!("{line}{len} fields, expected {expected_len} as in the first line")
        }
        _ => format!("{line}{error}"),
    })
}
