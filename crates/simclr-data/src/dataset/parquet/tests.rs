//! The two sources of a parquet set, in memory and on disk, against each other.

use std::path::Path;

use parquet::file::metadata::{
    ColumnChunkMetaDataBuilder, ParquetMetaData, ParquetMetaDataBuilder, ParquetMetaDataReader,
    ParquetMetaDataWriter, RowGroupMetaData,
};

use super::*;
use crate::dataset::parquet::tests::fixture::{png, write};

mod fixture {
    use std::{path::Path, sync::Arc};

    use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
    use parquet::{arrow::ArrowWriter, basic::Compression, file::properties::WriterProperties};

    pub fn png(value: u8) -> Vec<u8> {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let image = image::GrayImage::from_pixel(2, 3, image::Luma([value]));
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    /// Row groups of three rows, plain bytes and text labels.
    pub fn write(path: &Path, rows: &[(u8, &str)]) {
        let images: Vec<_> = rows.iter().map(|row| png(row.0)).collect();
        let images: ArrayRef = Arc::new(BinaryArray::from_iter_values(images));
        let labels: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1)));
        let batch = RecordBatch::try_from_iter([("image", images), ("label", labels)]).unwrap();
        let properties = WriterProperties::builder().set_max_row_group_row_count(Some(3));
        let properties = properties.set_compression(Compression::SNAPPY).build();
        let file = fs_err::File::create(path).unwrap().into_file();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
    }
}

fn rows() -> Vec<(u8, &'static str)> {
    (0..8).map(|row| (row * 30, ["b", "a", "c"][usize::from(row) % 3])).collect()
}

fn both(folder: &Path) -> [Opened; 2] {
    let path = folder.join("train-00000.parquet");
    write(&path, &rows());
    [u64::MAX, 0].map(|keep| open_keeping(std::slice::from_ref(&path), Split::Train, keep).unwrap())
}

#[test]
fn memory_and_disk_give_the_same_images_in_any_order_from_any_thread() {
    let folder = tempfile::tempdir().unwrap();
    let [memory, disk] = both(folder.path());
    assert_eq!((memory.samples.len(), &memory.samples, &memory.classes), (8, &disk.samples, &disk.classes));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let (memory, disk) = (&memory.source, &disk.source);
            scope.spawn(move || {
                for index in (0..40).map(|step| (step * 5 + worker) % 8) {
                    let image = disk.decode(index, &1.into()).unwrap();
                    assert_eq!(image.data, vec![index as u8 * 30; 6]);
                    assert_eq!(image, memory.decode(index, &1.into()).unwrap());
                }
            });
        }
    });
}

#[test]
fn text_labels_of_the_test_part_are_numbered_as_in_training() {
    let folder = tempfile::tempdir().unwrap();
    let [train, test] = ["train-0.parquet", "test-0.parquet"].map(|name| folder.path().join(name));
    write(&train, &rows());
    write(&test, &[(1, "c")]);
    let opened = open(&[train, test], Split::Test).unwrap();
    assert_eq!((opened.samples[0].label, opened.classes.len()), (Some(2), 3));
}

#[test]
fn encoded_images_are_read_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.parquet");
    write(&path, &rows());
    let file = File::open(&path).unwrap();
    let rows: Vec<_> = file.rows().collect();
    assert_eq!(rows[4], (1, 1));
    assert_eq!(file.read_row(1, 1).unwrap(), png(120));
    assert_eq!(file.read_all().unwrap()[4], png(120));
}

/// A second footer behind a valid file, which readers take instead of the first, with other claims.
fn with_footer(folder: &Path, change: impl Fn(ParquetMetaData) -> ParquetMetaData) -> Result<Opened, String> {
    let path = folder.join("train-00000.parquet");
    write(&path, &rows());
    let file = fs_err::File::open(&path).unwrap().into_file();
    let footer = ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
    let mut appended = fs_err::OpenOptions::new().append(true).open(&path).unwrap();
    ParquetMetaDataWriter::new(&mut appended, &change(footer)).finish().unwrap();
    open_keeping(&[path], Split::Train, 0).map_err(|error| error.to_string())
}

/// Changes the first row group; the writer adds up the rows of the groups.
fn first_group(
    change: impl Fn(RowGroupMetaData) -> RowGroupMetaData,
) -> impl Fn(ParquetMetaData) -> ParquetMetaData {
    move |footer| {
        let groups = [vec![change(footer.row_group(0).clone())], footer.row_groups()[1..].to_vec()].concat();
        ParquetMetaDataBuilder::new(footer.file_metadata().clone()).set_row_groups(groups).build()
    }
}

fn claiming(rows: i64) -> impl Fn(ParquetMetaData) -> ParquetMetaData {
    first_group(move |group| group.into_builder().set_num_rows(rows).build().unwrap())
}

fn column_claiming(
    change: fn(ColumnChunkMetaDataBuilder) -> ColumnChunkMetaDataBuilder,
) -> impl Fn(ParquetMetaData) -> ParquetMetaData {
    first_group(move |group| {
        let column = change(group.column(0).clone().into_builder()).build().unwrap();
        let columns = [vec![column], group.columns()[1..].to_vec()].concat();
        group.into_builder().set_column_metadata(columns).build().unwrap()
    })
}

/// Claims of a footer: numbers of rows, and ranges of columns.
#[test]
fn footers_are_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    assert!(with_footer(folder.path(), |footer| footer).is_ok(), "a second valid footer is read");
    let refused = |found: Result<Opened, String>, what: &str| {
        let error = found.err().unwrap_or_else(|| panic!("accepted: {what}"));
        assert!(error.contains("its footer claims") && error.contains(what), "{error}");
    };
    refused(with_footer(folder.path(), claiming(1 << 31)), "2147483653 rows, the file has");
    refused(with_footer(folder.path(), claiming(-1)), "-1 rows in a group");
    let negative = column_claiming(|column| column.set_data_page_offset(-4));
    refused(with_footer(folder.path(), negative), "-4 as the start of a column");
    let long = column_claiming(|column| column.set_total_compressed_size(1 << 40));
    refused(with_footer(folder.path(), long), "a column of 1099511627776 bytes");
}
