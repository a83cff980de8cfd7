//! Thumbnails as parts of one JPEG that is embedded in the page.

use std::collections::HashMap;

use simclr_data::{EvalReader, augment::EvalTransform, contact_sheet::ContactSheet};

use crate::{EvalError, explore::EmbeddedSet, html::escaped};

/// Images that are decoded at a time.
const CHUNK: usize = 256;
/// Qualities of the JPEG, tried until the budget is kept.
const QUALITIES: [u8; 5] = [85, 70, 50, 35, 20];

/// Thumbnails of one size.
pub(super) struct Thumbnails {
    /// Class of the elements.
    name: &'static str,
    /// Pixels of a side as shown.
    shown: usize,
    sheet: ContactSheet,
    /// Tile of each row.
    tiles: HashMap<usize, usize>,
    /// Base64 of the JPEG.
    encoded: String,
}

/// How thumbnails are made.
pub(super) struct Look {
    /// Class of the elements.
    pub(super) name: &'static str,
    /// Pixels of a side as shown, and at most as stored.
    pub(super) side: usize,
    /// Bytes of the encoded sheet at most.
    pub(super) budget: usize,
}

impl Thumbnails {
    /// Of the images `rows`, each once, by what the encoder sees of them. Where the budget does not suffice at the lowest quality, the
    /// later half of `rows` is left out, and so on.
    pub(super) fn of(
        set: &EmbeddedSet,
        mut rows: Vec<usize>,
        look: &Look,
        threads: usize,
    ) -> Result<Self, EvalError> {
        let mut known = std::collections::HashSet::new();
        rows.retain(|row| known.insert(*row));
        let stored = look.side.min(set.encoder.image_size());
        let draw = |rows: &[usize]| drawn(set, rows, stored, threads);
        let (rows, sheet, encoded) = within(rows, look.budget, &draw)?;
        let tiles = rows.iter().enumerate().map(|(at, row)| (*row, at)).collect();
        Ok(Self { name: look.name, shown: look.side, sheet, tiles, encoded })
    }

    /// Number of thumbnails.
    pub(super) fn len(&self) -> usize {
        self.tiles.len()
    }

    /// Tile of `row`, counted along the rows of the sheet.
    pub(super) fn place(&self, row: usize) -> Option<usize> {
        self.tiles.get(&row).copied()
    }

    /// Tiles in a row of the sheet, and pixels of a side as shown.
    pub(super) fn grid(&self) -> [usize; 2] {
        [self.sheet.tiles()[0], self.shown]
    }

    /// The rule that embeds the sheet.
    pub(super) fn style(&self) -> String {
        let Self { name, shown, .. } = self;
        let [width, height] = self.sheet.tiles().map(|tiles| tiles * shown);
        // Small images are enlarged with their pixels.
        let rendering = if 2 * self.sheet.side() <= *shown { ";image-rendering:pixelated" } else { "" };
        format!(
            ".{name}{{display:inline-block;width:{shown}px;height:{shown}px;background:#ccc \
             url(data:image/jpeg;base64,{}) 0 0/{width}px {height}px no-repeat{rendering}}}\n",
            self.encoded
        )
    }

    /// The element of `row` with a tooltip and more style; an empty square if it has no thumbnail.
    pub(super) fn tile(&self, row: usize, title: &str, style: &str) -> String {
        let name = self.name;
        let title = escaped(title);
        match self.tiles.get(&row) {
            Some(at) => {
                let [x, y] = self.sheet.place(*at).map(|place| place * self.shown);
                format!(
                    "<i class=\"{name}\" style=\"background-position:-{x}px -{y}px{style}\" title=\"{title}\"></i>"
                )
            }
            None => format!("<i class=\"{name}\" style=\"background:#ccc{style}\" title=\"{title}\"></i>"),
        }
    }
}

