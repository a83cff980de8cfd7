//! Tensors of a file that `torch.save` wrote: a zip archive (since PyTorch 1.6) or a sequence of pickles. Containers are flattened, with
//! keys joined by dots. No code of the file runs, and no tensor is larger than the bytes that it has in the file.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    io::{Cursor, Read},
};

use tch::{Kind, Tensor};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Id, Pickle, Value};

/// First bytes of a zip archive.
pub(super) const ZIP: &[u8] = b"PK\x03\x04";
/// First byte of a pickle of protocol 2 or later.
pub(super) const PICKLE: u8 = 0x80;

/// `torch.serialization.MAGIC_NUMBER`, little-endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Protocol, magic number, protocol version and system information come before the pickle of the contents.
const LEADING_PICKLES: usize = 3;
/// Containers within containers, at most.
const MAX_DEPTH: usize = 8;
/// Dimensions of a tensor, at most; libtorch itself has no more in most operations.
const MAX_DIMENSIONS: usize = 64;
/// Bytes of a key, at most.
const LONGEST_KEY: usize = 1024;
/// Bytes of all names for each byte of the file, at most: a file may refer to one key or tensor many times.
const NAMES: usize = 4;
/// Bytes that a name counts besides its text, for the value that it names.
const ENTRY: usize = 64;

/// The tensors of the file contents `bytes` by name.
///
/// # Errors
/// A damaged file, or anything in it but tensors, containers, numbers and text.
pub(super) fn tensors(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    if bytes.starts_with(ZIP) { Archive::open(bytes)?.tensors() } else { sequence(bytes) }
}

struct Archive<'a> {
    zip: ZipArchive<Cursor<&'a [u8]>>,
    bytes: &'a [u8],
    /// Folder of all entries, such as `archive/`.
    root: String,
}

impl<'a> Archive<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, String> {
        let zip = ZipArchive::new(Cursor::new(bytes)).map_err(|error| error.to_string())?;
        let root = zip.file_names().find_map(|name| name.strip_suffix("data.pkl")).map(str::to_owned);
        let root = root.ok_or("a zip archive without `data.pkl`, so not of torch.save")?;
        if zip.file_names().any(|name| name.starts_with(&format!("{root}code/"))) {
            return Err("a TorchScript module: set it as encoder.file, or save its state_dict()".into());
        }
        Ok(Self { zip, bytes, root })
    }

    fn entry(&mut self, name: &str) -> Result<&'a [u8], String> {
        let name = format!("{}{name}", self.root);
        let mut file = self.zip.by_name(&name).map_err(|error| format!("`{name}`: {error}"))?;
        if file.compression() != CompressionMethod::Stored {
            return Err(format!("`{name}` is compressed"));
        }
        let start = file.data_start() as usize;
        let end = start.checked_add(file.size() as usize).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("`{name}` is truncated"))?;
        // Reading compares the checksum of the archive.
        std::io::copy(&mut file.by_ref(), &mut std::io::sink())
            .map_err(|error| format!("`{name}`: {error}"))?;
        Ok(&self.bytes[start..end])
    }

    fn tensors(mut self) -> Result<BTreeMap<String, Tensor>, String> {
        if let Ok(order) = self.entry("byteorder")
            && order != b"little"
        {
            return Err("its numbers are big-endian".into());
        }
        let pickle = Pickle::parse(self.entry("data.pkl")?)?;
        let named = flatten(&pickle, self.bytes.len())?;
        let mut storages = HashMap::new();
        for (_, layout) in layouts(&pickle, &named)? {
            if let Entry::Vacant(place) = storages.entry(layout.storage) {
                let data = self.entry(&format!("data/{}", place.key()))?;
                place.insert(data);
            }
        }
        read(&pickle, &named, &storages, self.bytes.len())
    }
}

