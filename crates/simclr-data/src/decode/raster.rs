//! Images of stored values, and their conversion to 8 bits.

use image::metadata::Orientation;

use super::LUMA;
use crate::{DataError, Image, ValueRange};

/// Stored values. Smaller types are widened; only 64-bit integers beyond 2^53 are rounded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Values {
    U8(Vec<u8>),
    U16(Vec<u16>),
    F32(Vec<f32>),
    F64(Vec<f64>),
}

/// An image of stored values: rows from the top, channels interleaved.
#[derive(Debug, Clone, PartialEq)]
pub struct Raster {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) channels: usize,
    pub(crate) values: Values,
    /// The type that the file declares, such as `int16`.
    pub(crate) kind: &'static str,
    /// Value of invalid pixels (GDAL's no-data tag).
    pub(crate) no_data: Option<f64>,
    /// A note for the user, such as on unused pages.
    pub(crate) note: Option<String>,
}

/// Runs `$then` on values of any type.
macro_rules! each_type {
    ($values:expr, $data:ident => $then:expr) => {
        match $values {
            Values::U8($data) => $then,
            Values::U16($data) => $then,
            Values::F32($data) => $then,
            Values::F64($data) => $then,
        }
    };
}

/// Runs `$then` on values of any type; the result has the same type.
macro_rules! same_type {
    ($values:expr, $data:ident => $then:expr) => {
        match $values {
            Values::U8($data) => Values::U8($then),
            Values::U16($data) => Values::U16($then),
            Values::F32($data) => Values::F32($then),
            Values::F64($data) => Values::F64($then),
        }
    };
}
pub(super) use {each_type, same_type};

impl Values {
    pub(super) fn len(&self) -> usize {
        each_type!(self, data => data.len())
    }
}

impl From<Image> for Raster {
    fn from(image: Image) -> Self {
        let (width, height, channels) = (image.width, image.height, image.channels);
        Self::new((width, height), channels, Values::U8(image.data.into_vec()), "uint8")
    }
}

impl Raster {
    pub(crate) fn new(
        (width, height): (usize, usize),
        channels: usize,
        values: Values,
        kind: &'static str,
    ) -> Self {
        Self { width, height, channels, values, kind, no_data: None, note: None }
    }

    /// Adds a note to an earlier one.
    pub(crate) fn with_note(self, note: Option<String>) -> Self {
        let notes: Vec<String> = [self.note, note].into_iter().flatten().collect();
        let note = (!notes.is_empty()).then(|| notes.join("; "));
        Self { note, ..self }
    }

    /// The type that the file declares: `uint8`, `int16`, `float32`, ...
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// A note for the user, such as on unused pages.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Number of values that are NaN, infinite or the file's no-data value; they become 0.
    pub fn missing(&self) -> usize {
        match &self.values {
            Values::U8(_) if self.no_data.is_none() => 0,
            values => each_type!(values, data => self.missing_among(data)),
        }
    }

    fn missing_among<T: Copy + Into<f64>>(&self, values: &[T]) -> usize {
        values.iter().filter(|&&value| self.is_missing(value.into())).count()
    }

    /// Number of values of all channels.
    pub fn len(&self) -> usize {
        self.width * self.height * self.channels
    }

