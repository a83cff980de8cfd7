//! Tar shards: tars of class folders, and WebDataset (`key.jpg` with its label in `key.cls`, or else in `key.json`, see
//! `json_labels`).
//!
//! A shard is listed once; images are then read at their offsets, from any thread, without a lock. All shards are listed for
//! every split, so that all splits number the classes alike.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, HashSet},
    io::{Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use tar::EntryType;

use super::{
    Opened, Sample, Source, Split,
    class_names::ClassNames,
    identity::FileState,
    json_labels::{self, JsonLabels},
    layout,
    layout::Arranged,
    notes::list_counts,
    others::Others,
    splits,
};
use crate::{DataError, decode};

/// Maximal number of shards that are kept open (the usual limit is 1024 files); in larger sets each read opens its shard.
const MAX_OPEN: usize = 256;
/// Block size of tar; at least one block of zeros marks the end.
const BLOCK: u64 = 512;
const MAX_CLS_BYTES: u64 = 1024;

struct Shards {
    paths: Vec<PathBuf>,
    /// One per path; empty for more than [`MAX_OPEN`].
    files: Vec<fs_err::File>,
    states: Vec<FileState>,
    members: Vec<Member>,
}

struct Member {
    shard: usize,
    offset: u64,
    size: u64,
    name: String,
}

#[derive(Default)]
struct Listing {
    members: Vec<Member>,
    /// By shard and key: contents of `.cls` members, or labels of `.json` members without `.cls`.
    labels: HashMap<(usize, String), String>,
    json: JsonLabels,
    others: Others,
    /// Notes on what follows the end marks of shards.
    notes: Vec<String>,
}

impl Listing {
    /// Adds the image or label in a member of a shard; any other file is counted.
    fn add(
        &mut self,
        shard: usize,
        name: String,
        mut member: tar::Entry<'_, impl Read>,
    ) -> Result<(), String> {
        let (offset, size) = (member.raw_file_position(), member.size());
        match member.header().entry_type() {
            EntryType::Directory | EntryType::XGlobalHeader => return Ok(()),
            // Tars from before POSIX mark folders by a slash only.
            EntryType::Regular if name.ends_with('/') => return Ok(()),
            EntryType::Regular => {}
            EntryType::Link | EntryType::Symlink => {
                self.others.add_as(&name, "links");
                return Ok(());
            }
            _ => {
                self.others.add(&name);
                return Ok(());
            }
        }
        let is_label =
            |ending: &str, limit: u64| name.ends_with(ending) && size <= limit && layout::is_visible(&name);
        if is_label(".cls", MAX_CLS_BYTES) {
            let mut text = String::new();
            member.read_to_string(&mut text).map_err(|error| format!("`{name}`: {error}"))?;
            self.set_label((shard, key(&name)), text.trim().to_owned())?;
        } else if is_label(".json", json_labels::MAX_BYTES) {
            let mut bytes = Vec::new();
            member.read_to_end(&mut bytes).map_err(|error| format!("`{name}`: {error}"))?;
            self.json.add((shard, key(&name)), &name, &bytes);
        } else if layout::is_image(&name) {
            self.members.push(Member { shard, offset, size, name });
        } else {
            self.others.add(&name);
        }
        Ok(())
    }

    /// # Errors
    /// Another label of the sample: its key is that of several samples, as in joined tars.
    fn set_label(&mut self, sample: (usize, String), label: String) -> Result<(), String> {
        match self.labels.get(&sample) {
            Some(earlier) if *earlier != label => {
                let key = sample.1.trim_start_matches('/');
                Err(format!("the sample `{key}` has two labels, `{earlier}` and `{label}`"))
            }
            _ => {
                self.labels.insert(sample, label);
                Ok(())
            }
        }
    }

    /// Adds the labels in `.json` members of images without `.cls` member. Returns class names of these labels, if any, and a
    /// note on unusable members.
    ///
    /// # Errors
    /// Those of [`Listing::set_label`].
    fn take_json(
        &mut self,
        paths: &[PathBuf],
    ) -> Result<(HashMap<String, String>, Option<String>), DataError> {
        let images: HashSet<_> =
            self.members.iter().map(|member| (member.shard, key(&member.name))).collect();
        let labels = &self.labels;
        let is_wanted = |sample: &(usize, String)| images.contains(sample) && !labels.contains_key(sample);
        let (found, names, note) = std::mem::take(&mut self.json).into_labels(is_wanted);
        for (sample, label) in found {
            let path = &paths[sample.0];
            self.set_label(sample, label).map_err(|reason| DataError::format(path, reason))?;
        }
        Ok((names, note))
    }

    /// A labelled WebDataset sample is one image: next to `key.jpg`, `key.seg.png` is a mask or similar. Returns a note on the
    /// dropped members.
    fn drop_masks(&mut self) -> Option<String> {
        let sample = |member: &Member| (member.shard, key(&member.name));
        let is_plain = |member: &Member| !ending(&member.name).contains('.');
        let plain: HashSet<_> = self.members.iter().filter(|member| is_plain(member)).map(sample).collect();
        let mut dropped: BTreeMap<String, usize> = BTreeMap::new();
        let labels = &self.labels;
        self.members.retain(|member| {
            let kept =
                is_plain(member) || !labels.contains_key(&sample(member)) || !plain.contains(&sample(member));
            if !kept {
                *dropped.entry(format!(".{}", ending(&member.name))).or_default() += 1;
            }
            kept
        });
        let total: usize = dropped.values().sum();
        (total > 0).then(|| {
            let kinds = list_counts(&dropped, usize::MAX);
            format!("{total} further images of labelled samples are skipped, as masks: {kinds}")
        })
    }
}

pub fn open(paths: &[PathBuf], split: Split) -> Result<Opened, DataError> {
    let mut listing = Listing::default();
    let mut files = Vec::new();
    let mut states = Vec::new();
    for (shard, path) in paths.iter().enumerate() {
        let mut file = fs_err::File::open(path)?;
        states.push(FileState::from(&file.metadata()?));
        if is_compressed(path) {
            file = unpacked(path, paths.len(), file)?;
        }
        list(path, &file, shard, &mut listing)?;
        if paths.len() <= MAX_OPEN {
            files.push(file);
        }
    }
    let (class_names, on_json) = listing.take_json(paths)?;
    let masks = listing.drop_masks().filter(|_| split == Split::Train);
    let Arranged { kept, mut classes, notes, .. } =
        members_of_split(&listing, paths, split).checked(&paths[0])?;
    let (order, mut samples): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
    if !listing.labels.is_empty() {
        classes = label_by_key(&mut samples, &order, &listing);
        classes.rename(&class_names);
    }
    let mut members: Vec<_> = listing.members.into_iter().map(Some).collect();
    let mut members: Vec<_> = order.iter().filter_map(|&index| members[index].take()).collect();
    for (sample, member) in samples.iter_mut().zip(&mut members) {
        if paths.len() > 1 {
            let shard = paths[member.shard].file_stem().unwrap_or_default().to_string_lossy();
            sample.name = format!("{shard}:{}", sample.name);
        }
        member.name.clone_from(&sample.name);
    }
    let source = Shards { paths: paths.to_vec(), files, states, members };
    let label_notes = classes.notes().into_iter().chain(on_json.filter(|_| split == Split::Train)).collect();
    let on_ends = listing.notes.into_iter().filter(|_| split == Split::Train);
    let notes = notes.into_iter().chain(masks).chain(on_ends).chain(listing.others.note(split)).collect();
    Ok(Opened { samples, notes, label_notes, classes: classes.names, source: Box::new(source) })
}

/// By the name of a file.
pub fn is_shard(path: &Path) -> bool {
    is_compressed(path) || path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("tar"))
}

