//! A picture of tiles in rows and columns, labelled with augmentation parameters.

use font8x8::{BASIC_FONTS, UnicodeFonts};
use image::{Rgb, RgbImage};
use simclr::data::{
    ViewParams,
    augment::{Crop, Jitter, Operation, PolicyStep},
};

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
        let (area, (left, top)) = (self.size * self.size, self.corner(place));
        for y in 0..self.tile() {
            for x in 0..self.tile() {
                let at = (y / self.zoom) * self.size + x / self.zoom;
                let value = |channel: usize| (pixels[channel * area + at] * 255.0).round() as u8;
                let color = if channels < 3 { [value(0); 3] } else { [value(0), value(1), value(2)] };
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
        let words = params.map_or_else(
            || vec![format!("{width}x{height}")],
            |params| words(params, (width * height) as f64),
        );
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

/// The enabled operators with their strengths; brightness, contrast, saturation and hue by their first letters.
fn words(params: &ViewParams, area: f64) -> Vec<String> {
    let Crop { width, height, .. } = params.crop;
    let mut words = vec![format!("crop {:.0}%", 100.0 * (width * height) as f64 / area)];
    words.extend(params.flip.then(|| "flip".into()));
    words.extend(params.vertical_flip.then(|| "vflip".into()));
    words
        .extend((params.quarter_turns > 0).then(|| format!("turn {}", 90 * u32::from(params.quarter_turns))));
    words.extend(params.policy.iter().map(policy_step));
    words.extend(params.jitter.iter().map(|operation| match operation {
        Jitter::Brightness(factor) => format!("b{factor:.2}"),
        Jitter::BrightnessShift(shift) => format!("b{shift:+.2}"),
        Jitter::Contrast(factor) => format!("c{factor:.2}"),
        Jitter::Saturation(factor) => format!("s{factor:.2}"),
        Jitter::Hue(shift) => format!("h{shift:+.2}"),
    }));
    words.extend(params.gray.then(|| "gray".into()));
    words.extend(params.blur.map(|sigma| format!("blur {sigma:.1}")));
    words.extend(params.motion_blur.map(|blur| format!("motion {:.0}", blur.length)));
    words.extend(params.equalize.then(|| "equalize".into()));
    words.extend(params.solarize.map(|_| "solarize".into()));
    words.extend(params.sobel.then(|| "sobel".into()));
    words.extend(params.noise.map(|_| "noise".into()));
    words.extend(params.cutout.map(|_| "cutout".into()));
    words
}

/// Such as `rotate -27`; shares in per cent.
fn policy_step(step: &PolicyStep) -> String {
    use Operation as Op;
    let (name, magnitude) = (format!("{:?}", step.operation).to_lowercase(), step.magnitude);
    match step.operation {
        Op::AutoContrast | Op::Equalize | Op::Invert => name,
        Op::Rotate | Op::Posterize | Op::Solarize => format!("{name} {magnitude:.0}"),
        Op::ShearX | Op::ShearY | Op::TranslateX | Op::TranslateY => {
            format!("{name} {:.0}%", 100.0 * magnitude)
        }
        Op::Brightness | Op::Color | Op::Contrast | Op::Sharpness => format!("{name} {:.1}", 1.0 + magnitude),
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
