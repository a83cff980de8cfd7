//! Accepted tables, and refused ones with the line of the error.

use std::sync::Arc;

use ::parquet::{
    arrow::ArrowWriter,
    file::metadata::{ParquetMetaDataBuilder, ParquetMetaDataReader, ParquetMetaDataWriter},
};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use proptest::prelude::*;

use super::*;

fn read(name: &str, text: &str) -> Result<Vec<(String, Option<String>)>, Unusable> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs_err::write(&path, text).unwrap();
    let rows = Table::read(&path, &ANY)?.rows;
    Ok(rows.into_iter().map(|Row { image, label }| (image, label)).collect())
}

fn rows(of: &[(&str, &str)]) -> Result<Vec<(String, Option<String>)>, Unusable> {
    let label = |label: &str| Some(label.to_owned()).filter(|label| !label.is_empty());
    Ok(of.iter().map(|(image, text)| ((*image).to_owned(), label(text))).collect())
}

#[test]
fn columns_are_found_by_name_in_any_case_and_order() {
    let expected = rows(&[("1.png", "cat"), ("2.png", "")]);
    for text in [
        "file_name,label\n1.png,cat\n2.png,\n",
        "\u{feff}Path ; size; Class\n1.png;3;cat\n2.png;4;\n",
        "target\tx\tID\ncat\t1\t1.png\n\t2\t2.png",
        "\"filename\",\"text\",\"category\"\r\n1.png,\"a, b\",cat\r\n2.png,\"\",\"\"\r\n",
    ] {
        assert_eq!(read("t.csv", text), expected, "{text:?}");
    }
    let lines = "{\"image\": \"1.png\", \"label\": \"cat\"}\n\n{\"size\": [1, 2], \"image\": \"2.png\"}\n";
    assert_eq!(read("t.jsonl", lines), expected);
    let plain = "{\"image\": \"1.png\", \"label\": 7}\n{\"image\": \"2.png\", \"label\": true}";
    assert_eq!(read("t.jsonl", plain), rows(&[("1.png", "7"), ("2.png", "true")]));
}

#[test]
fn two_columns_need_no_header() {
    assert_eq!(read("t.csv", "a/1.png,cat\nb,dog\n"), rows(&[("a/1.png", "cat"), ("b", "dog")]));
    assert_eq!(read("t.csv", "0;1.JPG\n1;2.JPG\n"), rows(&[("1.JPG", "0"), ("2.JPG", "1")]));
    assert!(matches!(read("t.csv", "1.png,cat,x\n2.png,dog,y\n"), Err(Unusable::OtherColumns(_))));
}

#[test]
fn errors_name_the_columns_or_the_line() {
    for (name, text, is_damaged, part) in [
        ("t.csv", "file_name,text\n1.png,a photo\n", false, "its columns are file_name, text"),
        ("t.csv", "name,label\n1,cat\n", false, "image names (path, file, file_name"),
        ("t.csv", "", false, "empty"),
        ("t.csv", "path,label\n1.png,cat\n2.png\n", true, "line 3: 1 fields, expected 2"),
        ("t.jsonl", "{\"path\": \"1.png\", \"label\": 1}\n[2]\n", true, "line 2, column"),
        ("t.jsonl", "{\"path\": \"1.png\", \"label\": 0.5}\n", true, "line 1: label is 0.5"),
        ("t.parquet", "PAR1", true, "not a parquet file"),
        ("t.xlsx", "path,label", true, ".csv, .tsv, .jsonl or .parquet"),
    ] {
        let error = read(name, text).unwrap_err();
        assert_eq!(matches!(error, Unusable::Damaged(_)), is_damaged, "{text:?}: {error:?}");
        let reason = error.reason();
        assert!(reason.contains(part), "{text:?}: {reason}");
    }
}

/// A second footer behind a valid file, which readers take instead of the first, with a column that begins before the file.
#[test]
fn a_table_on_which_the_parser_panics_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let column = |text: &str| Arc::new(StringArray::from_iter_values([text])) as ArrayRef;
    let batch = RecordBatch::try_from_iter([("path", column("1.png")), ("label", column("cat"))]).unwrap();
    let file = fs_err::File::create(&path).unwrap().into_file();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    assert_eq!(Table::read(&path, &ANY).unwrap().rows.len(), 1);
    let file = fs_err::File::open(&path).unwrap().into_file();
    let footer = ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
    let group = footer.row_group(0);
    let first = group.column(0).clone().into_builder().set_dictionary_page_offset(None);
    let first = first.set_data_page_offset(-4).build().unwrap();
    let columns = vec![first, group.column(1).clone()];
    let group = group.clone().into_builder().set_column_metadata(columns).build().unwrap();
    let footer =
        ParquetMetaDataBuilder::new(footer.file_metadata().clone()).set_row_groups(vec![group]).build();
    let mut appended = fs_err::OpenOptions::new().append(true).open(&path).unwrap();
    ParquetMetaDataWriter::new(&mut appended, &footer).finish().unwrap();
    let Err(Unusable::Damaged(reason)) = Table::read(&path, &ANY) else { panic!("accepted") };
    assert!(reason.contains("its parser failed"), "{reason}");
}

#[test]
fn cells_match_whole_names_or_unique_last_components() {
    let names = ["a/1.png", "a/2.png", "b/2.png", "b/3.jpg", "3.jpg"];
    let names = Names::of(names.into_iter().enumerate());
    for (cell, found) in [
        ("a/2.png", Ok(1)),
        ("./a/1.png", Ok(0)),
        ("b\\2.png", Ok(2)),
        ("1.png", Ok(0)),
        ("1", Ok(0)),
        ("2.png", Err(Missed::Several)),
        ("2", Err(Missed::Several)),
        ("3.jpg", Ok(4)),
        ("4.png", Err(Missed::Unknown)),
        ("c/1.png", Err(Missed::Unknown)),
        ("", Err(Missed::Unknown)),
    ] {
        assert_eq!(names.find_cell(cell), found, "{cell}");
    }
}

#[test]
fn class_names_of_the_hub_come_first_in_their_order() {
    let named = ["b", "a", "b"].map(str::to_owned);
    assert_eq!(classes(&named, ["c", "a"].into_iter()).names, ["b", "a", "c"]);
    assert_eq!(classes(&[], ["10", "9", "10"].into_iter()).names, ["9", "10"]);
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[a-z,;\t\n\r\"{}:.\u{e9} ]{0,60}", ending in "csv|jsonl|parquet") {
        let _ = read(&format!("t.{ending}"), &text);
    }

    #[test]
    fn written_tables_round_trip(cells in proptest::collection::vec("[a-z0-9,;\"/ ]{1,9}", 1..9), with in 0..3usize) {
        let mut writer = ::csv::WriterBuilder::new().delimiter([b',', b';', b'\t'][with]).from_writer(Vec::new());
        writer.write_record(["path", "x", "label"]).unwrap();
        cells.iter().for_each(|cell| writer.write_record([cell, "", &cell.to_uppercase()]).unwrap());
        let text = String::from_utf8(writer.into_inner().unwrap()).unwrap();
        let cells = cells.iter().map(|cell| cell.trim());
        let label = |cell: &str| Some(cell.to_uppercase()).filter(|label| !label.is_empty());
        let expected: Vec<_> = cells.map(|cell| (cell.to_owned(), label(cell))).collect();
        prop_assert_eq!(read("t.csv", &text).unwrap(), expected);
    }
}