fn is_compressed(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.ends_with(".tar.gz") || name.ends_with(".tgz")
}

/// The shard, decompressed into an anonymous temporary file, since images are read at offsets. A process decompresses each
/// shard once, although every split opens it.
fn unpacked(path: &Path, shards: usize, mut file: fs_err::File) -> Result<fs_err::File, DataError> {
    static UNPACKED: Mutex<Vec<(PathBuf, u64, fs_err::File)>> = Mutex::new(Vec::new());
    if shards > MAX_OPEN {
        let reason = format!("one of {shards} compressed shards, at most {MAX_OPEN} are read: unpack them");
        return Err(DataError::format(path, reason));
    }
    let stamp = FileState::of(path).stamp;
    let mut known = UNPACKED.lock().unwrap_or_else(PoisonError::into_inner);
    let found = known.iter().find(|(of, at, _)| of == path && *at == stamp && stamp != 0);
    if let Some((_, _, whole)) = found {
        let mut whole = whole.try_clone()?;
        // The handles share one position.
        whole.rewind()?;
        return Ok(whole);
    }
    let mut whole = tempfile::tempfile()?;
    std::io::copy(&mut MultiGzDecoder::new(&mut file), &mut whole).map_err(|error| {
        DataError::format(path, format!("cannot be unpacked into a temporary file: {error}"))
    })?;
    let mut whole = fs_err::File::from_parts(whole, path);
    whole.rewind()?;
    known.push((path.to_owned(), stamp, whole.try_clone()?));
    Ok(whole)
}

