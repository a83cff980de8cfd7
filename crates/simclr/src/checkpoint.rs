//! Named tensors and JSON sections in one safetensors file, written atomically. Independent of any model.
//!
//! The sections, a format version and a checksum over contents are in the `__metadata__` of the safetensors header, so any
//! safetensors reader can open a checkpoint.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, View, tensor::TensorView};
use serde::de::DeserializeOwned;
use serde_json::Value;
pub use simclr_data::atomic_file::{PARTIAL_PREFIX, write as write_atomically};
use tch::{Device, Kind, Tensor};

use crate::{CheckpointError, ModelError};

/// Format version, increased when older programs cannot read newer files.
const VERSION: &str = "1";
const VERSION_KEY: &str = "simclr.version";
const CHECKSUM_KEY: &str = "simclr.crc32c";
const SECTION_PREFIX: &str = "simclr.section.";

/// The contents of a checkpoint file.
#[derive(Debug, Default)]
pub struct Checkpoint {
    /// The file that it was read from; empty if it was not read.
    pub path: PathBuf,
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// JSON sections by name (`state`, `config`, `versions`).
    pub sections: BTreeMap<String, Value>,
}

impl Checkpoint {
    /// Writes atomically, see [`write_atomically`].
    ///
    /// # Errors
    /// Full disk, missing permissions; an existing file is not modified.
    pub fn save(&self, path: &Path) -> Result<(), CheckpointError> {
        let stored: Vec<_> =
            self.tensors.iter().map(|(name, tensor)| (name.as_str(), Stored::of(tensor))).collect();
        let mut metadata = BTreeMap::from([(VERSION_KEY.to_owned(), VERSION.to_owned())]);
        for (name, section) in &self.sections {
            metadata.insert(format!("{SECTION_PREFIX}{name}"), section.to_string());
        }
        let found =
            checksum(&metadata, stored.iter().map(|(name, s)| (*name, s.dtype, &s.shape[..], &s.bytes[..])));
        metadata.insert(CHECKSUM_KEY.to_owned(), found);
        let bytes = encode(stored, &metadata);
        let bytes = bytes.map_err(|error| damaged(path, format!("cannot be encoded: {error}")))?;
        Ok(write_atomically(path, &bytes)?)
    }

    /// Reads a file and verifies its checksum.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] for a truncated file, another format or another version.
    pub fn load(path: &Path) -> Result<Self, CheckpointError> {
        let bytes = fs_err::read(path)?;
        let wrong = |error: safetensors::SafeTensorError| {
            damaged(path, format!("not a whole safetensors file: {error}"))
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(wrong)?;
        let mut metadata: BTreeMap<_, _> =
            header.metadata().clone().unwrap_or_default().into_iter().collect();
        match metadata.get(VERSION_KEY).map(String::as_str) {
            Some(VERSION) => {}
            Some(other) => {
                return Err(damaged(path, format!("it has format version {other}, expected {VERSION}")));
            }
            None => {
                return Err(damaged(path, "a safetensors file, but not a checkpoint of this program".into()));
            }
        }
        let file = SafeTensors::deserialize(&bytes).map_err(wrong)?;
        let mut views = file.tensors();
        // The checksum covers the tensors in the order of their names.
        views.sort_by(|a, b| a.0.cmp(&b.0));
        let expected = metadata.remove(CHECKSUM_KEY);
        let found =
            checksum(&metadata, views.iter().map(|(name, v)| (&name[..], v.dtype(), v.shape(), v.data())));
        if expected != Some(found) {
            return Err(damaged(path, "its checksum does not fit its contents".into()));
        }
        let tensors = read_tensors(views).map_err(|reason| damaged(path, reason))?;
        Ok(Self { path: path.to_owned(), tensors, sections: sections(path, &metadata)? })
    }

    /// The section `name`.
    ///
    /// # Errors
    /// [`CheckpointError::Damaged`] if it is missing or has other contents than `T`.
    pub fn section<T: DeserializeOwned>(&self, name: &str) -> Result<T, CheckpointError> {
        let section = self.sections.get(name).cloned().unwrap_or_default();
        serde_json::from_value(section)
            .map_err(|error| damaged(&self.path, format!("section `{name}`: {error}")))
    }

    /// The tensor `name`, which must have `shape`.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] if it is missing or of another shape.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, CheckpointError> {
        let mismatch = |reason: String| CheckpointError::Mismatch { path: self.path.clone(), reason };
        let tensor = self.tensors.get(name).ok_or_else(|| mismatch(format!("tensor `{name}` is missing")))?;
        if tensor.size() != shape {
            let got = tensor.size();
            return Err(mismatch(format!("tensor `{name}` has shape {got:?}, expected {shape:?}")));
        }
        Ok(tensor.shallow_clone())
    }
}

/// The tensors of a file of another program.
#[derive(Debug)]
pub struct ForeignTensors {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    metadata: HashMap<String, String>,
}

