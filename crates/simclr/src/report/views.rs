//! The section on augmentation: some images next to their views.

use simclr_data::{
    ViewParams,
    contact_sheet::ContactSheet,
    view_table::{Cell, ViewTable, spread},
};

use super::{Analysis, thumbnails::encoded};
use crate::{EvalError, html::escaped};

/// Images, and views of each.
const IMAGES: usize = 6;
const VIEWS: usize = 8;
/// Pixels of a side of a view as stored at most, and as shown.
const STORED: usize = 192;
const SHOWN: usize = 96;
/// Bytes of the encoded sheet at most.
const BUDGET: usize = 1_500_000;

/// The section and its style.
pub(super) fn section(analysis: &Analysis<'_>) -> Result<[String; 2], EvalError> {
    let (encoder, set) = (&analysis.set.encoder, &analysis.set.parts[0].1);
    let config = encoder.config();
    let transform = encoder.transform();
    let indices = spread(set, IMAGES);
    let size = transform.size;
    let mut sheet = ContactSheet::new(indices.len() * (VIEWS + 1), size.min(STORED));
    let mut captions = Vec::new();
    let table = ViewTable { set, transform, augment: &config.augment, seed: config.train.seed, views: VIEWS };
    table.each(&indices, &mut |cell: &Cell<'_>| -> Result<(), EvalError> {
        sheet.put(captions.len(), cell.pixels, (set.channels(), size));
        captions.push(caption(cell.params, cell.stored));
        Ok(())
    })?;
    let Some(encoded) = encoded(&sheet, BUDGET)? else {
        return Ok(["<p>The views take more bytes than the page may have.</p>\n".into(), String::new()]);
    };
    let mut text = format!(
        "<p>{} images as the encoder sees them, and {VIEWS} views of each as they are drawn in training, with the region of the crop in \
         per cent of the area and the strength of each operation (b brightness, c contrast, s saturation, h hue).</p>\n",
        indices.len()
    );
    text.push_str("<div class=\"overflow\"><div class=\"views\">\n");
    text.extend(captions.iter().enumerate().map(|(at, caption)| figure(&sheet, at, caption)));
    Ok([text + "</div></div>\n", style(&sheet, &encoded)])
}

fn caption(params: Option<&ViewParams>, (width, height): (usize, usize)) -> String {
    match params {
        Some(params) => params.words((width, height)).join(" "),
        None => format!("{width}x{height}"),
    }
}

fn figure(sheet: &ContactSheet, at: usize, caption: &str) -> String {
    let [x, y] = sheet.place(at).map(|place| place * SHOWN);
    format!(
        "<figure><i class=\"v\" style=\"background-position:-{x}px -{y}px\"></i><figcaption>{}</figcaption></figure>\n",
        escaped(caption)
    )
}

fn style(sheet: &ContactSheet, encoded: &str) -> String {
    let [width, height] = sheet.tiles().map(|tiles| tiles * SHOWN);
    let rendering = if 2 * sheet.side() <= SHOWN { ";image-rendering:pixelated" } else { "" };
    format!(
        ".v{{display:inline-block;width:{SHOWN}px;height:{SHOWN}px;background:url(data:image/jpeg;base64,{encoded}) 0 0/{width}px \
         {height}px no-repeat{rendering}}}.views{{display:grid;grid-template-columns:repeat({},{SHOWN}px);gap:6px}}\
         .views figcaption{{font-size:10px;line-height:1.2}}\n",
        VIEWS + 1
    )
}
