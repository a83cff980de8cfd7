//! Labels from tables in the folder, given tables, shards and columns, with their notes.

use std::{path::Path, sync::Arc};

use ::parquet::arrow::ArrowWriter;
use arrow_array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, DictionaryArray, Float32Array, Int8Array,
    LargeBinaryArray, LargeStringArray, RecordBatch, StringArray, StringViewArray, UInt64Array,
    types::Int16Type,
};
use arrow_schema::{Field, Schema};
use proptest::prelude::*;
use simclr_data::{DataError, Dataset, Split, dataset::Channels, dataset::Labels};
use tempfile::TempDir;

use super::{firsts, names, open, png, put, tar::tar_of};

/// A folder with images and text files.
fn folder(images: &[&str], texts: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    images.iter().for_each(|name| put(root.path(), name, &png(name.len() as u8)));
    texts.iter().for_each(|(name, text)| put(root.path(), name, text.as_bytes()));
    root
}

/// Class of each image.
fn classes(set: &Dataset) -> Vec<Option<&str>> {
    let class = |label: u32| set.classes()[label as usize].as_str();
    set.samples().iter().map(|sample| sample.label.map(class)).collect()
}

fn parquet(path: &Path, columns: Vec<(&str, ArrayRef)>, names: Option<(&str, &[&str])>) {
    let field = |(name, column): &(&str, ArrayRef)| Field::new(*name, column.data_type().clone(), true);
    let mut schema = Schema::new(columns.iter().map(field).collect::<Vec<_>>());
    if let Some((column, names)) = names {
        let metadata = serde_json::json!({"info": {"features": {column: {"names": names}}}});
        schema = schema.with_metadata([("huggingface".to_owned(), metadata.to_string())]);
    }
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let batch = RecordBatch::try_new(Arc::new(schema), columns).unwrap();
    let file = fs_err::File::create(path).unwrap().into_file();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn metadata_of_image_folders_in_all_formats() {
    let images = ["pictures/1.png", "pictures/2.png", "pictures/3.png"];
    let csv = "file_name,text,label\npictures/1.png,x,dog\npictures/2.png,y,cat\npictures/3.png,z,dog\n";
    let lines: String = [("1", "dog"), ("2", "cat"), ("3", "dog")]
        .iter()
        .map(|(name, label)| {
            format!("{{\"file_name\": \"pictures/{name}.png\", \"label\": \"{label}\", \"box\": [1]}}\n")
        })
        .collect();
    let from_parquet = folder(&images, &[]);
    let paths: ArrayRef = Arc::new(LargeStringArray::from_iter_values(images));
    let labels: ArrayRef = Arc::new(Int8Array::from(vec![0, 1, 0]));
    let columns = vec![("file_name", paths), ("label", labels)];
    parquet(&from_parquet.path().join("metadata.parquet"), columns, Some(("label", &["dog", "cat"])));
    for (root, order) in [
        (folder(&images, &[("metadata.csv", csv)]), ["cat", "dog"]),
        (folder(&images, &[("metadata.jsonl", &lines)]), ["cat", "dog"]),
        (from_parquet, ["dog", "cat"]),
    ] {
        let set = open(root.path(), Split::Train);
        assert_eq!(classes(&set), [Some("dog"), Some("cat"), Some("dog")]);
        assert_eq!(set.classes(), order);
        assert_eq!(set.notes().len(), 1, "{:?}", set.notes());
        assert!(set.notes()[0].starts_with("labels are those of `metadata."), "{:?}", set.notes());
    }
}

#[test]
fn tables_in_several_splits_number_classes_alike() {
    let root = folder(
        &["train/1.png", "train/2.png", "test/1.png"],
        &[
            ("train/metadata.csv", "file_name,label\n1.png,b\n2.png,a\n"),
            ("test/metadata.csv", "file_name,label\n1.png,b\n"),
        ],
    );
    let [train, test] = [Split::Train, Split::Test].map(|split| open(root.path(), split));
    assert_eq!((train.labels().unwrap(), test.labels().unwrap()), (vec![1, 0], vec![1]));
    assert_eq!(train.classes(), test.classes());
    assert_eq!(train.notes(), ["labels are those of `test/metadata.csv`, `train/metadata.csv`"]);
    assert!(test.notes().is_empty(), "once for a set");
}

#[test]
fn tables_take_precedence_over_class_folders() {
    let rows = "x/1.png,cat\nx/2.png,dog\nz/9.png,dog\nx/8.png,cat\n";
    let root = folder(&["x/1.png", "x/2.png", "y/3.png"], &[("labels.csv", rows)]);
    let set = open(root.path(), Split::Train);
    assert_eq!(classes(&set), [Some("cat"), Some("dog"), None]);
    assert_eq!(
        set.notes(),
        [
            "labels are those of `labels.csv`; 1 of 3 images are not named there: `y/3.png`; 2 of 4 rows name no \
             image: `z/9.png`, `x/8.png`",
            "1 of 3 images have no label; evaluations with labels skip them: `y/3.png`",
        ]
    );
}

#[test]
fn tables_without_labels_are_ignored() {
    for (name, text, part) in [
        ("metadata.csv", "file_name,text\na/1.png,a photo\n", "its columns are file_name, text"),
        ("metadata.csv", "id,label\n1,cat\n", "expected a column of image names (file_name)"),
        ("labels.csv", "id,label\n77,cat\n", "none of its 1 rows names an image here, the first is `77`"),
    ] {
        let root = folder(&["a/1.png", "b/2.png"], &[(name, text)]);
        let set = open(root.path(), Split::Train);
        assert_eq!(classes(&set), [Some("a"), Some("b")]);
        let [note] = set.notes() else { panic!("{:?}", set.notes()) };
        assert!(note.starts_with(&format!("`{name}` gives no labels")) && note.contains(part), "{note}");
    }
}

#[test]
fn damaged_tables_remove_all_labels_with_a_note() {
    for (text, part) in [
        ("path,label\na/1.png,cat\nb/2.png\n", "line 3: 1 fields, expected 2"),
        ("path,label\na/1.png,cat\na/1.png,dog\n", "`a/1.png` has two labels, `cat` and `dog`"),
        ("path,label\n3.png,cat\n", "`3.png` is the last part of several names"),
    ] {
        let root = folder(&["a/1.png", "b/2.png", "a/3.png", "b/3.png"], &[("labels.csv", text)]);
        let set = open(root.path(), Split::Train);
        assert!(set.samples().iter().all(|sample| sample.label.is_none()) && set.classes().is_empty());
        let [note] = set.notes() else { panic!("{:?}", set.notes()) };
        assert!(note.contains("no image has a label") && note.contains(part), "{note}");
    }
}

#[test]
fn the_nearest_table_takes_precedence() {
    let root = folder(
        &["1.png", "deep/1.png", "deep/2.png"],
        &[
            ("metadata.csv", "file_name,label\n1.png,far\ndeep/1.png,far\ndeep/2.png,far\n"),
            ("deep/metadata.csv", "file_name,label\n2.png,near\n"),
            ("deep/labels.csv", "1.png,never\n"),
        ],
    );
    let set = open(root.path(), Split::Train);
    assert_eq!(classes(&set), [Some("far"), Some("far"), Some("near")]);
    assert!(set.notes()[1].contains("`deep/labels.csv` is not read"), "{:?}", set.notes());
}

#[test]
fn tiny_imagenet_annotations() {
    let root = folder(
        &[
            "t/train/n1/images/n1_0.JPEG",
            "t/train/n2/images/n2_0.JPEG",
            "t/val/images/val_0.JPEG",
            "t/val/images/val_1.JPEG",
            "t/test/images/test_0.JPEG",
        ],
        &[("t/val/val_annotations.txt", "val_0.JPEG\tn2\t0\t0\t9\t9\nval_1.JPEG\tn1\t1\t1\t2\t2\n")],
    );
    let train = open(root.path(), Split::Train);
    assert_eq!(train.classes(), ["n1", "n2"]);
    assert_eq!(classes(&train), [Some("n1"), Some("n2")]);
    assert_eq!(
        train.notes(),
        ["labels of the images in `t/val/images/` are those of `t/val/val_annotations.txt`"]
    );
    let validation = open(root.path(), Split::Validation);
    assert_eq!(names(&validation), ["t/val/images/val_0.JPEG", "t/val/images/val_1.JPEG"]);
    assert_eq!(classes(&validation), [Some("n2"), Some("n1")]);
    let test = open(root.path(), Split::Test);
    assert_eq!((names(&test), classes(&test)), (vec!["t/test/images/test_0.JPEG"], vec![None]));
    put(root.path(), "t/val/val_annotations.txt", b"val_0.JPEG n2\n");
    let note = open(root.path(), Split::Train).notes().join("; ");
    assert!(note.contains("line 1: expected a file and its class"), "{note}");
}

#[test]
fn labels_can_be_switched_off() {
    let root = folder(&["slide-1/1.png", "slide-2/1.png", "stray.png"], &[]);
    let set = open(root.path(), Split::Train);
    assert_eq!((set.classes().len(), set.notes().len()), (2, 1));
    let before = firsts(&set);
    let set = set.without_labels();
    assert_eq!((set.labels(), set.classes().len(), set.notes().len()), (None, 0, 0));
    assert_eq!(firsts(&set), before);
}

#[test]
fn given_tables_replace_all_labels() {
    let root = folder(&["a/1.png", "a/2.png", "b/x/3.png"], &[]);
    let table = |text: &str| {
        let elsewhere = folder(&[], &[("t.csv", text)]);
        let set = open(root.path(), Split::Train);
        set.labelled_from(&elsewhere.path().join("t.csv")).map_err(|error| error.to_string())
    };
    let set = table("id,target\n1,7\n2.png,10\nb/x/3.png,7\n").unwrap();
    assert_eq!(classes(&set), [Some("7"), Some("10"), Some("7")]);
    assert_eq!(set.classes(), ["7", "10"]);
    let [note] = set.notes() else { panic!("{:?}", set.notes()) };
    assert!(note.starts_with("labels are those of `") && note.ends_with("t.csv`"), "{note}");
    let some = table("id,target\n1,7\n4,9\n").unwrap();
    assert!(some.notes()[0].contains("2 of 3 images are not named there: `a/2.png`, `b/x/3.png`"));
    assert!(some.notes()[0].contains("1 of 2 rows name no image: `4`"), "{:?}", some.notes());
    assert_eq!(some.classes(), ["7"], "classes of images");
    assert!(
        table("id,target\n4,7\n").unwrap_err().contains("the first is `4`, an image is called `a/1.png`")
    );
    assert!(table("id,size\n1,7\n").unwrap_err().contains("its columns are id, size"));
    let error = open(root.path(), Split::Train).labelled_from(Path::new("/gone.csv")).unwrap_err();
    assert!(matches!(error, DataError::Config { key: "data.labels", .. }), "{error}");
    assert!(error.to_string().contains("/gone.csv"), "{error}");
}

#[test]
fn names_in_given_tables_are_looked_up_in_all_splits() {
    let root = folder(&["train/1.png", "train/2.png", "test/1.png", "test/3.png"], &[]);
    let labelled = |text: &str, split: Split| {
        let elsewhere = folder(&[], &[("t.csv", text)]);
        let labels: Labels = elsewhere.path().join("t.csv").display().to_string().into();
        let set = open(root.path(), split).labelled(&labels, root.path(), &[split]);
        set.map_err(|error| error.to_string())
    };
    let whole = "path,label\ntrain/1.png,a\n2.png,b\ntest/1.png,b\n3.png,c\n";
    let [train, test] = [Split::Train, Split::Test].map(|split| labelled(whole, split).unwrap());
    assert_eq!((classes(&train), classes(&test)), (vec![Some("a"), Some("b")], vec![Some("b"), Some("c")]));
    assert_eq!(train.classes(), test.classes());
    assert!(train.notes()[0].ends_with("t.csv`") && test.notes().is_empty(), "{:?}", train.notes());
    let error = labelled("path,label\n1.png,a\n", Split::Train).unwrap_err();
    assert!(error.contains("`1.png` is the last part of several names"), "{error}");
}

#[test]
fn json_members_of_webdataset_give_labels() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("train-0.tar");
    let images = [1, 2, 3].map(png);
    let members = |json: [&'static [u8]; 3]| {
        let mut members: Vec<(&str, &[u8])> = Vec::new();
        for (at, key) in
            [["0.png", "0.json"], ["1.png", "1.json"], ["2.png", "2.json"]].into_iter().enumerate()
        {
            members.extend([(key[0], &images[at][..]), (key[1], json[at])]);
        }
        members
    };
    let opened = |members: &[(&str, &[u8])]| {
        tar_of(&path, members);
        open(&path, Split::Train)
    };
    let set =
        opened(&members([br#"{"label": 10}"#, br#"{"cls": "9", "label": null}"#, br#"{"class_id": 10}"#]));
    assert_eq!(
        (classes(&set), set.classes()),
        (vec![Some("10"), Some("9"), Some("10")], &["9".into(), "10".into()][..])
    );
    let cat = br#"{"label": 10, "class_name": "cat"}"#;
    let set = opened(&members([cat, br#"{"label": 2, "class_name": "dog"}"#, cat]));
    assert_eq!(
        (classes(&set), set.labels()),
        (vec![Some("cat"), Some("dog"), Some("cat")], Some(vec![1, 0, 1]))
    );
    let unclear = opened(&members([cat, br#"{"label": 2, "class_name": "cat"}"#, cat]));
    assert_eq!(unclear.classes(), ["2", "10"], "one name of two classes names neither");
    let mut with_cls = members([cat, br#"{"caption": "a label"}"#, br#"{"label": [1, 2]}"#]);
    with_cls.push(("0.cls", b"4"));
    let set = opened(&with_cls);
    assert_eq!(classes(&set), [Some("4"), None, None]);
    assert_eq!(set.notes().len(), 2, "{:?}", set.notes());
    assert!(set.notes()[0].contains("1 .json members hold no integer or text as label"), "{:?}", set.notes());
    let folders =
        opened(&[("a/1.png", &images[0]), ("b/2.png", &images[1]), ("info.json", br#"{"label": 1}"#)]);
    assert_eq!(classes(&folders), [Some("a"), Some("b")], "a description of the set is no label");
}

#[test]
fn label_columns_of_all_types() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x.parquet");
    let pngs = [1, 2, 3].map(png);
    let images: Vec<&[u8]> = pngs.iter().map(Vec::as_slice).collect();
    let views = || Arc::new(BinaryViewArray::from_iter_values(&images)) as ArrayRef;
    let large = || Arc::new(LargeBinaryArray::from_iter_values(&images)) as ArrayRef;
    let category: DictionaryArray<Int16Type> = [Some("b"), None, Some("a")].into_iter().collect();
    let numbers: ArrayRef = Arc::new(UInt64Array::from(vec![1, 0, 1]));
    for (labels, expected, names) in [
        (numbers, [Some("yes"), Some("no"), Some("yes")], Some(("label", &["no", "yes"][..]))),
        (Arc::new(Int8Array::from(vec![Some(1), None, Some(-1)])), [Some("1"), None, None], None),
        (
            Arc::new(BooleanArray::from(vec![true, false, true])),
            [Some("true"), Some("false"), Some("true")],
            None,
        ),
        (
            Arc::new(StringViewArray::from_iter_values(["b", "a", "b"])),
            [Some("b"), Some("a"), Some("b")],
            None,
        ),
        (Arc::new(category), [Some("b"), None, Some("a")], None),
    ] {
        for images in [views(), large()] {
            let kind = labels.data_type().clone();
            parquet(&path, vec![("image", images), ("label", labels.clone())], names);
            let set = open(&path, Split::Train);
            assert_eq!((classes(&set), firsts(&set)), (expected.to_vec(), vec![1, 2, 3]), "{kind}");
        }
    }
    let scores: ArrayRef = Arc::new(Float32Array::from(vec![0.5, 1.0, 2.0]));
    parquet(&path, vec![("image", large()), ("label", scores)], None);
    let set = open(&path, Split::Train);
    assert_eq!(classes(&set), [None; 3]);
    assert!(set.notes()[0].contains("column `label` gives no labels") && set.notes()[0].contains("Float32"));
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["1", "2", "3"]));
    parquet(&path, vec![("image", texts.clone()), ("label", texts)], None);
    let error = Dataset::open(&path, Split::Train, Channels::Auto).unwrap_err().to_string();
    assert!(error.contains("expected bytes"), "{error}");
}

#[test]
fn integer_and_text_labels_in_one_set_are_refused_without_class_names() {
    let root = tempfile::tempdir().unwrap();
    let pngs = [1, 2].map(png);
    let images: Vec<&[u8]> = pngs.iter().map(Vec::as_slice).collect();
    let images: ArrayRef = Arc::new(LargeBinaryArray::from_iter_values(&images));
    let write = |name: &str, labels: ArrayRef, names: Option<&[&str]>| {
        let columns = vec![("image", Arc::clone(&images)), ("label", labels)];
        parquet(&root.path().join(name), columns, names.map(|names| ("label", names)));
    };
    let numbers = |values: [i8; 2]| Arc::new(Int8Array::from(values.to_vec())) as ArrayRef;
    let texts = || Arc::new(StringArray::from(vec!["ant", "bee"])) as ArrayRef;
    write("train-0.parquet", texts(), None);
    write("train-1.parquet", numbers([7, 0]), None);
    for split in [Split::Train, Split::Test] {
        let error = Dataset::open(root.path(), split, Channels::Auto).unwrap_err();
        assert!(matches!(error, DataError::Format { .. }), "{error}");
        let error = error.to_string();
        assert!(error.contains("train-0.parquet") && error.contains("train-1.parquet"), "{error}");
    }
    write("train-1.parquet", numbers([-1, -1]), None);
    assert_eq!(classes(&open(root.path(), Split::Train)), [Some("ant"), Some("bee"), None, None]);
    write("train-1.parquet", numbers([1, 0]), Some(&["ant", "bee"]));
    assert_eq!(
        classes(&open(root.path(), Split::Train)),
        [Some("ant"), Some("bee"), Some("bee"), Some("ant")]
    );
}

#[test]
fn label_options_round_trip() {
    for (text, labels) in [
        ("auto", Labels::Auto),
        ("none", Labels::None),
        ("./none", Labels::Table("./none".into())),
        ("a/b.csv", Labels::Table("a/b.csv".into())),
    ] {
        let read: Labels = serde_json::from_value(text.into()).unwrap();
        assert_eq!((&read, serde_json::to_value(&read).unwrap()), (&labels, text.into()));
    }
    assert!(Labels::Table("/gone.csv".into()).canonical().is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// A folder with a table is the set that the table describes, in whichever of the forms, found or given.
    #[test]
    fn any_table_labels_its_images(labels in proptest::collection::vec("[a-e]|[0-9]{1,2}", 1..12)) {
        let images: Vec<String> = (0..labels.len()).map(|at| format!("{at:02}.png")).collect();
        let rows: String = images.iter().zip(&labels).map(|(image, label)| format!("{image},{label}\n")).collect();
        let csv = format!("file_name,label\n{rows}");
        let names: Vec<&str> = images.iter().map(String::as_str).collect();
        let found = folder(&names, &[("metadata.csv", &csv)]);
        let given = folder(&names, &[("other.csv", &csv)]);
        let found = open(found.path(), Split::Train);
        let given = open(given.path(), Split::Train).labelled_from(&given.path().join("other.csv")).unwrap();
        let expected: Vec<Option<&str>> = labels.iter().map(|label| Some(label.as_str())).collect();
        prop_assert_eq!(classes(&found), expected);
        prop_assert_eq!(classes(&given), classes(&found));
        prop_assert_eq!((given.classes(), given.fingerprint()), (found.classes(), found.fingerprint()));
    }
}