impl ForeignTensors {
    /// From the contents `bytes` of the file `path`.
    ///
    /// # Errors
    /// [`ModelError::File`] for another format or an unsupported type of a tensor.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ModelError> {
        let refused = |reason: String| ModelError::File { path: path.to_owned(), reason };
        let other = |error: safetensors::SafeTensorError| refused(format!("not a safetensors file: {error}"));
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(other)?;
        let file = SafeTensors::deserialize(bytes).map_err(other)?;
        let tensors = read_tensors(file.tensors()).map_err(refused)?;
        let metadata = header.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.to_owned(), tensors, metadata })
    }

    /// `tensors` of the file `path`, which is no safetensors file.
    pub fn of(path: &Path, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { path: path.to_owned(), tensors, metadata: HashMap::new() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The entry `key` of the file's metadata.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor `name`.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Shape of the tensor `name`.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.get(name).map(Tensor::size)
    }

    /// The tensor `name`, which must have `shape`.
    ///
    /// # Errors
    /// [`ModelError::Names`] if it is missing, [`ModelError::Shape`] if it has another shape.
    pub fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, ModelError> {
        let place = self.path.display().to_string();
        match self.tensors.get(name) {
            None => Err(ModelError::Names { place, reason: format!("tensor `{name}` is missing") }),
            Some(tensor) if tensor.size() == shape => Ok(tensor.shallow_clone()),
            Some(tensor) => {
                let (expected, got) = (shape.to_vec(), tensor.size());
                Err(ModelError::Shape { place, name: name.to_owned(), expected, got })
            }
        }
    }
}

