//! Features as TensorBoard's embedding projector reads them: a table of values (`.tsv`), one of paths, parts and classes, on request a
//! sheet of pictures (a "sprite"), and the `projector_config.pbtxt` that names them.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use simclr_data::{
    DataError,
    atomic_file::{self, persist},
    contact_sheet::ContactSheet,
    output,
};
use tempfile::NamedTempFile;

use super::{
    parquet_file::temporary_file,
    rows::{JPEG_QUALITY, Rows, planes, values},
};
use crate::EvalError;

/// The name that TensorBoard looks for in its log folder.
const CONFIG: &str = "projector_config.pbtxt";
/// First line of a configuration of `embed`.
const HEADER: &str = "# written by simclr embed\n";
/// Pixels of a side of a sheet at most: larger textures are refused by common graphics drivers.
const SHEET_SIDE: usize = 8192;

/// Values of `embed` next to the configuration that names them.
const VALUES: output::Kind =
    output::Kind { name: "a table of features with its projector_config.pbtxt", is_earlier: is_values };
/// A configuration of `embed`.
const CONFIGURATION: output::Kind =
    output::Kind { name: "a projector_config.pbtxt of simclr", is_earlier: is_config };
/// Replaced together with the values only.
const COMPANION: output::Kind = output::Kind { name: "a file of a table of features", is_earlier: |_| false };

fn is_config(path: &Path) -> bool {
    fs_err::read(path).is_ok_and(|text| text.starts_with(HEADER.as_bytes()))
}

fn is_values(path: &Path) -> bool {
    let config = path.with_file_name(CONFIG);
    let named = format!("tensor_path: {:?}", file_name(path));
    is_config(&config) && fs_err::read_to_string(&config).is_ok_and(|text| text.contains(&named))
}

/// Refuses to replace anything but an earlier table.
pub(super) fn check(out: &Path, data: &Path) -> Result<(), DataError> {
    output::check(out, VALUES, Some(data))?;
    output::check(&out.with_file_name(CONFIG), CONFIGURATION, Some(data))?;
    if out.exists() {
        return Ok(());
    }
    output::check(&companion(out, "metadata.tsv"), COMPANION, Some(data))?;
    output::check(&companion(out, "sprite.jpg"), COMPANION, Some(data))
}

/// `h.tsv.metadata.tsv` of `h.tsv`.
fn companion(out: &Path, kind: &str) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(format!(".{kind}"));
    name.into()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Files that are written row by row.
pub(super) struct Projector {
    values: NamedTempFile,
    metadata: NamedTempFile,
    /// With the number of pictures drawn.
    sheet: Option<(ContactSheet, usize)>,
}

impl Projector {
    /// For `rows` rows at most, with pictures of at most `picture` pixels a side.
    pub(super) fn create(out: &Path, rows: usize, picture: Option<usize>) -> Result<Self, EvalError> {
        let mut metadata = temporary_file(out)?;
        writeln!(metadata, "path\tpart\tclass")?;
        let columns = (rows as f64).sqrt().ceil().max(1.0) as usize;
        // In the steps of a sheet, downwards.
        let most = SHEET_SIDE / columns / 8 * 8;
        let sheet = picture.map(|side| (ContactSheet::new(rows, side.min(most)), 0));
        Ok(Self { values: temporary_file(out)?, metadata, sheet })
    }

    pub(super) fn push(&mut self, rows: &Rows<'_>) -> Result<(), EvalError> {
        let width = rows.h.size()[1] as usize;
        let line = |row: &[f32]| row.iter().map(f32::to_string).collect::<Vec<_>>().join("\t") + "\n";
        let text: String = values(rows.h)?.chunks_exact(width).map(line).collect();
        self.values.write_all(text.as_bytes())?;
        let text: String = rows.rows.iter().map(|&row| description(rows, row)).collect();
        self.metadata.write_all(text.as_bytes())?;
        if let Some((sheet, drawn)) = &mut self.sheet {
            let (planes, size) = planes(rows.pixels)?;
            for picture in planes.chunks_exact(size.0 * size.1 * size.1) {
                sheet.put(*drawn, picture, size);
                *drawn += 1;
            }
        }
        Ok(())
    }

    /// Moves the files to their places; the configuration is the last. Returns the table of paths.
    pub(super) fn finish(self, out: &Path) -> Result<PathBuf, EvalError> {
        let (metadata, sprite) = (companion(out, "metadata.tsv"), companion(out, "sprite.jpg"));
        let mut config = format!(
            "{HEADER}embeddings {{\n  tensor_name: \"h\"\n  tensor_path: {:?}\n  metadata_path: {:?}\n",
            file_name(out),
            file_name(&metadata)
        );
        if let Some((sheet, _)) = &self.sheet {
            atomic_file::write(&sprite, &sheet.jpeg(JPEG_QUALITY)?)?;
            let side = format!("    single_image_dim: {}\n", sheet.side());
            let path = file_name(&sprite);
            config.push_str(&format!("  sprite {{\n    image_path: {path:?}\n{side}{side}  }}\n"));
        }
        config.push_str("}\n");
        persist(self.metadata, &metadata)?;
        persist(self.values, out)?;
        atomic_file::write(&out.with_file_name(CONFIG), config.as_bytes())?;
        Ok(metadata)
    }
}

/// Path, part and class of a row, a line of the metadata.
fn description(rows: &Rows<'_>, row: usize) -> String {
    let sample = &rows.set.samples()[row];
    let class = sample.label.and_then(|label| rows.set.classes().get(label as usize));
    // A tab or a line break in a name would shift what follows.
    let cell = |text: &str| text.replace(['\t', '\n', '\r'], "\u{fffd}");
    format!("{}\t{}\t{}\n", cell(&sample.name), rows.part, cell(class.map_or("", String::as_str)))
}
