//! Parquet with the columns and metadata of the Hugging Face hub, whole and damaged.

use std::{path::Path, sync::Arc};

use ::parquet::arrow::ArrowWriter;
use arrow_array::{Array, ArrayRef, BinaryArray, Int64Array, RecordBatch, StringArray, StructArray};
use arrow_schema::{DataType, Field, Schema};
use simclr_data::{DataError, Dataset, Split, dataset::Channels};

use super::{firsts, open, png};

/// Columns, names and metadata as the Hugging Face `datasets` library writes them.
pub fn hub_parquet(path: &Path, rows: &[(u8, i64)], names: &[&str]) {
    let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(rows.iter().map(|row| png(row.0))));
    let paths: ArrayRef =
        Arc::new(StringArray::from_iter_values(rows.iter().map(|row| format!("{}.png", row.0))));
    let fields = vec![
        (Arc::new(Field::new("bytes", DataType::Binary, true)), images),
        (Arc::new(Field::new("path", DataType::Utf8, true)), paths),
    ];
    let image = StructArray::from(fields);
    let labels = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
    let schema = Schema::new(vec![
        Field::new("image", image.data_type().clone(), true),
        Field::new("label", DataType::Int64, true),
    ]);
    let metadata =
        serde_json::json!({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}});
    let schema = Arc::new(schema.with_metadata([("huggingface".to_owned(), metadata.to_string())]));
    let batch = RecordBatch::try_new(schema.clone(), vec![Arc::new(image), Arc::new(labels)]).unwrap();
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer =
        ArrowWriter::try_new(fs_err::File::create(path).unwrap().into_file(), schema, None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn parquet_sets_of_the_hub() {
    let root = tempfile::tempdir().unwrap();
    let classes = ["ant", "bee", "cow"];
    hub_parquet(&root.path().join("data/train-00000-of-00002.parquet"), &[(10, 2), (20, 0)], &classes);
    hub_parquet(&root.path().join("data/train-00001-of-00002.parquet"), &[(30, -1)], &classes);
    hub_parquet(&root.path().join("data/validation-00000-of-00001.parquet"), &[(40, 1)], &classes);
    let set = open(root.path(), Split::Train);
    assert_eq!((set.classes(), firsts(&set)), (&classes.map(str::to_owned)[..], vec![10, 20, 30]));
    let labels: Vec<_> = set.samples().iter().map(|sample| sample.label).collect();
    assert_eq!(labels, [Some(2), Some(0), None]);
    assert!(Dataset::has_split(root.path(), Split::Test));
    let test = open(root.path(), Split::Test);
    assert_eq!((test.labels().unwrap(), firsts(&test)), (vec![1], vec![40]));
}

#[test]
fn damaged_and_other_parquet_files_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.parquet");
    hub_parquet(&path, &[(1, 0), (2, 5)], &["only"]);
    let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err().to_string();
    assert!(error.contains("label 5, expected below 1"), "{error}");
    hub_parquet(&path, &[(1, 1 << 40)], &[]);
    let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err().to_string();
    assert!(error.contains("expected below"), "{error}");
    let whole = fs_err::read(&path).unwrap();
    for bytes in [&whole[..whole.len() / 2], b"PAR1", b""] {
        fs_err::write(&path, bytes).unwrap();
        let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Format { .. }), "{error}");
    }
}