/// The members of a split, by the folders inside the shards, or else by the names of the shards.
fn members_of_split(listing: &Listing, paths: &[PathBuf], split: Split) -> Arranged {
    let names: Vec<_> = listing.members.iter().map(|member| member.name.clone()).collect();
    if layout::has_splits(&names) || !splits::have_parts(paths) {
        return layout::arrange(&names, split);
    }
    let mut arranged = layout::arrange(&names, Split::Train);
    let wanted: HashSet<PathBuf> = splits::shards_of(paths, split).into_iter().collect();
    let is_wanted: Vec<bool> = paths.iter().map(|path| wanted.contains(path)).collect();
    arranged.notes.extend(splits::note_on_shards(paths).filter(|_| split == Split::Train));
    arranged.retain(|index| is_wanted[listing.members[index].shard]);
    arranged
}

/// Adds the images and labels of a shard to `listing`.
fn list(path: &Path, file: &fs_err::File, shard: usize, listing: &mut Listing) -> Result<(), DataError> {
    let damaged = |reason: String| DataError::format(path, format!("damaged tar: {reason}"));
    let length = file.metadata()?.len();
    let mut archive = tar::Archive::new(file.file());
    // Another tar may follow the end mark, as after `cat a.tar b.tar`.
    archive.set_ignore_zeros(true);
    let mut end = 0;
    for entry in archive.entries_with_seek().map_err(|error| damaged(error.to_string()))? {
        let entry = match entry {
            Ok(entry) => entry,
            Err(_) if has_end_mark(file, end) => {
                let at = end.next_multiple_of(BLOCK);
                let place = format!("`{}`: what follows its end mark at byte {at}", path.display());
                listing.notes.push(format!("{place} is no tar and is skipped"));
                break;
            }
            Err(error) => return Err(damaged(error.to_string())),
        };
        let name = entry.path().map_err(|error| damaged(error.to_string()))?;
        let name = name.to_string_lossy().trim_start_matches("./").to_owned();
        end = entry.raw_file_position().saturating_add(entry.size());
        if end > length {
            return Err(damaged(format!(
                "`{name}` is truncated, the file ends {} bytes early",
                end - length
            )));
        }
        listing.add(shard, name, entry).map_err(damaged)?;
    }
    // Only the end mark distinguishes a whole shard from one truncated between two members.
    if has_end_mark(file, end) {
        return Ok(());
    }
    Err(damaged(format!(
        "no end mark after its last member, the file of {length} bytes was cut or overwritten"
    )))
}

/// Whether a block of zeros follows the member that ends at byte `end`.
fn has_end_mark(file: &fs_err::File, end: u64) -> bool {
    let mut mark = [1; BLOCK as usize];
    let read = file.file().read_exact_at(&mut mark, end.next_multiple_of(BLOCK));
    read.is_ok() && mark.iter().all(|&byte| byte == 0)
}

/// The WebDataset key: the path up to the first dot of the file name.
fn key(name: &str) -> String {
    let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
    format!("{folder}/{}", file.split('.').next().unwrap_or_default())
}

/// The part of the file name after the WebDataset key and a dot.
fn ending(name: &str) -> &str {
    let file = name.rsplit('/').next().unwrap_or(name);
    file.split_once('.').map_or("", |(_, ending)| ending)
}

/// Labels samples by the `.cls` and `.json` members; returns the classes of all shards.
fn label_by_key(samples: &mut [Sample], order: &[usize], listing: &Listing) -> ClassNames {
    let classes = ClassNames::sorted(listing.labels.values().cloned());
    for (sample, &index) in samples.iter_mut().zip(order) {
        let member = &listing.members[index];
        let class = listing.labels.get(&(member.shard, key(&member.name)));
        sample.label = class.and_then(|class| classes.label(class));
    }
    classes
}

impl Source for Shards {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        Ok(self.bytes(&self.members[index])?.into())
    }

    fn file_name(&self, index: usize) -> Option<Cow<'_, str>> {
        Some(self.members[index].name[..].into())
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        self.members[index].size
    }

    fn stamp(&self, index: usize) -> u64 {
        self.states[self.members[index].shard].stamp
    }

    fn native_channels(&self) -> usize {
        let first = self.members.first().and_then(|member| self.bytes(member).ok());
        first.map_or(3, |bytes| decode::native_channels(&bytes))
    }
}

impl Shards {
    fn bytes(&self, member: &Member) -> Result<Vec<u8>, DataError> {
        if member.size > decode::MAX_BYTES {
            return Err(DataError::decode(
                &member.name,
                "the member is larger than any image that is decoded",
            ));
        }
        let mut bytes = vec![0; member.size as usize];
        let read = match self.files.get(member.shard) {
            Some(file) => file.file().read_exact_at(&mut bytes, member.offset),
            None => fs_err::File::open(&self.paths[member.shard])
                .and_then(|file| file.file().read_exact_at(&mut bytes, member.offset)),
        };
        read.map_err(|error| DataError::decode(&member.name, error.to_string()))?;
        Ok(bytes)
    }
}
