//! Tar shards: tars of class folders, and WebDataset (`key.jpg` with its label in `key.cls`).
//!
//! A shard is listed once; images are then read at their offsets, from any thread, without a lock.

use std::{
    collections::HashMap,
    io::Read,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use super::{Opened, Sample, Source, Split, layout, shards_of_split};
use crate::{DataError, Image, decode};

/// Largest member that is read into memory.
const MAX_MEMBER: u64 = 1 << 30;

struct Shards {
    files: Vec<fs_err::File>,
    members: Vec<Member>,
}

struct Member {
    shard: usize,
    offset: u64,
    size: u64,
    name: String,
}

pub fn open(files: &[PathBuf], split: Split) -> Result<Opened, DataError> {
    let named_by_split = shards_of_split(files, Split::Train).len() < files.len();
    let wanted = if named_by_split { shards_of_split(files, split) } else { files.to_vec() };
    let inner_split = if named_by_split { Split::Train } else { split };
    let mut shards = Shards { files: Vec::new(), members: Vec::new() };
    let mut labels = HashMap::new();
    for path in &wanted {
        let file = fs_err::File::open(path)?;
        list(path, &file, shards.files.len(), &mut shards.members, &mut labels)?;
        shards.files.push(file);
    }
    let names: Vec<_> = shards.members.iter().map(|member| member.name.clone()).collect();
    let (kept, classes) = layout::arrange(&names, inner_split);
    let (order, mut samples): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
    let classes = if labels.is_empty() { classes } else { label_by_key(&mut samples, &order, &shards, &labels) };
    let mut members: Vec<_> = shards.members.into_iter().map(Some).collect();
    shards.members = order.iter().filter_map(|&index| members[index].take()).collect();
    if wanted.len() > 1 {
        let shard_name = |shard: usize| wanted[shard].file_stem().unwrap_or_default().to_string_lossy();
        for (sample, member) in samples.iter_mut().zip(&shards.members) {
            sample.name = format!("{}:{}", shard_name(member.shard), sample.name);
        }
    }
    Ok(Opened { samples, classes, source: Box::new(shards) })
}

/// Where the images of a shard lie, and the contents of its `.cls` members by (shard, key).
fn list(
    path: &Path,
    file: &fs_err::File,
    shard: usize,
    members: &mut Vec<Member>,
    labels: &mut HashMap<(usize, String), String>,
) -> Result<(), DataError> {
    let wrong = |error: std::io::Error| DataError::Format { path: path.to_owned(), reason: format!("damaged tar: {error}") };
    let length = file.metadata()?.len();
    let mut archive = tar::Archive::new(file.file());
    for entry in archive.entries_with_seek().map_err(wrong)? {
        let mut entry = entry.map_err(wrong)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().map_err(wrong)?.to_string_lossy().trim_start_matches("./").to_owned();
        let (offset, size) = (entry.raw_file_position(), entry.size());
        if offset + size > length {
            let reason = format!("damaged tar: `{name}` is cut, the file ends {} bytes early", offset + size - length);
            return Err(DataError::Format { path: path.to_owned(), reason });
        }
        if name.ends_with(".cls") && size < 1024 {
            let mut text = String::new();
            entry.read_to_string(&mut text).map_err(wrong)?;
            labels.insert((shard, key(&name)), text.trim().to_owned());
        } else if layout::is_image(&name) {
            members.push(Member { shard, offset, size, name });
        }
    }
    Ok(())
}

/// WebDataset's key: the path up to the first dot of the file name.
fn key(name: &str) -> String {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    format!("{folder}/{}", file.split('.').next().unwrap_or_default())
}

/// Labels from `.cls` members; returns the class names, in numeric order where they are numbers.
fn label_by_key(
    samples: &mut [Sample],
    order: &[usize],
    shards: &Shards,
    labels: &HashMap<(usize, String), String>,
) -> Vec<String> {
    let mut classes: Vec<String> = labels.values().cloned().collect();
    classes.sort_by_key(|name| (name.parse::<i64>().unwrap_or(i64::MAX), name.clone()));
    classes.dedup();
    for (sample, &index) in samples.iter_mut().zip(order) {
        let member = &shards.members[index];
        let class = labels.get(&(member.shard, key(&member.name)));
        sample.label = class.and_then(|class| classes.iter().position(|name| name == class)).map(|label| label as u32);
    }
    classes
}

impl Source for Shards {
    fn decode(&self, index: usize, channels: usize) -> Result<Image, DataError> {
        let member = &self.members[index];
        decode::decode(&member.name, &self.bytes(member)?, channels)
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        self.members[index].size
    }

    fn native_channels(&self) -> usize {
        let first = self.members.first().and_then(|member| self.bytes(member).ok());
        first.map_or(3, |bytes| decode::native_channels(&bytes))
    }
}

impl Shards {
    fn bytes(&self, member: &Member) -> Result<Vec<u8>, DataError> {
        let wrong = |reason: String| DataError::Decode { name: member.name.clone(), reason };
        if member.size > MAX_MEMBER {
            return Err(wrong(format!("{} bytes are more than is read for one image", member.size)));
        }
        let mut bytes = vec![0; member.size as usize];
        let file = self.files[member.shard].file();
        file.read_exact_at(&mut bytes, member.offset).map_err(|error| wrong(error.to_string()))?;
        Ok(bytes)
    }
}
