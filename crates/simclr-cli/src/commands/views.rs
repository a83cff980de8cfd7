//! `simclr views`: what the augmentation makes of the user's images, to be looked at before a long run.

use std::{
    io::Cursor,
    path::{Path, PathBuf},
    process::ExitCode,
};

use image::RgbImage;
use serde_json::{Value, json};
use simclr::{
    RunConfig,
    checkpoint::write_atomically,
    data::{
        Dataset, Split, ValueRange, ViewParams,
        augment::{self, EvalTransform, Scratch},
        dataset::Channels,
        output,
        rng::Key,
    },
    export::{NpyWriter, npy_rows},
    train::RunFolder,
};

use crate::{args::Views, failure::Failure, terminal};

/// Tiles smaller than this are enlarged by a whole factor, so that pixels can be seen.
const LEGIBLE: usize = 96;
/// White pixels between tiles.
const GAP: usize = 4;

/// Outputs of this command, which a later one may replace.
const SHEET: output::Kind = output::Kind { name: "a picture of this command", is_earlier: is_sheet };
const ARRAY: output::Kind =
    output::Kind { name: "an array of views with its file of parameters", is_earlier: is_array };
const PARAMETERS: output::Kind =
    output::Kind { name: "the parameters of an array of views", is_earlier: |_| false };
/// Text in a picture that identifies this command: PNG's keyword, and the value.
const MARK: (&str, &str) = ("Software", "simclr views");

/// One row per image: the original as the evaluation sees it, then views; as a picture, or as numbers where a `.npy` is asked for.
pub fn run(arguments: &Views) -> Result<ExitCode, Failure> {
    let config = RunConfig::load(arguments.config.config.as_deref(), &arguments.config.overrides(&[]))?;
    let channels =
        if config.data.channels == 0 { Channels::Auto } else { Channels::Count(config.data.channels) };
    let _held = RunFolder::around(&arguments.out, None)?;
    let arrays = arguments.out.extension().is_some_and(|ending| ending == "npy");
    check(&arguments.out, arrays, &arguments.data)?;
    let set = Dataset::open(&arguments.data, Split::Train, channels)?.decoded_by(config.transform.jpeg);
    let (set, range) = set.with_range(&config.data.range)?;
    let table =
        Table { rows: arguments.images.clamp(1, set.len()), views: arguments.views, range, set, config };
    if arrays {
        table.write_arrays(&arguments.out)?
    } else {
        table.draw(&arguments.out)?
    }
    table.set.notes().iter().for_each(|note| terminal::result(&format!("note: {note}")));
    let (rows, transform) = (table.rows, table.transform());
    terminal::result(&format!(
        "{}  {rows} images, {} views each; originals: {transform}",
        arguments.out.display(),
        arguments.views
    ));
    Ok(ExitCode::SUCCESS)
}

/// Refuses to replace anything but an earlier output of this command.
fn check(out: &Path, arrays: bool, data: &Path) -> Result<(), Failure> {
    if !arrays {
        return Ok(output::check(out, SHEET, Some(data))?);
    }
    output::check(out, ARRAY, Some(data))?;
    if !out.exists() {
        output::check(&parameters_file(out), PARAMETERS, Some(data))?;
    }
    Ok(())
}

/// What is shown.
struct Table {
    config: RunConfig,
    set: Dataset,
    range: ValueRange,
    rows: usize,
    views: usize,
}

/// Receives row, column, planes, and what a view was made by (the original by nothing).
type Receiver<'a> = dyn FnMut((usize, usize), &[f32], Option<&ViewParams>) -> Result<(), Failure> + 'a;

impl Table {
    fn transform(&self) -> EvalTransform {
        let transform = self.config.transform.to(self.config.train.image_size, self.set.channels());
        transform.of_range(self.range.clone())
    }

    fn index(&self, row: usize) -> usize {
        row * self.set.len() / self.rows
    }

    /// Row by row.
    fn each(&self, receiver: &mut Receiver<'_>) -> Result<(), Failure> {
        let (config, size) = (&self.config, self.config.train.image_size);
        let (mut pixels, mut scratch) = (vec![0.0; self.set.channels() * size * size], Scratch::default());
        for row in 0..self.rows {
            let image = self.set.decode(self.index(row))?;
            self.transform().apply(&image, &mut pixels, &mut scratch);
            receiver((row, 0), &pixels, None)?;
            for view in 0..self.views {
                // Two views an epoch, as in training.
                let key = Key {
                    seed: config.train.seed,
                    epoch: view as u64 / 2,
                    image: self.index(row) as u64,
                    view: view as u64 % 2,
                };
                let params = config.augment.draw(key, image.width, image.height);
                augment::apply(&image, &params, &config.augment, size, &mut pixels, &mut scratch);
                receiver((row, view + 1), &pixels, Some(&params))?;
            }
        }
        Ok(())
    }

    fn draw(&self, out: &Path) -> Result<(), Failure> {
        let mut sheet = Sheet::new(self.rows, self.views + 1, self.config.train.image_size);
        self.each(&mut |(row, column), pixels, _| {
            sheet.put(row, column, pixels, self.set.channels());
            Ok(())
        })?;
        let png = encode(&sheet.image).map_err(|error| Failure::user(error.to_string(), None))?;
        Ok(write_atomically(out, &png)?)
    }

    /// A row of `C * S * S` numbers for each original and each view; their parameters in a file of the same name ending `.json`.
    fn write_arrays(&self, out: &Path) -> Result<(), Failure> {
        let transform = self.transform();
        let side = transform.size;
        let mut array = NpyWriter::new(Cursor::new(Vec::new()), transform.channels * side * side)?;
        let mut made_by = Vec::new();
        self.each(&mut |(row, column), pixels, params| {
            array.push(pixels)?;
            let name = &self.set.samples()[self.index(row)].name;
            made_by.push(match params {
                Some(params) => json!({ "image": name, "view": column - 1, "params": params }),
                None => json!({ "image": name, "transform": transform }),
            });
            Ok(())
        })?;
        let shape = [self.rows, self.views + 1, transform.channels, side, side];
        let text = json!({ "shape": shape, "augment": self.config.augment, "rows": made_by });
        write_atomically(out, array.finish()?.get_ref())?;
        Ok(write_atomically(&parameters_file(out), format!("{text:#}\n").as_bytes())?)
    }
}

/// Where the parameters of the views in `array` are written.
fn parameters_file(array: &Path) -> PathBuf {
    array.with_extension("json")
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

/// Whether `path` is an array of views with its file of parameters.
fn is_array(path: &Path) -> bool {
    let text = fs_err::read(parameters_file(path)).ok();
    let parameters = text.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    let described = parameters.is_some_and(|found| found["augment"].is_object() && found["rows"].is_array());
    described && npy_rows(path).is_some()
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
