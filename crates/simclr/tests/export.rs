//! What leaves: the encoder file with torchvision's names, and tables of h.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::path::Path;

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{ListAccessor, Row, RowAccessor},
};
use safetensors::SafeTensors;
use simclr::{
    CheckpointError, EvalError,
    checkpoint::Checkpoint,
    data::{
        Dataset, Split,
        augment::TransformChange,
        dataset::{Channels, Labels},
    },
    device::Precision,
    encoder::Mode,
    eval::{
        features::{ReadOptions, features, load_encoder},
        layer::Layer,
    },
    explore::{map::principal, projection::Projection, umap::umap},
    export::{EmbedOptions, MoreColumns, embed, export_encoder, load_exported},
    train::RunFolder,
};
use tch::{Device, Kind, Tensor};

mod fixtures;

#[test]
fn the_frozen_encoder_is_the_one_of_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let (run, model) = fixtures::run(folder.path(), "conv-c3");
    let frozen = load_encoder(&run).unwrap();
    let images = Tensor::rand([4, 3, 16, 16], (Kind::Float, Device::Cpu));
    let want = tch::no_grad(|| model.encoder.forward(&images, &Mode::Eval, Precision::F32)).unwrap();
    assert_eq!(frozen.forward(&images).unwrap(), want);
    assert_eq!((frozen.origin().step, frozen.origin().total_steps), (7, Some(9)));
}

#[test]
fn names_are_torchvisions_and_values_the_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let (run, model) = fixtures::run(folder.path(), "resnet18");
    let out = folder.path().join("encoder.safetensors");
    let exported = export_encoder(&run, &out).unwrap();
    assert_eq!(exported.difference, 0.0);
    let bytes = fs_err::read(&out).unwrap();
    assert_eq!(exported.bytes, bytes.len() as u64);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    // torchvision.models.resnet18 has 122 entries, two of them fc's.
    assert_eq!((file.len(), exported.tensors), (120, 120));
    assert!(file.names().iter().all(|name| !name.starts_with("encoder.") && !name.starts_with("head.")));
    for (name, tensor) in model.params.named() {
        let Some(name) = name.strip_prefix("encoder.") else { continue };
        let want = Vec::<f32>::try_from(tensor.detach().contiguous().view([-1])).unwrap();
        let want: Vec<u8> = want.into_iter().flat_map(f32::to_le_bytes).collect();
        assert!(file.tensor(name).unwrap().data() == want, "{name}");
    }
    let counter = file.tensor("layer4.1.bn2.num_batches_tracked").unwrap();
    assert_eq!((counter.shape(), counter.data()), (&[] as &[usize], &[0u8; 8][..]));
}

#[test]
fn metadata_describes_the_expected_input() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(folder.path(), "resnet18");
    let out = folder.path().join("encoder.safetensors");
    export_encoder(&run, &out).unwrap();
    let bytes = fs_err::read(&out).unwrap();
    let metadata = SafeTensors::read_metadata(&bytes).unwrap().1.metadata().clone().unwrap();
    let expected = [
        ("architecture", "resnet18"),
        ("stem", "cifar"),
        ("padding", "symmetric"),
        ("image_size", "16"),
        ("channels", "3"),
        ("input_range", "[0, 1]"),
        ("input_mean", "0"),
        ("input_std", "1"),
        ("feature_dim", "512"),
        ("step", "7"),
        ("total_steps", "9"),
        ("version", env!("CARGO_PKG_VERSION")),
    ];
    for (key, value) in expected {
        assert_eq!(metadata[&format!("simclr.{key}")], value, "{key}");
    }
}

#[test]
fn a_checkpoint_of_another_model_is_refused_and_the_old_export_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(folder.path(), "conv-c3");
    let out = folder.path().join("encoder.safetensors");
    export_encoder(&run, &out).unwrap();
    let before = fs_err::read(&out).unwrap();
    let alter = |change: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = Checkpoint::load(&run.checkpoint_file(7)).unwrap();
        change(&mut checkpoint);
        checkpoint.save(&run.checkpoint_file(8)).unwrap();
        export_encoder(&run, &out).unwrap_err()
    };
    let name = Checkpoint::load(&run.checkpoint_file(7)).unwrap().tensors.into_keys().next().unwrap();
    let error = alter(&|checkpoint| drop(checkpoint.tensors.remove(&name)));
    assert!(
        matches!(&error, EvalError::Checkpoint(CheckpointError::Mismatch { .. }))
            && error.to_string().contains(&name),
        "{error}"
    );
    let error =
        alter(&|checkpoint| drop(checkpoint.tensors.insert(name.clone(), Tensor::from_slice(&[1.0f32; 3]))));
    assert!(
        matches!(&error, EvalError::Checkpoint(CheckpointError::Mismatch { .. }))
            && error.to_string().contains("[3]"),
        "{error}"
    );
    assert_eq!(fs_err::read(&out).unwrap(), before);
}

