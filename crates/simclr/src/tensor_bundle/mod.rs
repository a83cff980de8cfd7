//! TensorFlow's checkpoints, read without TensorFlow: `PREFIX.index` lists tensors, `PREFIX.data-NNNNN-of-NNNNN` hold their values
//! (`tensorflow/core/util/tensor_bundle`). Sizes in the files are claims: nothing is allocated beyond the bytes that are there.

mod object_graph;
mod table;
pub(crate) mod wire;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

pub use object_graph::ObjectGraph;
use tch::{Kind, Tensor};
use wire::{Damage, Fields, Value, take, take_u32, take_varint};

use crate::BundleError;

/// Key of the object graph of TF2 checkpoints.
const GRAPH: &str = "_CHECKPOINTABLE_OBJECT_GRAPH";
/// `DT_STRING` of `types.proto`.
const STRING: i64 = 7;
/// Types of `types.proto` that are read as numbers.
const KINDS: [(i64, Kind); 6] = [
    (1, Kind::Float),
    (2, Kind::Double),
    (3, Kind::Int),
    (9, Kind::Int64),
    (14, Kind::BFloat16),
    (19, Kind::Half),
];

/// A checkpoint of which the index has been read.
#[derive(Debug)]
pub struct Bundle {
    prefix: PathBuf,
    shards: i64,
    entries: BTreeMap<String, Entry>,
}

/// `BundleEntryProto`.
#[derive(Debug, Default)]
struct Entry {
    kind: i64,
    shape: Vec<i64>,
    shard: i64,
    offset: i64,
    size: i64,
    checksum: u32,
    /// Stored in parts, as partitioned variables are.
    is_sliced: bool,
}

/// The prefix of the checkpoint that `path` is or holds: a prefix, one of its files, a folder of checkpoints (the newest by its
/// file `checkpoint`), or a SavedModel.
pub fn find(path: &Path) -> Option<PathBuf> {
    let has_index = |prefix: &PathBuf| with_ending(prefix, ".index").is_file();
    let text = path.to_str()?;
    let file = text.strip_suffix(".index").or_else(|| Some(text.rsplit_once(".data-")?.0));
    let newest = || {
        let listed = fs_err::read_to_string(path.join("checkpoint")).ok()?;
        let name = listed.strip_prefix("model_checkpoint_path:")?.split('"').nth(1)?;
        Some(path.join(Path::new(name).file_name()?))
    };
    let candidates = [
        file.map(PathBuf::from),
        Some(path.to_owned()),
        Some(path.join("variables/variables")),
        Some(path.join("saved_model/variables/variables")),
        newest(),
    ];
    candidates.into_iter().flatten().find(has_index)
}

fn with_ending(prefix: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(prefix);
    name.push(ending);
    name.into()
}

impl Bundle {
    /// Reads the index of the checkpoint `prefix`.
    ///
    /// # Errors
    /// A file that cannot be read or is damaged.
    pub fn open(prefix: &Path) -> Result<Self, BundleError> {
        let path = with_ending(prefix, ".index");
        let bytes = fs_err::read(&path)?;
        let damaged = |reason: Damage| BundleError::Damaged { path: path.clone(), reason };
        let mut bundle = Self { prefix: prefix.to_owned(), shards: 0, entries: BTreeMap::new() };
        for (key, value) in table::entries(&bytes).map_err(damaged)? {
            if key.is_empty() {
                bundle.shards = header(value).map_err(damaged)?;
                continue;
            }
            let name = String::from_utf8(key).map_err(|_| damaged("a name is not UTF-8".into()))?;
            let entry = entry(value).map_err(|reason| damaged(format!("tensor `{name}`: {reason}")))?;
            bundle.entries.insert(name, entry);
        }
        if bundle.shards == 0 {
            return Err(damaged("it has no header".into()));
        }
        Ok(bundle)
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Shape of a tensor as TensorFlow has it.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        Some(&self.entries.get(name)?.shape)
    }

    /// Values of a tensor as TensorFlow has it, as f32.
    ///
    /// # Errors
    /// A missing tensor, one that has no numbers or is stored in slices; a damaged file.
    pub fn tensor(&self, name: &str) -> Result<Tensor, BundleError> {
        let entry = self.entry(name)?;
        let refused = |reason: String| self.damaged(entry, name, reason);
        let kind = KINDS.iter().find(|(number, _)| *number == entry.kind).map(|(_, kind)| *kind);
        let kind =
            kind.ok_or_else(|| refused(format!("its type has number {}, expected numbers", entry.kind)))?;
        let count = entry.shape.iter().try_fold(1i64, |count, &side| count.checked_mul(side));
        let bytes = count.and_then(|count| count.checked_mul(kind.elt_size_in_bytes() as i64));
        if bytes != Some(entry.size) {
            return Err(refused(format!("{} bytes for the shape {:?}", entry.size, entry.shape)));
        }
        let bytes = self.bytes(entry, name)?;
        if table::masked(crc32c::crc32c(&bytes)) != entry.checksum {
            return Err(refused("its values are damaged".into()));
        }
        let tensor = Tensor::f_from_data_size(&bytes, &entry.shape, kind);
        Ok(tensor.map_err(|error| refused(error.to_string()))?.to_kind(Kind::Float))
    }

