//! Views that are made elsewhere, on a GPU as a rule: the images as bytes, and for every view its dice.
//!
//! Of an image only the rectangle is kept that the crops of its views need: what is not looked at is neither copied nor sent
//! anywhere.

use rayon::prelude::*;

use crate::{
    Image, ViewParams,
    augment::{ColorModel, Crop, Interpolation},
    batch::Block,
};

/// What the rows of a batch are made of.
#[derive(Debug, Clone, PartialEq)]
pub struct DeferredViews {
    /// Images `[H, W, C]` one after the other, each once.
    pub bytes: Block<u8>,
    /// In row order.
    pub rows: Vec<DeferredView>,
    /// What all rows have in common.
    pub method: ViewSpec,
}

/// How pixels are made of dice; part of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewSpec {
    /// C.
    pub channels: usize,
    /// S.
    pub size: usize,
    /// How crops are resized.
    pub interpolation: Interpolation,
    /// Whether all source pixels count where a crop shrinks.
    pub antialias: bool,
    /// What contrast and saturation mean.
    pub color_model: ColorModel,
    /// Whether any view may be blurred.
    pub blurs: bool,
}

/// One view.
#[derive(Debug, Clone, PartialEq)]
pub struct DeferredView {
    /// First byte of its image.
    pub at: usize,
    /// Columns of its image.
    pub width: usize,
    /// Rows of its image.
    pub height: usize,
    /// Its dice; the crop lies in this image, which may be a part of the decoded one.
    pub params: ViewParams,
}

/// An image, what its views need of it, and its views by row.
pub(crate) struct DeferredImage {
    image: Image,
    rectangle: Crop,
    pub(crate) views: Vec<(usize, ViewParams)>,
}

impl DeferredImage {
    pub(crate) fn new(image: Image, mut views: Vec<(usize, ViewParams)>, method: &ViewSpec) -> Self {
        let seen = |(_, params): &(usize, ViewParams)| {
            params.crop.support(&image, (method.interpolation, method.antialias), method.size)
        };
        let rectangle = views.iter().map(seen).reduce(Crop::union).expect("an image is there for its views");
        for (_, params) in &mut views {
            params.crop.x -= rectangle.x;
            params.crop.y -= rectangle.y;
        }
        let whole = Self { image, rectangle, views };
        // All images of a batch are held until the size of the block is known; a large one need not be held whole.
        if 2 * whole.len() < whole.image.data.len() { whole.trimmed() } else { whole }
    }

    /// Bytes of the rectangle.
    pub(crate) fn len(&self) -> usize {
        self.rectangle.width * self.rectangle.height * self.image.channels
    }

    fn trimmed(self) -> Self {
        let (channels, mut data) = (self.image.channels, vec![0; self.len()]);
        self.write(&mut data);
        let Crop { width, height, .. } = self.rectangle;
        let rectangle = Crop { x: 0, y: 0, width, height };
        Self { image: Image::new(width, height, channels, data), rectangle, views: self.views }
    }

    /// Copies the rectangle.
    fn write(&self, out: &mut [u8]) {
        let (rectangle, stride) = (self.rectangle, self.image.width * self.image.channels);
        let row = rectangle.width * self.image.channels;
        let rows = self.image.data[rectangle.y * stride..].chunks(stride);
        for (out, from) in out.chunks_exact_mut(row).zip(rows) {
            out.copy_from_slice(&from[rectangle.x * self.image.channels..][..row]);
        }
    }
}

impl DeferredViews {
    /// Puts images into `bytes`, which is as long as all of them together, and views into the order of their rows.
    pub(crate) fn collect(images: Vec<DeferredImage>, mut bytes: Block<u8>, method: ViewSpec) -> Self {
        let (mut rows, mut copies) = (Vec::new(), Vec::new());
        let (mut at, mut rest) = (0, &mut bytes[..]);
        for mut image in images {
            let (width, height) = (image.rectangle.width, image.rectangle.height);
            let views = std::mem::take(&mut image.views).into_iter();
            rows.extend(views.map(|(row, params)| (row, DeferredView { at, width, height, params })));
            let (place, after) = rest.split_at_mut(image.len());
            at += image.len();
            rest = after;
            copies.push((image, place));
        }
        copies.into_par_iter().for_each(|(image, place)| image.write(place));
        rows.sort_unstable_by_key(|(row, _)| *row);
        Self { bytes, rows: rows.into_iter().map(|(_, recipe)| recipe).collect(), method }
    }
}
