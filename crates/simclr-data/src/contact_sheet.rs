//! Small pictures of equal size in the rows of one JPEG, of which a page shows parts: the tables of a JPEG would outweigh the pixels
//! of a thumbnail of its own.

use image::{Rgb, RgbImage, codecs::jpeg::JpegEncoder};

use crate::DataError;

/// Side of a block of a JPEG without subsampling of colours; tiles of a multiple of it do not bleed into each other.
const BLOCK: usize = 8;

/// Square tiles of one size.
#[derive(Debug, Clone)]
pub struct ContactSheet {
    pixels: RgbImage,
    side: usize,
    columns: usize,
}

impl ContactSheet {
    /// Grey places for `count` tiles of about `side` pixels, at least one of each.
    pub fn new(count: usize, side: usize) -> Self {
        let columns = ((count as f64).sqrt().ceil() as usize).max(1);
        Self::with_columns(columns, count.div_ceil(columns), side)
    }

    /// Grey places in `columns` and `rows`, at least one.
    pub fn with_columns(columns: usize, rows: usize, side: usize) -> Self {
        let (columns, side) = (columns.max(1), side.max(1).next_multiple_of(BLOCK));
        let [width, height] = [columns, rows.max(1)].map(|tiles| (tiles * side) as u32);
        Self { pixels: RgbImage::from_pixel(width, height, Rgb([200; 3])), side, columns }
    }

    /// Pixels of a side of a tile.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Width and height of the sheet in tiles.
    pub fn tiles(&self) -> [usize; 2] {
        [self.columns, self.pixels.height() as usize / self.side]
    }

    /// Column and row of tile `at`.
    pub fn place(&self, at: usize) -> [usize; 2] {
        [at % self.columns, at / self.columns]
    }

    /// Draws planes `[C, S, S]` with values in `[0, 1]` into tile `at`, by the nearest pixels where `size` S is not the side of a tile.
    pub fn put(&mut self, at: usize, planes: &[f32], (channels, size): (usize, usize)) {
        let [left, top] = self.place(at).map(|place| place * self.side);
        for y in 0..self.side {
            for x in 0..self.side {
                let from = [x, y].map(|place| place * size / self.side);
                let color = color_at(planes, (channels, size), (from[0], from[1]));
                self.pixels.put_pixel((left + x) as u32, (top + y) as u32, Rgb(color));
            }
        }
    }

    /// The sheet as JPEG of a `quality` from 1 to 100, without subsampling of colours.
    ///
    /// # Errors
    /// A side of more than 65,535 pixels.
    pub fn jpeg(&self, quality: u8) -> Result<Vec<u8>, DataError> {
        let mut bytes = Vec::new();
        let encoded = JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(&self.pixels);
        encoded.map_err(|error| DataError::Io(std::io::Error::other(error)))?;
        Ok(bytes)
    }
}

/// The colour of a pixel of planes `[C, S, S]` with values in `[0, 1]`: grey for one or two channels, the first three as red, green and
/// blue otherwise.
pub fn color_at(planes: &[f32], (channels, size): (usize, usize), (x, y): (usize, usize)) -> [u8; 3] {
    let value = |channel: usize| (planes[(channel * size + y) * size + x] * 255.0).round() as u8;
    if channels < 3 { [value(0); 3] } else { [value(0), value(1), value(2)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_is_where_it_was_put_and_nowhere_else() {
        let mut sheet = ContactSheet::new(5, 30);
        assert_eq!((sheet.side(), sheet.tiles(), sheet.place(4)), (32, [3, 2], [1, 1]));
        let red: Vec<f32> = (0..3 * 16 * 16).map(|at| if at < 256 { 1.0 } else { 0.0 }).collect();
        sheet.put(4, &red, (3, 16));
        let decoded = image::load_from_memory(&sheet.jpeg(95).unwrap()).unwrap().to_rgb8();
        assert_eq!(decoded.dimensions(), (96, 64));
        for (x, y, pixel) in decoded.enumerate_pixels() {
            let inside = (32..64).contains(&x) && (32..64).contains(&y);
            let Rgb([r, g, b]) = *pixel;
            let fine =
                if inside { r > 240 && g < 12 && b < 12 } else { r.abs_diff(200) < 6 && g == r && b == r };
            assert!(fine, "{x} {y} {pixel:?}");
        }
    }
}
