//! Pages of TIFF files as images: `data.pages = "images"`.
//!
//! The pages of `stack.tif` become the images `stack.tif#0`, `stack.tif#1`, ..., numbered as by Pillow's `seek` and tifffile's
//! `key`. Reduced copies and masks are counted but left out, so that numbers may be missing. A file with a single page keeps its
//! name. Pages have the label of their file.

use std::borrow::Cow;

use bytes::Bytes;
use rayon::prelude::*;

use super::{Opened, Sample, Source, layout};
use crate::{
    DataError, Image, ValueRange,
    decode::{self, Decoding, Pages},
};

/// The rule for a set: `wanted`; for `Auto` the rule with which a packed set was written.
///
/// # Errors
/// A packed set of TIFF files that was written with another rule.
pub(super) fn resolved(
    wanted: Pages,
    recorded: Option<Pages>,
    samples: &[Sample],
) -> Result<Pages, DataError> {
    match recorded {
        Some(recorded) if wanted == Pages::Auto || wanted == recorded => Ok(recorded),
        Some(recorded) if samples.iter().any(|sample| is_tiff(file_of(&sample.name))) => {
            let reason = format!(
                "the packed set was written with data.pages = {recorded}; pack it again with --pages {wanted}"
            );
            Err(DataError::config("data.pages", wanted, reason))
        }
        _ => Ok(wanted),
    }
}

/// Replaces files by their pages if `rule` is `Images`, which reads every file that may be TIFF once.
///
/// # Errors
/// A file with more than the maximal number of pages.
pub(super) fn expanded(opened: Opened, rule: Pages) -> Result<Opened, DataError> {
    if rule != Pages::Images {
        return Ok(opened);
    }
    let Opened { samples, source, mut notes, .. } = opened;
    let found = (0..samples.len()).into_par_iter().map(|index| pages_of(&*source, index));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    let stacks = found.iter().filter(|pages| !pages.is_empty()).count();
    if stacks == 0 {
        return Ok(Opened { samples, source, notes, ..opened });
    }
    let files = samples.len();
    let mut images = Vec::new();
    let mut origins = Vec::new();
    for (file, (sample, pages)) in samples.into_iter().zip(&found).enumerate() {
        let named = |page: &usize| Sample { name: format!("{}#{page}", sample.name), ..sample.clone() };
        images.extend(pages.iter().map(named));
        origins.extend(pages.iter().map(|&page| Origin { file, page: Some(page) }));
        if pages.is_empty() {
            images.push(sample);
            origins.push(Origin { file, page: None });
        }
    }
    let of_stacks: usize = found.iter().map(Vec::len).sum();
    notes.push(format!(
        "{stacks} of {files} files have several pages, which are {of_stacks} images (data.pages = {rule})"
    ));
    Ok(Opened { samples: images, source: Box::new(Paged { source, origins }), notes, ..opened })
}

/// The pages of image file `index`; empty if it has only one or cannot be read.
fn pages_of(source: &dyn Source, index: usize) -> Result<Vec<usize>, DataError> {
    let Some(name) = source.file_name(index).map(Cow::into_owned) else { return Ok(Vec::new()) };
    if layout::is_image(&name) && !is_tiff(&name) {
        return Ok(Vec::new());
    }
    // Reported when it is decoded.
    let Ok(bytes) = source.read(index) else { return Ok(Vec::new()) };
    decode::pages(&bytes).map_err(|reason| DataError::decode(name, reason))
}

fn is_tiff(name: &str) -> bool {
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    ending.is_some_and(|ending| ["tif", "tiff"].iter().any(|known| ending.eq_ignore_ascii_case(known)))
}

/// The file of a page by the image's name; `name` itself for other images.
pub(super) fn file_of(name: &str) -> &str {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    name.rsplit_once('#').filter(|(_, page)| is_number(page)).map_or(name, |(file, _)| file)
}

struct Origin {
    file: usize,
    /// `None` for the whole file.
    page: Option<usize>,
}

/// A source of images that are pages of the files of another source.
struct Paged {
    source: Box<dyn Source>,
    origins: Vec<Origin>,
}

impl Source for Paged {
    fn read(&self, index: usize) -> Result<Bytes, DataError> {
        self.source.read(self.origins[index].file)
    }

    fn decode_stored(&self, index: usize, stored: Bytes, how: &Decoding) -> Result<Image, DataError> {
        match (self.origins[index].page, self.file_name(index)) {
            (Some(page), Some(name)) => {
                decode::stored(&name, &stored, how, Some(page))?.into_image(&name, how.channels, &how.range)
            }
            _ => self.source.decode_stored(self.origins[index].file, stored, how),
        }
    }

    fn file_name(&self, index: usize) -> Option<Cow<'_, str>> {
        let Origin { file, page } = self.origins[index];
        let name = self.source.file_name(file)?;
        Some(page.map_or_else(|| name.clone(), |page| format!("{name}#{page}").into()))
    }

    fn page(&self, index: usize) -> Option<usize> {
        self.origins[index].page
    }

    fn recorded_range(&self) -> Option<&ValueRange> {
        self.source.recorded_range()
    }

    fn recorded_pages(&self) -> Option<Pages> {
        self.source.recorded_pages()
    }

    fn stamp(&self, index: usize) -> u64 {
        self.source.stamp(self.origins[index].file)
    }

    fn recorded_content(&self, index: usize) -> Option<u64> {
        self.source.recorded_content(self.origins[index].file)
    }

    /// Size of the whole file; the fingerprint distinguishes pages by name.
    fn stored_bytes(&self, index: usize) -> u64 {
        self.source.stored_bytes(self.origins[index].file)
    }

    fn native_channels(&self) -> usize {
        match self.origins.first() {
            Some(Origin { file, page: Some(page) }) => {
                let first = self.source.read(*file);
                first.map_or(3, |bytes| decode::native_channels_of(&bytes, Some(*page)))
            }
            _ => self.source.native_channels(),
        }
    }
}