#[test]
fn no_file_is_left_where_none_can_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(folder.path(), "conv-c3");
    let out = folder.path().join("no such folder/encoder.safetensors");
    let error = export_encoder(&run, &out).unwrap_err().to_string();
    assert!(error.contains("no such folder"), "{error}");
    assert!(!out.exists());
}

/// A labelled folder with six good images and one that is cut, and the run that embeds it.
fn to_embed(folder: &Path) -> (RunFolder, Vec<String>, Tensor) {
    let (run, _) = fixtures::run(&folder.join("run"), "conv-c3");
    let data = folder.join("data");
    fixtures::images(&data, 3);
    let set = Dataset::open(&data, Split::Train, Channels::Count(3)).unwrap();
    let frozen = load_encoder(&run).unwrap();
    let read = ReadOptions::of(&frozen, 2, 1);
    let h = features(&frozen, &set, &[0, 1, 2, 3, 4, 5], &read, &mut |_, _| {}).unwrap().features.remove(0);
    let whole = fs_err::read(data.join("low/000.png")).unwrap();
    fs_err::write(data.join("low/999.png"), &whole[..whole.len() / 2]).unwrap();
    (run, set.samples().iter().map(|sample| sample.name.clone()).collect(), h)
}

const OPTIONS: EmbedOptions = EmbedOptions {
    device: None,
    split: None,
    labels: Labels::Auto,
    batch: 4,
    threads: 1,
    pixels: false,
    transform: TransformChange { crop: None, interpolation: None, antialias: None, jpeg: None },
    layer: Layer::H,
    more: MoreColumns { map: None, images: false },
};

#[test]
fn parquet_holds_path_label_class_and_h() {
    let folder = tempfile::tempdir().unwrap();
    let (run, names, h) = to_embed(folder.path());
    let out = folder.path().join("h.parquet");
    let written = embed(&run, &folder.path().join("data"), &out, &OPTIONS, &mut |_, _| {}).unwrap();
    assert_eq!((written.images, written.feature_dim as i64, written.bad.len()), (6, h.size()[1], 1));
    assert!(written.bad[0].name.contains("999.png"));
    let reader = SerializedFileReader::new(fs_err::File::open(&out).unwrap().into_file()).unwrap();
    let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 6);
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(row.get_string(0).unwrap(), &names[index]);
        let label = (index / 3) as i32;
        assert_eq!(
            (
                row.get_string(1).unwrap().as_str(),
                row.get_int(2).unwrap(),
                row.get_string(3).unwrap().as_str()
            ),
            ("train", label, ["light", "low"][index / 3])
        );
        let list = row.get_list(4).unwrap();
        let got: Vec<f32> = list.elements().iter().map(|value| value.to_string().parse().unwrap()).collect();
        let want = Vec::<f32>::try_from(h.get(index as i64)).unwrap();
        assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "row {index}");
        assert_eq!(got.len(), want.len());
    }
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 3, "no temporary file stays");
}