/// The format of PyTorch before 1.6: pickles, then each storage with its number of elements.
fn sequence(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, String> {
    let foreign = || "not a file of torch.save".to_owned();
    let magic = bytes.get(2..14).filter(|head| head[..2] == [0x8a, 10] && head[2..] == MAGIC);
    magic.ok_or_else(foreign)?;
    let mut rest = bytes;
    let mut next = || {
        let pickle = Pickle::parse(rest)?;
        rest = &rest[pickle.length..];
        Ok::<_, String>(pickle)
    };
    for _ in 0..LEADING_PICKLES {
        next()?;
    }
    let (pickle, keys) = (next()?, next()?);
    let named = flatten(&pickle, bytes.len())?;
    let sizes: HashMap<&str, usize> = layouts(&pickle, &named)?
        .into_iter()
        .map(|(_, layout)| (layout.storage, layout.kind.elt_size_in_bytes()))
        .collect();
    let Value::List(items) = keys.get(keys.root) else { return Err(foreign()) };
    let mut storages = HashMap::new();
    for item in items {
        let Value::Text(key) = keys.get(*item) else { return Err(foreign()) };
        let truncated = || "it is truncated".to_owned();
        let (count, after) = rest.split_at_checked(8).ok_or_else(truncated)?;
        let count = u64::from_le_bytes(count.try_into().expect("eight bytes"));
        // The type of a storage that no tensor uses is unknown, and so is the place of those behind it.
        let Some(size) = sizes.get(&key[..]) else {
            return Err(format!("storage `{key}` belongs to no tensor"));
        };
        let length = usize::try_from(count).ok().and_then(|count| count.checked_mul(*size));
        let (data, after) = length.and_then(|length| after.split_at_checked(length)).ok_or_else(truncated)?;
        storages.insert(&key[..], data);
        rest = after;
    }
    read(&pickle, &named, &storages, bytes.len())
}

/// Names and values of all tensors of a file of `length` bytes, each container once.
fn flatten(pickle: &Pickle, length: usize) -> Result<Vec<(String, Id)>, String> {
    let mut left = length.saturating_mul(NAMES);
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    let mut open = vec![(String::new(), pickle.root, 0)];
    while let Some((name, id, depth)) = open.pop() {
        let mut add = |key: &str, id: Id| -> Result<(), String> {
            if depth == MAX_DEPTH || !may_hold_tensors(pickle.get(id)) {
                return Ok(());
            }
            if key.len() > LONGEST_KEY {
                return Err(format!("it has a key of {} bytes, expected at most {LONGEST_KEY}", key.len()));
            }
            let dot = if name.is_empty() { "" } else { "." };
            let name = format!("{name}{dot}{key}");
            left = left.checked_sub(name.len() + ENTRY).ok_or("its names are far longer than the file")?;
            open.push((name, id, depth + 1));
            Ok(())
        };
        match pickle.get(id) {
            Value::Tensor(arguments) => found.push((name, *arguments)),
            Value::Dict(entries) if seen.insert(id) => {
                for (key, value) in entries {
                    match pickle.get(*key) {
                        Value::Text(key) => add(key, *value)?,
                        Value::Int(key) => add(&key.to_string(), *value)?,
                        _ => {}
                    }
                }
            }
            Value::List(items) | Value::Tuple(items) if seen.insert(id) => {
                for (at, item) in items.iter().enumerate() {
                    add(&at.to_string(), *item)?;
                }
            }
            _ => {}
        }
    }
    Ok(found)
}

fn may_hold_tensors(value: &Value) -> bool {
    matches!(value, Value::Tensor(_) | Value::Dict(_) | Value::List(_) | Value::Tuple(_))
}

/// Place of a tensor in its storage, in elements.
struct Layout<'p> {
    storage: &'p str,
    kind: Kind,
    offset: usize,
    size: Vec<i64>,
    stride: Vec<i64>,
}

fn layouts<'p>(pickle: &'p Pickle, named: &'p [(String, Id)]) -> Result<Vec<(&'p str, Layout<'p>)>, String> {
    let layout = |(name, arguments): &'p (String, Id)| {
        let layout = layout(pickle, *arguments).ok_or_else(|| format!("tensor `{name}` has an unusual form"));
        Ok((name.as_str(), layout?))
    };
    named.iter().map(layout).collect()
}

