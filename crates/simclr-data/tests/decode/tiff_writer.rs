//! Writes TIFF files for tests: classic or BigTIFF, little- or big-endian, uncompressed.

/// A page and its tags; `samples` are interleaved.
#[derive(Debug, Clone)]
pub struct Page {
    pub width: usize,
    pub height: usize,
    pub bands: usize,
    pub bits: u16,
    pub format: u16,
    pub photometric: u16,
    pub planar: bool,
    pub samples: Vec<f64>,
    pub extra: Vec<u16>,
    pub subfile: u32,
    pub palette: Vec<u16>,
    pub no_data: Option<&'static str>,
}

pub const UNSIGNED: u16 = 1;
pub const SIGNED: u16 = 2;
pub const FLOAT: u16 = 3;

impl Page {
    pub fn grey(
        (width, height): (usize, usize),
        bands: usize,
        (bits, format): (u16, u16),
        samples: Vec<f64>,
    ) -> Self {
        let extra = vec![0; bands - 1];
        Self {
            width,
            height,
            bands,
            bits,
            format,
            photometric: 1,
            planar: false,
            samples,
            extra,
            subfile: 0,
            palette: Vec::new(),
            no_data: None,
        }
    }

    /// A sample as stored.
    fn bytes_of(&self, value: f64, big_endian: bool) -> Vec<u8> {
        let mut bytes = match (self.format, self.bits) {
            (FLOAT, 32) => (value as f32).to_le_bytes().to_vec(),
            (FLOAT, 64) => value.to_le_bytes().to_vec(),
            (SIGNED, _) => (value as i64).to_le_bytes().to_vec(),
            _ => (value as u64).to_le_bytes().to_vec(),
        };
        bytes.truncate(usize::from(self.bits / 8));
        if big_endian {
            bytes.reverse();
        }
        bytes
    }

    /// One strip, or one per band.
    fn strips(&self, big_endian: bool) -> Vec<Vec<u8>> {
        if self.bits < 8 {
            let per_byte = usize::from(8 / self.bits);
            let row = |row: &[f64]| -> Vec<u8> {
                let byte = |part: &[f64]| {
                    (0..per_byte)
                        .fold(0, |byte, at| byte << self.bits | part.get(at).map_or(0, |value| *value as u8))
                };
                row.chunks(per_byte).map(byte).collect()
            };
            return vec![self.samples.chunks(self.width * self.bands).flat_map(row).collect()];
        }
        let all = |values: &mut dyn Iterator<Item = &f64>| {
            values.flat_map(|&value| self.bytes_of(value, big_endian)).collect()
        };
        match self.planar {
            false => vec![all(&mut self.samples.iter())],
            true => (0..self.bands)
                .map(|band| all(&mut self.samples.iter().skip(band).step_by(self.bands)))
                .collect(),
        }
    }
}

struct Writer {
    bytes: Vec<u8>,
    big: bool,
    big_endian: bool,
}

impl Writer {
    fn number(&self, value: u64, length: usize) -> Vec<u8> {
        let mut bytes = value.to_le_bytes()[..length].to_vec();
        if self.big_endian {
            bytes.reverse();
        }
        bytes
    }

    fn offset_size(&self) -> usize {
        if self.big { 8 } else { 4 }
    }

    fn append(&mut self, bytes: &[u8]) -> u64 {
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
        let at = self.bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        at
    }

    /// Types: 2 is text, 3 u16, 4 u32, 16 u64.
    fn entry(&mut self, tag: u16, kind: u16, values: &[u64]) -> Vec<u8> {
        let size = match kind {
            2 => 1,
            3 => 2,
            4 => 4,
            _ => 8,
        };
        let mut data: Vec<u8> = values.iter().flat_map(|&value| self.number(value, size)).collect();
        let room = self.offset_size();
        if data.len() > room {
            let at = self.append(&data);
            data = self.number(at, room);
        }
        data.resize(room, 0);
        [
            self.number(tag.into(), 2),
            self.number(kind.into(), 2),
            self.number(values.len() as u64, room),
            data,
        ]
        .concat()
    }

    fn directory(&mut self, page: &Page) -> Vec<u8> {
        let strips = page.strips(self.big_endian);
        let counts: Vec<u64> = strips.iter().map(|strip| strip.len() as u64).collect();
        let offsets: Vec<u64> = strips.iter().map(|strip| self.append(strip)).collect();
        let wide = if self.big { 16 } else { 4 };
        let short = |values: &[u16]| values.iter().map(|&value| u64::from(value)).collect::<Vec<_>>();
        let mut entries = vec![
            self.entry(254, 4, &[page.subfile.into()]),
            self.entry(256, 4, &[page.width as u64]),
            self.entry(257, 4, &[page.height as u64]),
            self.entry(258, 3, &short(&vec![page.bits; page.bands])),
            self.entry(259, 3, &[1]),
            self.entry(262, 3, &[page.photometric.into()]),
            self.entry(273, wide, &offsets),
            self.entry(277, 3, &[page.bands as u64]),
            self.entry(278, 4, &[page.height as u64]),
            self.entry(279, wide, &counts),
            self.entry(284, 3, &[if page.planar { 2 } else { 1 }]),
        ];
        if !page.palette.is_empty() {
            entries.push(self.entry(320, 3, &short(&page.palette)));
        }
        if !page.extra.is_empty() {
            entries.push(self.entry(338, 3, &short(&page.extra)));
        }
        entries.push(self.entry(339, 3, &short(&vec![page.format; page.bands])));
        if let Some(text) = page.no_data {
            let text: Vec<u64> = text.bytes().chain([0]).map(u64::from).collect();
            entries.push(self.entry(42113, 2, &text));
        }
        let count = self.number(entries.len() as u64, if self.big { 8 } else { 2 });
        [count, entries.concat()].concat()
    }
}

pub fn tiff(pages: &[Page], big: bool, big_endian: bool) -> Vec<u8> {
    let mut writer = Writer { bytes: Vec::new(), big, big_endian };
    let order = if big_endian { *b"MM" } else { *b"II" };
    let version = writer.number(if big { 43 } else { 42 }, 2);
    let sizes = if big { [writer.number(8, 2), writer.number(0, 2)].concat() } else { Vec::new() };
    writer.bytes = [&order[..], &version, &sizes].concat();
    let mut link = writer.bytes.len();
    let room = writer.offset_size();
    writer.bytes.extend(vec![0; room]);
    for page in pages {
        let directory = writer.directory(page);
        let at = writer.append(&directory);
        let offset = writer.number(at, room);
        writer.bytes[link..link + room].copy_from_slice(&offset);
        link = writer.bytes.len();
        writer.bytes.extend(vec![0; room]);
    }
    writer.bytes
}