    /// The object graph; none in TF1 checkpoints.
    ///
    /// # Errors
    /// A damaged file.
    pub fn object_graph(&self) -> Result<Option<ObjectGraph>, BundleError> {
        let Some(entry) = self.entries.get(GRAPH) else { return Ok(None) };
        let damaged = |reason: Damage| self.damaged(entry, GRAPH, reason);
        if entry.kind != STRING || !entry.shape.is_empty() {
            return Err(damaged("it is not a string".into()));
        }
        let bytes = self.bytes(entry, GRAPH)?;
        let text = string(&bytes, entry.checksum).map_err(damaged)?;
        ObjectGraph::parse(text).map(Some).map_err(damaged)
    }

    fn entry(&self, name: &str) -> Result<&Entry, BundleError> {
        let missing =
            || BundleError::Missing { path: with_ending(&self.prefix, ".index"), name: name.to_owned() };
        self.entries.get(name).ok_or_else(missing)
    }

    /// The stored bytes of `entry`.
    fn bytes(&self, entry: &Entry, name: &str) -> Result<Vec<u8>, BundleError> {
        if entry.is_sliced {
            return Err(self.damaged(entry, name, "it is stored in slices, which are not supported".into()));
        }
        let mut file = fs_err::File::open(self.shard(entry))?;
        let held = file.metadata()?.len();
        let end = entry.offset.checked_add(entry.size);
        if end.is_none_or(|end| end as u64 > held) {
            let reason = format!("{} bytes at {} expected, the file has {held}", entry.size, entry.offset);
            return Err(self.damaged(entry, name, reason));
        }
        file.seek(SeekFrom::Start(entry.offset as u64))?;
        let mut bytes = vec![0; entry.size as usize];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn shard(&self, entry: &Entry) -> PathBuf {
        with_ending(&self.prefix, &format!(".data-{:05}-of-{:05}", entry.shard, self.shards))
    }

    fn damaged(&self, entry: &Entry, name: &str, reason: Damage) -> BundleError {
        BundleError::Damaged { path: self.shard(entry), reason: format!("tensor `{name}`: {reason}") }
    }
}

/// Number of shards of a `BundleHeaderProto`: shards (1), byte order (2; 0 is little).
fn header(bytes: &[u8]) -> Result<i64, Damage> {
    let mut shards = 0;
    for field in Fields(bytes) {
        match field? {
            (1, value) => shards = value.size()?,
            (2, value) if value.size()? != 0 => return Err("it is big-endian, expected little-endian".into()),
            _ => {}
        }
    }
    if shards > 0 { Ok(shards) } else { Err("it has no shards".into()) }
}

/// A `BundleEntryProto`: type (1), shape (2), shard (3), offset (4), size (5), checksum (6), slices (7).
fn entry(bytes: &[u8]) -> Result<Entry, Damage> {
    let mut entry = Entry::default();
    for field in Fields(bytes) {
        match field? {
            (1, value) => entry.kind = value.size()?,
            (2, value) => entry.shape = shape(value.bytes()?)?,
            (3, value) => entry.shard = value.size()?,
            (4, value) => entry.offset = value.size()?,
            (5, value) => entry.size = value.size()?,
            (6, Value::Fixed32(checksum)) => entry.checksum = checksum,
            (7, _) => entry.is_sliced = true,
            _ => {}
        }
    }
    Ok(entry)
}

/// A `TensorShapeProto`: dimensions (2) of a size (1; 0 is not written).
fn shape(bytes: &[u8]) -> Result<Vec<i64>, Damage> {
    let mut shape = Vec::new();
    for field in Fields(bytes) {
        if let (2, value) = field? {
            let mut side = 0;
            for field in Fields(value.bytes()?) {
                if let (1, value) = field? {
                    side = value.size()?;
                }
            }
            shape.push(side);
        }
    }
    Ok(shape)
}

/// The text of a scalar string: its length as varint, the checksum of the length, the bytes. The checksum of the entry covers the
/// length as u32, its checksum and the bytes (`tensor_bundle.cc`, `WriteStringTensor`).
fn string(mut bytes: &[u8], checksum: u32) -> Result<&[u8], Damage> {
    let length = take_varint(&mut bytes)?;
    let number = u32::try_from(length).map_err(|_| "it is longer than 4 GiB")?;
    let of_length = take_u32(&mut bytes)?;
    let crc = crc32c::crc32c(&number.to_le_bytes());
    let text = take(&mut bytes, length)?;
    let whole = crc32c::crc32c_append(crc32c::crc32c_append(crc, &of_length.to_le_bytes()), text);
    let is_whole = bytes.is_empty() && of_length == table::masked(crc) && checksum == table::masked(whole);
    if is_whole { Ok(text) } else { Err("its bytes are damaged".into()) }
}
