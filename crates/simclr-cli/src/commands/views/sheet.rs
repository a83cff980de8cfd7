//! A picture of tiles in rows and columns, labelled with augmentation parameters.

use font8x8::{BASIC_FONTS, UnicodeFonts};
use image::{Rgb, RgbImage};
use simclr::data::{ViewParams, contact_sheet::color_at};

/// Smaller tiles are enlarged by an integer factor to at least this size.
const MIN_TILE: usize = 96;
/// White pixels between tiles.
const GAP: usize = 4;
/// Width and height of a letter; distance of two lines.
const LETTER: usize = 8;
const LINE: usize = 10;
/// Letters for which there is room below a tile; longer labels are cut.
const LONG_LABEL: usize = 60;

pub(super) struct Sheet {
    pub(super) image: RgbImage,
    size: usize,
    zoom: usize,
}

impl Sheet {
    pub(super) fn new(rows: usize, columns: usize, size: usize) -> Self {
        let mut sheet = Self { image: RgbImage::new(0, 0), size, zoom: MIN_TILE.div_ceil(size).max(1) };
        let (width, height) = sheet.corner((rows, columns));
        sheet.image = RgbImage::from_pixel(width as u32, height as u32, Rgb([255; 3]));
        for column in 0..columns {
            let title = if column == 0 { "original".to_owned() } else { format!("view {}", column - 1) };
            let (left, _) = sheet.corner((0, column));
            sheet.write(&title, (left, GAP / 2));
        }
        sheet
    }

    fn tile(&self) -> usize {
        self.size * self.zoom
    }

    fn letters(&self) -> usize {
        self.tile() / LETTER
    }

    fn lines(&self) -> usize {
        LONG_LABEL.div_ceil(self.letters()) + 1
    }

    fn corner(&self, (row, column): (usize, usize)) -> (usize, usize) {
        let left = GAP + column * (self.tile() + GAP);
        (left, LINE + GAP + row * (self.tile() + GAP + self.lines() * LINE))
    }

    /// Draws planar pixels: grey for one or two channels, the first three as red, green and blue otherwise.
    pub(super) fn put(&mut self, place: (usize, usize), pixels: &[f32], channels: usize) {
        let (left, top) = self.corner(place);
        for y in 0..self.tile() {
            for x in 0..self.tile() {
                let color = color_at(pixels, (channels, self.size), (x / self.zoom, y / self.zoom));
                self.image.put_pixel((left + x) as u32, (top + y) as u32, Rgb(color));
            }
        }
    }

    /// Writes the parameters of a view, or the size of an original, below its tile.
    pub(super) fn label(
        &mut self,
        place: (usize, usize),
        params: Option<&ViewParams>,
        (width, height): (usize, usize),
    ) {
        let words =
            params.map_or_else(|| vec![format!("{width}x{height}")], |params| params.words((width, height)));
        let (left, top) = self.corner(place);
        for (line, text) in wrapped(&words, self.letters()).iter().take(self.lines()).enumerate() {
            self.write(text, (left, top + self.tile() + 2 + line * LINE));
        }
    }

    fn write(&mut self, text: &str, (left, top): (usize, usize)) {
        for (at, letter) in text.chars().take(self.letters()).enumerate() {
            for (y, row) in BASIC_FONTS.get(letter).unwrap_or_default().into_iter().enumerate() {
                for x in (0..LETTER).filter(|x| row >> x & 1 == 1) {
                    self.image.put_pixel((left + at * LETTER + x) as u32, (top + y) as u32, Rgb([0; 3]));
                }
            }
        }
    }
}

/// Joins words to lines of at most `letters`, if possible.
fn wrapped(words: &[String], letters: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut().filter(|line| line.len() + 1 + word.len() <= letters) {
            Some(line) => *line = format!("{line} {word}"),
            None => lines.push(word.clone()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_wrap_and_tiles_do_not_overlap() {
        let words: Vec<String> = ["crop 45%", "flip", "b1.20"].map(str::to_owned).to_vec();
        assert_eq!(wrapped(&words, 12), ["crop 45%", "flip b1.20"]);
        assert_eq!(wrapped(&words, 40), ["crop 45% flip b1.20"]);
        let mut sheet = Sheet::new(2, 3, 32);
        let (left, top) = sheet.corner((1, 2));
        sheet.put((1, 2), &[0.5; 3 * 32 * 32], 3);
        assert_eq!(sheet.image.get_pixel(left as u32, top as u32).0, [128; 3]);
        assert_eq!(sheet.image.get_pixel(left as u32 - 1, top as u32).0, [255; 3]);
        assert!(left + sheet.tile() < sheet.image.width() as usize);
        assert!(top + sheet.tile() + sheet.lines() * LINE <= sheet.image.height() as usize);
    }

    #[test]
    fn labels_are_drawn() {
        let mut sheet = Sheet::new(1, 1, 32);
        let ink = |sheet: &Sheet| sheet.image.pixels().filter(|pixel| pixel.0 == [0; 3]).count();
        let before = ink(&sheet);
        assert!(before > 0, "the title of the column");
        sheet.label((0, 0), None, (640, 480));
        assert!(ink(&sheet) > before);
    }
}