/// Serialises deterministically: the crate writes metadata in the random order of a hash map, so it is inserted into the header
/// here, sorted.
///
/// # Errors
/// A tensor that the format does not support.
pub fn encode<S: AsRef<str> + Ord + std::fmt::Display, V: View>(
    tensors: impl IntoIterator<Item = (S, V)>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>, safetensors::SafeTensorError> {
    let plain = safetensors::serialize(tensors, None)?;
    let (length, rest) = plain.split_at(8);
    let length = u64::from_le_bytes(length.try_into().expect("eight bytes were split off")) as usize;
    let (header, data) = rest.split_at(length);
    let header = String::from_utf8_lossy(header);
    let entries = header.trim_end().trim_start_matches('{');
    let comma = if entries == "}" { "" } else { "," };
    let metadata = serde_json::to_string(metadata)
        .map_err(safetensors::SafeTensorError::InvalidHeaderDeserialization)?;
    let mut header = format!("{{\"__metadata__\":{metadata}{comma}{entries}");
    // Data starts at a multiple of eight, as the format recommends.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    Ok([&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat())
}

fn damaged(path: &Path, reason: String) -> CheckpointError {
    CheckpointError::Damaged { path: path.to_owned(), reason }
}

/// The error names the first tensor of an unsupported type.
fn read_tensors(views: Vec<(String, TensorView<'_>)>) -> Result<BTreeMap<String, Tensor>, String> {
    let tensor = |(name, view): (String, TensorView<'_>)| {
        let kind = kind_of(view.dtype())
            .ok_or_else(|| format!("tensor `{name}` has the type {:?}", view.dtype()))?;
        let shape = view.shape().iter().map(|&size| i64::try_from(size)).collect::<Result<Vec<i64>, _>>();
        // libtorch refuses empty tensors with large dimensions.
        let tensor = shape.ok().and_then(|shape| Tensor::f_from_data_size(view.data(), &shape, kind).ok());
        let tensor = tensor.ok_or_else(|| format!("tensor `{name}` has the shape {:?}", view.shape()))?;
        Ok((name, tensor))
    };
    views.into_iter().map(tensor).collect()
}

fn sections(
    path: &Path,
    metadata: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Value>, CheckpointError> {
    let mut sections = BTreeMap::new();
    for (key, text) in metadata {
        if let Some(name) = key.strip_prefix(SECTION_PREFIX) {
            let value = serde_json::from_str(text)
                .map_err(|error| damaged(path, format!("section `{name}`: {error}")))?;
            sections.insert(name.to_owned(), value);
        }
    }
    Ok(sections)
}

/// CRC-32C of the metadata and of every tensor's name, dtype, shape and bytes.
fn checksum<'a>(
    metadata: &BTreeMap<String, String>,
    tensors: impl Iterator<Item = (&'a str, Dtype, &'a [usize], &'a [u8])>,
) -> String {
    let texts = metadata.iter().map(|(key, value)| format!("{key}\0{value}\0"));
    let crc = texts.fold(0, |crc, text| crc32c::crc32c_append(crc, text.as_bytes()));
    let crc = tensors.fold(crc, |crc, (name, dtype, shape, bytes)| {
        let crc = crc32c::crc32c_append(crc, format!("{name}\0{dtype:?} {shape:?}\0").as_bytes());
        crc32c::crc32c_append(crc, bytes)
    });
    format!("{crc:08x}")
}

/// Tensor kinds that files store as they are, and their dtype in safetensors.
pub(crate) const DTYPES: [(Kind, Dtype); 8] = [
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Half, Dtype::F16),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

pub(crate) fn kind_of(dtype: Dtype) -> Option<Kind> {
    DTYPES.iter().find(|(_, found)| *found == dtype).map(|(kind, _)| *kind)
}

/// A tensor's values in row-major order, for any memory layout and device.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Stored {
    fn of(tensor: &Tensor) -> Self {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let found = DTYPES.iter().find(|(kind, _)| *kind == tensor.kind());
        // Other kinds (16-bit integers) do not occur in states; f64 represents them exactly.
        let (tensor, dtype) = found.map_or_else(
            || (tensor.to_kind(Kind::Double), Dtype::F64),
            |(_, dtype)| (tensor.shallow_clone(), *dtype),
        );
        let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        Self { dtype, shape: tensor.size().iter().map(|&size| size as usize).collect(), bytes }
    }
}

impl View for Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Checkpoint {
        let odd = [0.0f32, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-42];
        let mut checkpoint = Checkpoint::default();
        checkpoint.tensors.insert("odd".into(), Tensor::from_slice(&odd));
        let image = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([1, 2, 3, 4]);
        let channels_last = image.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        checkpoint.tensors.insert("channels_last".into(), channels_last);
        checkpoint.tensors.insert("steps".into(), Tensor::from_slice(&[7i64]));
        checkpoint.tensors.insert("half".into(), Tensor::from_slice(&[1.5f32]).to_kind(Kind::BFloat16));
        checkpoint.sections.insert("state".into(), serde_json::json!({"step": 3, "text": "ä\n\""}));
        checkpoint
    }

    fn bits(tensor: &Tensor) -> (Vec<i64>, Kind, Vec<u8>) {
        (tensor.size(), tensor.kind(), Stored::of(tensor).bytes)
    }

    #[test]
    fn save_and_load_round_trip_is_bit_exact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let saved = sample();
        saved.save(&path).unwrap();
        let loaded = Checkpoint::load(&path).unwrap();
        assert_eq!(saved.sections, loaded.sections);
        assert_eq!(saved.tensors.len(), loaded.tensors.len());
        for (name, tensor) in &saved.tensors {
            assert_eq!(bits(tensor), bits(&loaded.tensors[name]), "{name}");
        }
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1, "no temporary file stays");
        let first = fs_err::read(&path).unwrap();
        loaded.save(&path).unwrap();
        assert!(first == fs_err::read(&path).unwrap(), "the same contents are the same bytes");
    }

    #[test]
    fn failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("taken");
        fs_err::create_dir(&path).unwrap();
        assert!(sample().save(&path).is_err(), "a folder cannot be replaced by a file");
        assert!(path.is_dir());
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn other_files_are_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b");
        for (bytes, wanted) in
            [(&b""[..], "not a whole"), (b"garbage, longer than eight bytes", "not a whole")]
        {
            fs_err::write(&path, bytes).unwrap();
            assert!(Checkpoint::load(&path).unwrap_err().to_string().contains(wanted));
        }
        let foreign = safetensors::serialize([("x", Stored::of(&Tensor::from(1.0f32)))], None).unwrap();
        fs_err::write(&path, foreign).unwrap();
        assert!(Checkpoint::load(&path).unwrap_err().to_string().contains("not a checkpoint"));
    }

    /// A dimension above the largest i64 in an empty tensor, and a product of dimensions above it, under a checksum that fits.
    #[test]
    fn dimensions_are_checked() {
        for shape in [vec![0, usize::MAX], vec![0, 1 << 62, 1 << 62]] {
            let error = error_of_an_empty_tensor(shape.clone());
            assert!(error.contains(&format!("tensor `huge` has the shape {shape:?}")), "{error}");
        }
    }

    fn error_of_an_empty_tensor(shape: Vec<usize>) -> String {
        let metadata = BTreeMap::from([(VERSION_KEY.to_owned(), VERSION.to_owned())]);
        let crc = checksum(&metadata, [("huge", Dtype::F32, &shape[..], &[][..])].into_iter());
        let metadata = metadata.into_iter().chain([(CHECKSUM_KEY.to_owned(), crc)]).collect();
        let huge = TensorView::new(Dtype::F32, shape, &[]).unwrap();
        let bytes = safetensors::serialize([("huge", huge)], Some(metadata)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h.safetensors");
        fs_err::write(&path, bytes).unwrap();
        Checkpoint::load(&path).unwrap_err().to_string()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn truncated_or_corrupted_files_are_rejected(at in 0usize..2000, flip in 1u8..=255, cut in any::<bool>()) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("c");
            sample().save(&path).unwrap();
            let mut bytes = fs_err::read(&path).unwrap();
            let at = at % bytes.len();
            if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
            fs_err::write(&path, &bytes).unwrap();
            // A byte that means nothing (a blank that became a tab) may change; nothing that is loaded may.
            if let Ok(loaded) = Checkpoint::load(&path) {
                prop_assert!(!cut, "a cut file was accepted");
                let original = sample();
                prop_assert_eq!(&loaded.sections, &original.sections);
                prop_assert!(loaded.tensors.keys().eq(original.tensors.keys()));
                for (name, tensor) in &loaded.tensors {
                    prop_assert_eq!(bits(tensor), bits(&original.tensors[name]), "{}", name);
                }
            }
        }
    }
}