/// Rows of a table, x and y of which follow from its h; the images decode to what the encoder saw.
#[test]
fn map_and_images_are_columns_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let (run, names, h) = to_embed(folder.path());
    let (data, out) = (folder.path().join("data"), folder.path().join("h.parquet"));
    let write = |map, images| {
        let options = EmbedOptions { more: MoreColumns { map, images }, ..OPTIONS };
        embed(&run, &data, &out, &options, &mut |_, _| {}).unwrap();
        let reader = SerializedFileReader::new(fs_err::File::open(&out).unwrap().into_file()).unwrap();
        reader.get_row_iter(None).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    let columns = |rows: &[Row]| rows[0].get_column_iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    let map = write(Some(Projection::Pca), false);
    assert_eq!(columns(&map), ["path", "part", "label", "class", "x", "y", "h"]);
    let expected = principal(&h).unwrap().points;
    for (row, expected) in map.iter().zip(&expected) {
        let place = [4, 5].map(|column| f64::from(row.get_float(column).unwrap()));
        assert!(place.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{place:?} {expected:?}");
    }
    let rows = write(Some(Projection::Umap), false);
    let values = |row: &Row| -> Vec<f32> {
        let list = row.get_list(6).unwrap();
        (0..list.len()).map(|at| list.get_float(at).unwrap()).collect()
    };
    let written = Tensor::from_slice(&rows.iter().flat_map(values).collect::<Vec<_>>()).view(&h.size()[..]);
    for (row, expected) in rows.iter().zip(umap(&written, 0).unwrap()) {
        assert_eq!([4, 5].map(|column| row.get_float(column).unwrap()), expected.map(|value| value as f32));
    }
    assert_eq!(columns(&write(None, true)), ["path", "part", "label", "class", "image", "h"]);
    let both = write(Some(Projection::Pca), true);
    assert_eq!((columns(&both).len(), both.len()), (8, 6));
    let side = load_encoder(&run).unwrap().image_size();
    for (row, name) in both.iter().zip(&names) {
        let image = row.get_group(6).unwrap();
        assert_eq!(image.get_string(1).unwrap(), name);
        let seen = image::load_from_memory(image.get_bytes(0).unwrap().data()).unwrap().to_rgb8();
        let original = image::open(data.join(name)).unwrap().to_rgb8();
        assert_eq!(seen.dimensions(), (side as u32, side as u32));
        let mean = |image: &image::RgbImage| {
            image.as_raw().iter().map(|&value| f64::from(value)).sum::<f64>() / image.as_raw().len() as f64
        };
        assert!((mean(&seen) - mean(&original)).abs() < 3.0, "{name}: {} {}", mean(&seen), mean(&original));
    }
    let options = EmbedOptions { more: MoreColumns { map: Some(Projection::Pca), images: false }, ..OPTIONS };
    let refused = embed(&run, &data, &folder.path().join("h.npy"), &options, &mut |_, _| {}).unwrap_err();
    assert!(refused.to_string().contains(".parquet"), "{refused}");
}

/// The layout that TensorBoard's projector reads; read back with its server by hand (docs/howto/look.md).
#[test]
fn a_table_for_the_projector() {
    let folder = tempfile::tempdir().unwrap();
    let (run, names, h) = to_embed(folder.path());
    let (data, out) = (folder.path().join("data"), folder.path().join("p/h.tsv"));
    let write = |map, images, out: &Path| {
        let options = EmbedOptions { more: MoreColumns { map, images }, ..OPTIONS };
        embed(&run, &data, out, &options, &mut |_, _| {})
    };
    let written = write(None, true, &out).unwrap();
    let metadata = written.paths_file.unwrap();
    let values = fs_err::read_to_string(&out).unwrap();
    let rows: Vec<f32> = values.split_whitespace().map(|value| value.parse().unwrap()).collect();
    let found = Tensor::from_slice(&rows).view([6, -1]);
    assert_eq!(values.lines().count(), 6);
    assert!(f64::try_from((found - &h).abs().max()).unwrap() < 1e-5);
    let lines = fs_err::read_to_string(&metadata).unwrap();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!((lines.len(), lines[0]), (7, "path\tpart\tclass"));
    assert_eq!(lines[6], format!("{}\ttrain\tlow", names[5]));
    let config = fs_err::read_to_string(folder.path().join("p/projector_config.pbtxt")).unwrap();
    for line in [
        "tensor_path: \"h.tsv\"",
        "metadata_path: \"h.tsv.metadata.tsv\"",
        "image_path: \"h.tsv.sprite.jpg\"",
    ] {
        assert!(config.contains(line), "{config}");
    }
    // Tiles for all seven images in rows of three; the projector computes the rows from the side of a tile.
    let sprite = image::open(folder.path().join("p/h.tsv.sprite.jpg")).unwrap();
    let side = load_encoder(&run).unwrap().image_size() as u32;
    assert!(config.contains(&format!("single_image_dim: {side}")), "{config}");
    assert_eq!((sprite.width(), sprite.height()), (3 * side, 3 * side));
    write(None, false, &out).unwrap();
    let error = write(Some(Projection::Pca), false, &out).unwrap_err().to_string();
    assert!(error.contains("computes its own maps"), "{error}");
    fs_err::create_dir(folder.path().join("q")).unwrap();
    fs_err::write(folder.path().join("q/projector_config.pbtxt"), "embeddings {}").unwrap();
    let error = write(None, false, &folder.path().join("q/h.tsv")).unwrap_err().to_string();
    assert!(error.contains("projector_config.pbtxt"), "{error}");
    assert!(!folder.path().join("q/h.tsv").exists());
}

#[test]
fn labels_are_those_of_a_given_table_or_none() {
    let folder = tempfile::tempdir().unwrap();
    let (run, names, _) = to_embed(folder.path());
    let (data, table) = (folder.path().join("data"), folder.path().join("t.csv"));
    fs_err::write(&table, format!("path,label\n{},x\n{},y\n", names[4], names[1])).unwrap();
    let classes = |labels: Labels| {
        let out = folder.path().join("h.parquet");
        let options = EmbedOptions { labels, ..OPTIONS };
        let written = embed(&run, &data, &out, &options, &mut |_, _| {}).unwrap();
        let reader = SerializedFileReader::new(fs_err::File::open(&out).unwrap().into_file()).unwrap();
        let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap);
        (rows.map(|row| row.get_string(3).cloned().ok()).collect::<Vec<_>>(), written.notes)
    };
    let [x, y] = ["x", "y"].map(|class| Some(class.to_owned()));
    let (found, notes) = classes(Labels::Table(table.clone()));
    assert_eq!(found, [None, y, None, None, x, None]);
    let noted = |part: &str| notes.iter().any(|note| note.contains(part));
    assert!(
        noted("t.csv`; 5 of 7 images are not named there") && noted("5 of 7 images have no label"),
        "{notes:?}"
    );
    assert_eq!(classes(Labels::None).0, [const { None::<String> }; 6]);
}