    /// Never true for a decoded image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn is_missing(&self, value: f64) -> bool {
        !value.is_finite() || self.no_data == Some(value)
    }

    /// Up to `count` evenly spaced pixels of `channels` values each; invalid values are NaN.
    pub(crate) fn sample(&self, count: usize, channels: usize) -> Result<Vec<Vec<f64>>, String> {
        let area = self.width * self.height;
        let count = count.min(area);
        let convert = Conversion::between(self.channels, channels)?;
        let stored = |at: usize| {
            let value = each_type!(&self.values, data => number(data, at));
            if self.is_missing(value) { f64::NAN } else { value }
        };
        let pixel = |at: usize| {
            let first = at * area / count * self.channels;
            convert.pixel((first..first + self.channels).map(stored), channels)
        };
        Ok((0..count).map(pixel).collect())
    }

    /// Converts to `channels` channels (see [`super::to_channels`]) of 8 bits; the ends of `range` become 0 and 255.
    pub(crate) fn into_image(
        self,
        name: &str,
        channels: usize,
        range: &ValueRange,
    ) -> Result<Image, DataError> {
        let failed = |reason: String| DataError::decode(name, reason);
        let Some(range) = range.per_channel(channels) else {
            let (width, height, have) = (self.width, self.height, self.channels);
            let full = Image::new(width, height, have, self.full_range().map_err(failed)?);
            return super::to_channels(name, full, channels);
        };
        self.check(&range, channels).map_err(failed)?;
        let convert = Conversion::between(self.channels, channels).map_err(failed)?;
        let scale: Vec<Scale> = range.into_iter().map(|pair| Scale::new(pair, self.no_data)).collect();
        let data = each_type!(&self.values, data => scaled(data, self.channels, convert, &scale));
        Ok(Image::new(self.width, self.height, channels, data))
    }

    /// The range was measured on other images. A range beyond 255 cannot apply to 8-bit values.
    fn check(&self, range: &[[f64; 2]], channels: usize) -> Result<(), String> {
        if range.len() != channels {
            return Err(format!("data.range has {} pairs for {channels} channels", range.len()));
        }
        match range.iter().find(|[_, high]| self.kind == "uint8" && *high > 255.0) {
            Some([low, high]) => Err(format!(
                "it holds 8-bit values, which data.range [{low}, {high}] of other images does not fit"
            )),
            None => Ok(()),
        }
    }

    /// 8 bits over the full range of the type.
    fn full_range(self) -> Result<Vec<u8>, String> {
        match self.values {
            Values::U8(data) if self.kind == "uint8" => Ok(data),
            Values::U16(data) if self.kind == "uint16" => {
                Ok(data.into_iter().map(|value| ((u32::from(value) + 128) / 257) as u8).collect())
            }
            _ => Err(format!("{} values have no full range; data.range sets one", self.kind)),
        }
    }

    /// Applies the EXIF orientation.
    pub(crate) fn upright(self, orientation: Option<Orientation>) -> Self {
        let size = (self.width, self.height);
        let Some((turned, stored_at)) = orientation.and_then(stored_at) else { return self };
        let values = same_type!(&self.values, data => turn(data, size, self.channels, (turned, stored_at)));
        let (width, height) = if turned { (size.1, size.0) } else { size };
        Self { width, height, values, ..self }
    }
}

fn number<T: Copy + Into<f64>>(values: &[T], at: usize) -> f64 {
    values[at].into()
}

#[derive(Clone, Copy)]
enum Conversion {
    Same,
    /// Grey to three equal channels.
    Copies,
    /// RGB to luma.
    Luma,
}

impl Conversion {
    fn between(have: usize, want: usize) -> Result<Self, String> {
        match (have, want) {
            (have, want) if have == want => Ok(Self::Same),
            (1, 3) => Ok(Self::Copies),
            (3, 1) => Ok(Self::Luma),
            (have, want) => Err(format!("it has {have} channels, expected {want}")),
        }
    }

    fn pixel(self, mut stored: impl Iterator<Item = f64>, channels: usize) -> Vec<f64> {
        match self {
            Self::Same => stored.collect(),
            Self::Copies => vec![stored.next().unwrap_or(f64::NAN); channels],
            Self::Luma => vec![
                stored.zip(LUMA).map(|(value, weight)| value * f64::from(weight)).sum::<f64>() / 65_536.0,
            ],
        }
    }
}

/// Linear map from stored values to 8 bits.
#[derive(Clone, Copy)]
struct Scale {
    low: f64,
    span: f64,
    no_data: f64,
}

impl Scale {
    fn new([low, high]: [f64; 2], no_data: Option<f64>) -> Self {
        Self { low, span: high - low, no_data: no_data.unwrap_or(f64::NAN) }
    }

    /// Clips to the range; invalid values become 0.
    #[inline(always)]
    fn level(self, value: f64) -> u8 {
        if !value.is_finite() || value == self.no_data {
            return 0;
        }
        // The cast saturates.
        ((value - self.low) * 255.0 / self.span + 0.5) as u8
    }
}

fn scaled<T: Copy + Into<f64>>(values: &[T], have: usize, convert: Conversion, scales: &[Scale]) -> Vec<u8> {
    let pixels = values.chunks_exact(have);
    match convert {
        Conversion::Same => pixels
            .flat_map(|pixel| pixel.iter().zip(scales).map(|(&value, scale)| scale.level(value.into())))
            .collect(),
        Conversion::Copies => {
            pixels.flat_map(|pixel| scales.iter().map(|scale| scale.level(pixel[0].into()))).collect()
        }
        Conversion::Luma => pixels
            .map(|pixel| {
                let missing = pixel.iter().any(|&value| value.into() == scales[0].no_data);
                let luma = convert.pixel(pixel.iter().map(|&value| value.into()), 1)[0];
                if missing { 0 } else { scales[0].level(luma) }
            })
            .collect(),
    }
}

