//! Inputs for augmentation on another device, usually a GPU: the images as bytes, and the augmentation parameters of every view.
//!
//! Of each image only the bounding box of its crops is copied.

use rayon::prelude::*;

use crate::{
    Image, ViewParams,
    augment::{ColorModel, Crop, Interpolation},
    buffer_pool::PooledBuffer,
};

/// The inputs of the rows of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct DeferredViews {
    /// Images `[H, W, C]`, concatenated.
    pub bytes: PooledBuffer<u8>,
    /// In row order.
    pub rows: Vec<DeferredView>,
    /// Shared by all rows.
    pub method: ViewSpec,
}

/// The part of the augmentation that is the same for all views.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ViewSpec {
    /// C, see [`Batch`](crate::Batch).
    pub channels: usize,
    /// S, the side of a view in pixels.
    pub size: usize,
    /// Filter of the resize.
    pub interpolation: Interpolation,
    /// See [`AugmentConfig::antialias`](crate::AugmentConfig::antialias).
    pub antialias: bool,
    /// Definition of contrast and saturation.
    pub color_model: ColorModel,
    /// Whether any view may have operations of AutoAugment.
    pub policies: bool,
    /// Whether any view may be blurred.
    pub blurs: bool,
    /// Whether any view may have a motion blur, an equalized histogram or a Sobel filter.
    pub filters: bool,
    /// Whether any view may have noise.
    pub noise: bool,
}

/// The inputs of one view.
#[derive(Debug, Clone, PartialEq)]
pub struct DeferredView {
    /// Offset of its image in [`DeferredViews::bytes`].
    pub at: usize,
    /// Columns of its image.
    pub width: usize,
    /// Rows of its image.
    pub height: usize,
    /// Augmentation parameters; the crop is relative to this image, which may be a part of the decoded one.
    pub params: ViewParams,
}

/// An image, the rectangle that its views need, and the parameters of its views by row.
pub(crate) struct DeferredImage {
    image: Image,
    rectangle: Crop,
    pub(crate) views: Vec<(usize, ViewParams)>,
}

impl DeferredImage {
    pub(crate) fn new(image: Image, mut views: Vec<(usize, ViewParams)>, method: &ViewSpec) -> Self {
        let support = |(_, params): &(usize, ViewParams)| {
            params.crop.support(&image, (method.interpolation, method.antialias), method.size)
        };
        let rectangle =
            views.iter().map(support).reduce(Crop::union).expect("an image is there for its views");
        for (_, params) in &mut views {
            params.crop.x -= rectangle.x;
            params.crop.y -= rectangle.y;
        }
        let whole = Self { image, rectangle, views };
        // All images of a batch are held until the total size is known; of a large one only the rectangle.
        if 2 * whole.len() < whole.image.data.len() { whole.trimmed() } else { whole }
    }

    pub(crate) fn len(&self) -> usize {
        self.rectangle.width * self.rectangle.height * self.image.channels
    }

    fn trimmed(self) -> Self {
        let channels = self.image.channels;
        let mut data = vec![0; self.len()];
        self.write(&mut data);
        let Crop { width, height, .. } = self.rectangle;
        let rectangle = Crop { x: 0, y: 0, width, height };
        Self { image: Image::new(width, height, channels, data), rectangle, views: self.views }
    }

    fn write(&self, out: &mut [u8]) {
        let rectangle = self.rectangle;
        let stride = self.image.width * self.image.channels;
        let row = rectangle.width * self.image.channels;
        let rows = self.image.data[rectangle.y * stride..].chunks(stride);
        for (out, from) in out.chunks_exact_mut(row).zip(rows) {
            out.copy_from_slice(&from[rectangle.x * self.image.channels..][..row]);
        }
    }
}

impl DeferredViews {
    /// Concatenates images in `bytes`, which has their total length, and sorts views by row.
    pub(crate) fn collect(images: Vec<DeferredImage>, mut bytes: PooledBuffer<u8>, method: ViewSpec) -> Self {
        let mut rows = Vec::new();
        let mut copies = Vec::new();
        let (mut at, mut rest) = (0, &mut bytes[..]);
        for mut image in images {
            let (width, height) = (image.rectangle.width, image.rectangle.height);
            let views = std::mem::take(&mut image.views).into_iter();
            rows.extend(views.map(|(row, params)| (row, DeferredView { at, width, height, params })));
            let (slot, after) = rest.split_at_mut(image.len());
            at += image.len();
            rest = after;
            copies.push((image, slot));
        }
        copies.into_par_iter().for_each(|(image, slot)| image.write(slot));
        rows.sort_unstable_by_key(|(row, _)| *row);
        Self { bytes, rows: rows.into_iter().map(|(_, view)| view).collect(), method }
    }
}
