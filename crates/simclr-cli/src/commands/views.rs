//! `simclr views`: augmented views of the user's images, for inspection before a long run.

mod sheet;

use std::{
    io::Cursor,
    path::{Path, PathBuf},
    process::ExitCode,
};

use image::RgbImage;
use serde_json::{Value, json};
use simclr::{
    RunConfig,
    data::{
        Dataset, Split, ValueRange, ViewParams, atomic_file,
        augment::EvalTransform,
        dataset::as_one_path,
        output,
        view_table::{Cell, ViewTable},
    },
    export::{NpyWriter, is_safetensors_of_views, npy_rows, safetensors_of_views},
    train::{RunFolder, choose_views},
};

use self::sheet::Sheet;
use crate::{args::Views, failure::Failure, terminal};

/// Outputs of this command, which it may replace.
const SHEET: output::Kind = output::Kind { name: "a picture of this command", is_earlier: is_sheet };
const ARRAY: output::Kind =
    output::Kind { name: "an array of views with its file of parameters", is_earlier: is_array };
const PARAMETERS: output::Kind = output::Kind { name: "the parameters of views", is_earlier: is_parameters };
/// PNG text (keyword, value) that identifies pictures of this command.
const MARK: (&str, &str) = ("Software", "simclr views");

/// Format of the output, by its extension.
#[derive(Clone, Copy, PartialEq)]
enum Format {
    Picture,
    Npy,
    Safetensors,
}

impl Format {
    fn of(out: &Path) -> Self {
        match out.extension().and_then(|ending| ending.to_str()) {
            Some("npy") => Self::Npy,
            Some("safetensors") => Self::Safetensors,
            _ => Self::Picture,
        }
    }
}

/// Writes one row per image: the original with the transform of an evaluation, then views.
pub fn run(arguments: &Views) -> Result<ExitCode, Failure> {
    let data = as_one_path(&arguments.data)?;
    let (config, written) = arguments.config.load()?;
    let _held = RunFolder::around(&arguments.out, None)?;
    let format = Format::of(&arguments.out);
    check(&arguments.out, format, &data)?;
    let set =
        Dataset::open(&data, Split::Train, config.data.open_options())?.decoded_by(config.transform.jpeg);
    let (set, range) = set.with_range(&config.data.range)?;
    let (config, chosen) = choose_views(config, &written, &set)?;
    let table =
        Table { rows: arguments.images.clamp(1, set.len()), views: arguments.views, range, set, config };
    match format {
        Format::Picture => table.draw(&arguments.out)?,
        Format::Npy | Format::Safetensors => table.write_array(&arguments.out, format)?,
    }
    let notes = chosen.iter().map(|choice| format!("as in a run, {choice}"));
    let notes = notes.chain(table.set.notes().iter().cloned());
    notes.for_each(|note| terminal::result(&format!("note: {note}")));
    terminal::result(&format!(
        "{}  {} images, {} views each; originals: {}",
        arguments.out.display(),
        table.rows,
        arguments.views,
        table.transform()
    ));
    Ok(ExitCode::SUCCESS)
}

/// Refuses to replace other files than outputs of this command.
fn check(out: &Path, format: Format, data: &Path) -> Result<(), Failure> {
    output::check(out, if format == Format::Picture { SHEET } else { ARRAY }, Some(data))?;
    Ok(output::check(&parameters_file(out), PARAMETERS, Some(data))?)
}

struct Table {
    config: RunConfig,
    set: Dataset,
    range: ValueRange,
    rows: usize,
    views: usize,
}

impl Table {
    fn transform(&self) -> EvalTransform {
        let transform = self.config.transform.to(self.config.train.image_size, self.set.channels());
        transform.of_range(self.range.clone())
    }

    fn index(&self, row: usize) -> usize {
        row * self.set.len() / self.rows
    }

    fn each(&self, receiver: &mut dyn FnMut(&Cell<'_>) -> Result<(), Failure>) -> Result<(), Failure> {
        let indices: Vec<usize> = (0..self.rows).map(|row| self.index(row)).collect();
        let (transform, seed) = (self.transform(), self.config.train.seed);
        let table =
            ViewTable { set: &self.set, transform, augment: &self.config.augment, seed, views: self.views };
        table.each(&indices, receiver)
    }

    fn draw(&self, out: &Path) -> Result<(), Failure> {
        let mut sheet = Sheet::new(self.rows, self.views + 1, self.config.train.image_size);
        let mut parameters = Vec::new();
        self.each(&mut |cell| {
            sheet.put(cell.place, cell.pixels, self.set.channels());
            sheet.label(cell.place, cell.params, cell.stored);
            parameters.push(self.described(cell.place, cell.params));
            Ok(())
        })?;
        let png = encode(&sheet.image).map_err(|error| Failure::user(error.to_string(), None))?;
        atomic_file::write(out, &png)?;
        self.write_parameters(out, parameters)
    }

    /// Parameters of a view, or transform of an original.
    fn described(&self, (row, column): (usize, usize), params: Option<&ViewParams>) -> Value {
        let name = &self.set.samples()[self.index(row)].name;
        match params {
            Some(params) => json!({ "image": name, "view": column - 1, "params": params }),
            None => json!({ "image": name, "transform": self.transform() }),
        }
    }

    fn write_parameters(&self, out: &Path, rows: Vec<Value>) -> Result<(), Failure> {
        let transform = self.transform();
        let shape = [self.rows, self.views + 1, transform.channels, transform.size, transform.size];
        let text = json!({ "shape": shape, "augment": self.config.augment, "rows": rows });
        Ok(atomic_file::write(&parameters_file(out), format!("{text:#}\n").as_bytes())?)
    }

    /// A row of `C * S * S` values for each original and each view.
    fn write_array(&self, out: &Path, format: Format) -> Result<(), Failure> {
        let transform = self.transform();
        let width = transform.channels * transform.size * transform.size;
        let mut values = Vec::new();
        let mut parameters = Vec::new();
        self.each(&mut |cell| {
            values.extend_from_slice(cell.pixels);
            parameters.push(self.described(cell.place, cell.params));
            Ok(())
        })?;
        let bytes = match format {
            Format::Safetensors => safetensors_of_views(&values, width)?,
            Format::Npy | Format::Picture => npy_of(&values, width)?,
        };
        atomic_file::write(out, &bytes)?;
        self.write_parameters(out, parameters)
    }
}

fn npy_of(values: &[f32], width: usize) -> std::io::Result<Vec<u8>> {
    let mut array = NpyWriter::new(Cursor::new(Vec::new()), width)?;
    array.push(values)?;
    Ok(array.finish()?.into_inner())
}

/// Path of the parameters of the views in `out`: `x.npy.json`, which differs for a picture and an array of one name.
fn parameters_file(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// Encodes the picture as PNG with [`MARK`].
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

fn is_array(path: &Path) -> bool {
    is_parameters(&parameters_file(path)) && (npy_rows(path).is_some() || is_safetensors_of_views(path))
}

fn is_parameters(path: &Path) -> bool {
    let text = fs_err::read(path).ok();
    let parameters = text.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
    parameters.is_some_and(|found| found["augment"].is_object() && found["rows"].is_array())
}