/// The first of `rows` with their sheet: all of them, half, a quarter, and so on.
fn within(
    mut rows: Vec<usize>,
    budget: usize,
    draw: &dyn Fn(&[usize]) -> Result<ContactSheet, EvalError>,
) -> Result<(Vec<usize>, ContactSheet, String), EvalError> {
    loop {
        let sheet = draw(&rows)?;
        match encoded(&sheet, budget)? {
            Some(encoded) => return Ok((rows, sheet, encoded)),
            None if rows.is_empty() => return Ok((rows, sheet, String::new())),
            None => rows.truncate(rows.len() / 2),
        }
    }
}

/// Base64 of the sheet in the highest quality within `budget`.
pub(super) fn encoded(sheet: &ContactSheet, budget: usize) -> Result<Option<String>, EvalError> {
    for quality in QUALITIES {
        let encoded = base64(&sheet.jpeg(quality)?);
        if encoded.len() <= budget {
            return Ok(Some(encoded));
        }
    }
    Ok(None)
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * place) & 63) as usize] as char;
            text.push(if place > group.len() { '=' } else { letter });
        }
    }
    text
}

fn drawn(set: &EmbeddedSet, rows: &[usize], side: usize, threads: usize) -> Result<ContactSheet, EvalError> {
    let mut sheet = ContactSheet::new(rows.len(), side);
    let size = sheet.side();
    let transform = EvalTransform { size, antialias: true, ..set.encoder.transform() };
    for (part, (_, images)) in set.parts.iter().enumerate() {
        let places = rows.iter().enumerate().filter(|(_, row)| set.members[**row].part == part);
        let places: HashMap<usize, usize> =
            places.map(|(tile, row)| (set.members[*row].index, tile)).collect();
        let mut indices: Vec<usize> = places.keys().copied().collect();
        indices.sort_unstable();
        let reader = EvalReader::new(images, &transform, threads)?;
        let (channels, width) = (images.channels(), images.channels() * size * size);
        for chunk in indices.chunks(CHUNK) {
            let read = reader.read(chunk);
            for (index, planes) in read.ids.iter().zip(read.pixels.chunks_exact(width)) {
                sheet.put(places[index], planes, (channels, size));
            }
        }
    }
    Ok(sheet)
}

#[cfg(test)]
mod tests {
    use simclr_data::rng::Key;

    use super::*;

    /// Noise, which no JPEG makes small.
    fn noise(rows: &[usize]) -> Result<ContactSheet, EvalError> {
        let mut sheet = ContactSheet::new(rows.len(), 32);
        for (tile, row) in rows.iter().enumerate() {
            let mut stream = Key::choice(*row as u64, 0).stream();
            let planes: Vec<f32> = (0..3 * 32 * 32).map(|_| stream.unit()).collect();
            sheet.put(tile, &planes, (3, 32));
        }
        Ok(sheet)
    }

    /// The test vectors of RFC 4648, section 10, and letters beyond 61.
    #[test]
    fn bytes_become_base64() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foobar", "Zm9vYmFy"),
            (&[0xfb, 0xff, 0xbf], "+/+/"),
        ] {
            assert_eq!(base64(bytes), text);
        }
    }

    #[test]
    fn a_budget_is_kept_by_quality_and_then_by_number() {
        let rows: Vec<usize> = (0..64).collect();
        let best = encoded(&noise(&rows).unwrap(), usize::MAX).unwrap().unwrap().len();
        let (kept, _, text) = within(rows.clone(), best - 1, &noise).unwrap();
        assert!(kept == rows && text.len() < best, "{best} {}", text.len());
        let (kept, sheet, text) = within(rows.clone(), best / 16, &noise).unwrap();
        assert!((1..=32).contains(&kept.len()) && text.len() <= best / 16, "{} {}", kept.len(), text.len());
        assert!(rows.starts_with(&kept) && sheet.tiles().iter().product::<usize>() < 64);
        assert_eq!(within(rows, 1, &noise).unwrap().0, Vec::<usize>::new());
    }
}