/// Maps row and column in the upright image, and width and height of the stored one, to row and column in the stored one.
type StoredAt = fn(usize, usize, usize, usize) -> (usize, usize);

/// Whether width and height are swapped, and the map of pixels; `None` for the identity.
fn stored_at(orientation: Orientation) -> Option<(bool, StoredAt)> {
    Some(match orientation {
        Orientation::NoTransforms => return None,
        Orientation::FlipHorizontal => (false, |y, x, w, _| (y, w - 1 - x)),
        Orientation::Rotate180 => (false, |y, x, w, h| (h - 1 - y, w - 1 - x)),
        Orientation::FlipVertical => (false, |y, x, _, h| (h - 1 - y, x)),
        Orientation::Rotate90FlipH => (true, |y, x, _, _| (x, y)),
        Orientation::Rotate90 => (true, |y, x, _, h| (h - 1 - x, y)),
        Orientation::Rotate270FlipH => (true, |y, x, w, h| (h - 1 - x, w - 1 - y)),
        Orientation::Rotate270 => (true, |y, x, w, _| (x, w - 1 - y)),
    })
}

fn turn<T: Copy>(
    data: &[T],
    (w, h): (usize, usize),
    channels: usize,
    (turned, from): (bool, StoredAt),
) -> Vec<T> {
    let (width, height) = if turned { (h, w) } else { (w, h) };
    let mut out = Vec::with_capacity(data.len());
    for y in 0..height {
        for x in 0..width {
            let (row, column) = from(y, x, w, h);
            out.extend_from_slice(&data[(row * w + column) * channels..][..channels]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raster(values: Values, kind: &'static str) -> Raster {
        Raster::new((3, 1), 1, values, kind)
    }

    #[test]
    fn ends_of_the_range_become_0_and_255() {
        let image = |raster: Raster, range| raster.into_image("x", 1, &ValueRange::Same(range)).unwrap().data;
        assert_eq!(
            image(raster(Values::U16(vec![300, 1550, 2800]), "uint16"), [300.0, 2800.0]),
            [0, 128, 255]
        );
        assert_eq!(image(raster(Values::F32(vec![-1.5, 0.0, 9.0]), "float32"), [-1.0, 1.0]), [0, 128, 255]);
        assert_eq!(image(raster(Values::U8(vec![10, 20, 30]), "uint8"), [10.0, 20.0]), [0, 255, 255]);
    }

    #[test]
    fn invalid_values_are_counted_and_become_0() {
        let values = Values::F32(vec![f32::NAN, -9999.0, 2.0]);
        let raster = Raster { no_data: Some(-9999.0), ..raster(values, "float32") };
        assert_eq!(raster.missing(), 2);
        let image = raster.into_image("x", 1, &ValueRange::Same([-10_000.0, 2.0])).unwrap();
        assert_eq!(image.data, [0, 0, 255]);
    }

    #[test]
    fn types_without_a_full_range_are_refused() {
        let float = raster(Values::F32(vec![0.0; 3]), "float32");
        let refused = float.into_image("x", 1, &ValueRange::Full).unwrap_err().to_string();
        assert!(refused.contains("float32 values have no full range"), "{refused}");
        let bytes = raster(Values::U8(vec![0; 3]), "uint8");
        let refused = bytes.into_image("x", 1, &ValueRange::Same([300.0, 2800.0])).unwrap_err().to_string();
        assert!(refused.contains("8-bit values"), "{refused}");
    }

    #[test]
    fn channels_are_converted_before_scaling() {
        let range = ValueRange::PerChannel(vec![[0.0, 10.0], [0.0, 20.0], [0.0, 40.0]]);
        let copies = raster(Values::U16(vec![10, 0, 5]), "uint16").into_image("x", 3, &range).unwrap();
        assert_eq!(copies.data, [255, 128, 64, 0, 0, 0, 128, 64, 32]);
        let colour = Raster::new((1, 1), 3, Values::U16(vec![100, 200, 50]), "uint16");
        let luma = colour.into_image("x", 1, &ValueRange::Same([0.0, 255.0])).unwrap();
        assert_eq!(luma.data, [153], "0.299 * 100 + 0.587 * 200 + 0.114 * 50");
    }
}