/// From the arguments of `_rebuild_tensor_v2`: storage, offset, size, stride, requires_grad, hooks.
fn layout(pickle: &Pickle, arguments: Id) -> Option<Layout<'_>> {
    let Value::Tuple(arguments) = pickle.get(arguments) else { return None };
    let [storage, offset, size, stride, ..] = arguments[..] else { return None };
    let Value::Storage(id) = pickle.get(storage) else { return None };
    let Value::Tuple(storage) = pickle.get(*id) else { return None };
    // ("storage", type, key, device, number of elements)
    let [_, kind, key, ..] = storage[..] else { return None };
    let (Value::Global(kind), Value::Text(key)) = (pickle.get(kind), pickle.get(key)) else { return None };
    let Value::Int(offset) = pickle.get(offset) else { return None };
    let numbers = |id: Id| match pickle.get(id) {
        Value::Tuple(items) if items.len() <= MAX_DIMENSIONS => {
            items.iter().map(|item| not_negative(pickle.get(*item))).collect()
        }
        _ => None,
    };
    Some(Layout {
        storage: key,
        kind: kind_of(kind)?,
        offset: usize::try_from(*offset).ok()?,
        size: numbers(size)?,
        stride: numbers(stride)?,
    })
}

fn not_negative(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) if *number >= 0 => Some(*number),
        _ => None,
    }
}

fn kind_of(global: &str) -> Option<Kind> {
    Some(match global.strip_prefix("torch ")?.strip_suffix("Storage")? {
        "Double" => Kind::Double,
        "Float" => Kind::Float,
        "Half" => Kind::Half,
        "BFloat16" => Kind::BFloat16,
        "Long" => Kind::Int64,
        "Int" => Kind::Int,
        "Short" => Kind::Int16,
        "Char" => Kind::Int8,
        "Byte" => Kind::Uint8,
        "Bool" => Kind::Bool,
        _ => return None,
    })
}

/// All tensors; together they take at most the `limit` bytes of the file, unless a few share a storage.
fn read(
    pickle: &Pickle,
    named: &[(String, Id)],
    storages: &HashMap<&str, &[u8]>,
    limit: usize,
) -> Result<BTreeMap<String, Tensor>, String> {
    const SHARING: usize = 4;
    let mut left = limit.saturating_mul(SHARING);
    let mut tensors = BTreeMap::new();
    for (name, layout) in layouts(pickle, named)? {
        let storage = storages.get(layout.storage).copied();
        let tensor = storage.and_then(|storage| layout.read(storage, &mut left));
        let tensor = tensor.ok_or_else(|| format!("tensor `{name}` does not fit into its storage"))?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(tensors)
}

impl Layout<'_> {
    /// `None` if the tensor reaches beyond `storage`, is larger than it, or exceeds the bytes that are `left`.
    fn read(&self, storage: &[u8], left: &mut usize) -> Option<Tensor> {
        let bytes = self.kind.elt_size_in_bytes();
        let count = self.size.iter().try_fold(1i64, |count, side| count.checked_mul(*side))?;
        let taken = usize::try_from(count).ok()?.checked_mul(bytes)?;
        if self.size.len() != self.stride.len() || taken > storage.len() {
            return None;
        }
        *left = left.checked_sub(taken)?;
        if count == 0 {
            return Tensor::f_zeros(&self.size, (self.kind, tch::Device::Cpu)).ok();
        }
        // Elements from the first to the last one of the tensor.
        let steps = self.size.iter().zip(&self.stride);
        let last = steps
            .map(|(side, stride)| (side - 1).checked_mul(*stride))
            .try_fold(0i64, |last, step| last.checked_add(step?))?;
        let span = usize::try_from(last).ok()?.checked_add(1)?;
        let start = self.offset.checked_mul(bytes)?;
        let data = storage.get(start..start.checked_add(span.checked_mul(bytes)?)?)?;
        let flat = Tensor::from_data_size(data, &[span as i64], self.kind);
        Some(flat.as_strided(&self.size, &self.stride, Some(0)).contiguous())
    }
}