#[test]
fn npy_has_h_and_a_file_of_paths() {
    let folder = tempfile::tempdir().unwrap();
    let (run, names, h) = to_embed(folder.path());
    let out = folder.path().join("h.npy");
    let written = embed(&run, &folder.path().join("data"), &out, &OPTIONS, &mut |_, _| {}).unwrap();
    let array = Tensor::read_npy(&out).unwrap();
    assert_eq!((array.kind(), array.size()), (Kind::Float, h.size()));
    assert!((array - h).abs().max().double_value(&[]) < 1e-5);
    let paths = fs_err::read_to_string(written.paths_file.unwrap()).unwrap();
    assert_eq!(paths.lines().collect::<Vec<_>>(), names);
}

#[test]
fn another_ending_is_refused_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (run, _) = fixtures::run(folder.path(), "conv-c3");
    let out = folder.path().join("h.csv");
    let error = embed(&run, Path::new("nowhere"), &out, &OPTIONS, &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains(".parquet, .npy or .tsv"), "{error}");
}

#[test]
fn an_exported_encoder_loads_without_its_run() {
    let folder = tempfile::tempdir().unwrap();
    for encoder in ["resnet18", "conv-c3"] {
        let (run, _) = fixtures::run(&folder.path().join(encoder), encoder);
        let out = folder.path().join(format!("{encoder}.safetensors"));
        export_encoder(&run, &out).unwrap();
        let (ours, theirs) = (load_encoder(&run).unwrap(), load_exported(&out).unwrap());
        let images = Tensor::rand([4, 3, 16, 16], (Kind::Float, Device::Cpu));
        assert_eq!(ours.forward(&images).unwrap(), theirs.forward(&images).unwrap());
        assert_eq!((ours.transform(), ours.decoding()), (theirs.transform(), theirs.decoding()));
        assert_eq!((theirs.origin().step, theirs.origin().total_steps), (7, Some(9)));
        assert!(theirs.layer_dim(Layer::Head(1)).is_err(), "an export has no head");
        let checkpoint = load_exported(&run.checkpoint_file(7)).unwrap_err();
        assert!(checkpoint.to_string().contains("simclr.config"), "{checkpoint}");
    }
}
