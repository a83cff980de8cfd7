//! `simclr views`: what the augmentation makes of the user's images, to be looked at before a long run.

use std::{path::Path, process::ExitCode};

use image::RgbImage;
use simclr::{
    RunConfig,
    checkpoint::write_atomically,
    data::{
        Dataset, Split,
        augment::{self, Scratch},
        dataset::Channels,
        output,
        rng::Key,
    },
    train::RunFolder,
};

use crate::{args::Views, failure::Failure, terminal};

/// Tiles smaller than this are enlarged by a whole factor, so that pixels can be seen.
const LEGIBLE: usize = 96;
/// White pixels between tiles.
const GAP: usize = 4;

/// What is written, and replaced.
const SHEET: output::Kind = output::Kind { name: "a picture of this command", is_earlier: is_sheet };
/// Text in the file that says who made it: PNG's keyword for it, and the value.
const MARK: (&str, &str) = ("Software", "simclr views");

/// Draws one row per image: the original as the evaluation sees it, then views.
pub fn run(arguments: &Views) -> Result<ExitCode, Failure> {
    let config = RunConfig::load(arguments.config.config.as_deref(), &arguments.config.overrides(&[]))?;
    let channels =
        if config.data.channels == 0 { Channels::Auto } else { Channels::Count(config.data.channels) };
    let _held = RunFolder::around(&arguments.out, None)?;
    output::check(&arguments.out, SHEET, Some(&arguments.data))?;
    let set = Dataset::open(&arguments.data, Split::Train, channels)?;
    let rows = arguments.images.clamp(1, set.len());
    let size = config.train.image_size;
    let mut sheet = Sheet::new(rows, arguments.views + 1, size);
    let (mut pixels, mut scratch) = (vec![0.0; set.channels() * size * size], Scratch::default());
    for row in 0..rows {
        let index = row * set.len() / rows;
        let image = set.decode(index)?;
        augment::evaluation_view(&image, size, &mut pixels, &mut scratch);
        sheet.put(row, 0, &pixels, set.channels());
        for view in 0..arguments.views {
            // Two views an epoch, as in training.
            let key = Key {
                seed: config.train.seed,
                epoch: view as u64 / 2,
                image: index as u64,
                view: view as u64 % 2,
            };
            let params = config.augment.draw(key, image.width, image.height);
            augment::apply(&image, &params, &config.augment, size, &mut pixels, &mut scratch);
            sheet.put(row, view + 1, &pixels, set.channels());
        }
    }
    let png = encode(&sheet.image).map_err(|error| Failure::user(error.to_string(), None))?;
    write_atomically(&arguments.out, &png)?;
    terminal::result(&format!("{}  {rows} images, {} views each", arguments.out.display(), arguments.views));
    Ok(ExitCode::SUCCESS)
}

/// The picture as a PNG that [`is_sheet`] knows again.
fn encode(image: &RgbImage) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.add_text_chunk(MARK.0.into(), MARK.1.into())?;
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

fn is_sheet(path: &Path) -> bool {
    let file = fs_err::File::open(path).map(std::io::BufReader::new);
    let found = file.ok().and_then(|file| png::Decoder::new(file).read_info().ok());
    found.is_some_and(|found| {
        let mut texts = found.info().uncompressed_latin1_text.iter();
        texts.any(|text| (&text.keyword[..], &text.text[..]) == MARK)
    })
}

struct Sheet {
    image: RgbImage,
    size: usize,
    zoom: usize,
}

impl Sheet {
    fn new(rows: usize, columns: usize, size: usize) -> Self {
        let zoom = LEGIBLE.div_ceil(size).max(1);
        let span = |tiles: usize| (tiles * (size * zoom + GAP) + GAP) as u32;
        let image = RgbImage::from_pixel(span(columns), span(rows), image::Rgb([255; 3]));
        Self { image, size, zoom }
    }

    /// Draws planar pixels: grey for one or two channels, the first three as red, green and blue otherwise.
    fn put(&mut self, row: usize, column: usize, pixels: &[f32], channels: usize) {
        let (area, tile) = (self.size * self.size, self.size * self.zoom);
        let (left, top) = (GAP + column * (tile + GAP), GAP + row * (tile + GAP));
        for y in 0..tile {
            for x in 0..tile {
                let at = (y / self.zoom) * self.size + x / self.zoom;
                let value = |channel: usize| (pixels[channel * area + at] * 255.0).round() as u8;
                let color = if channels < 3 { [value(0); 3] } else { [value(0), value(1), value(2)] };
                self.image.put_pixel((left + x) as u32, (top + y) as u32, image::Rgb(color));
            }
        }
    }
}
