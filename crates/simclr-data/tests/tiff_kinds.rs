//! TIFF of every sample type, layout, byte order and number of pages: the values that were written are those that are scaled.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use proptest::prelude::*;
use simclr_data::{
    Dataset, RangeChoice, Split, ValueRange,
    dataset::{Channels, Labels, OpenOptions, PackOptions, pack},
    decode::{Decoding, Jpeg, Pages, decode, native_channels},
};

/// A page with all that its tags declare; `samples` are interleaved.
#[derive(Debug, Clone)]
struct Page {
    width: usize,
    height: usize,
    bands: usize,
    bits: u16,
    format: u16,
    photometric: u16,
    planar: bool,
    samples: Vec<f64>,
    extra: Vec<u16>,
    subfile: u32,
    palette: Vec<u16>,
    no_data: Option<&'static str>,
}

const UNSIGNED: u16 = 1;
const SIGNED: u16 = 2;
const FLOAT: u16 = 3;

impl Page {
    fn grey(
        (width, height): (usize, usize),
        bands: usize,
        (bits, format): (u16, u16),
        samples: Vec<f64>,
    ) -> Self {
        let extra = vec![0; bands - 1];
        let (photometric, planar, subfile, palette, no_data) = (1, false, 0, Vec::new(), None);
        Self {
            width,
            height,
            bands,
            bits,
            format,
            photometric,
            planar,
            samples,
            extra,
            subfile,
            palette,
            no_data,
        }
    }

    /// The sample as it lies in the file.
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

    /// One strip, or one for each band.
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

/// Writes classic TIFF or BigTIFF, little- or big-endian, uncompressed.
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

    /// Type 2 is text, 3 u16, 4 u32, 16 u64.
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

fn tiff(pages: &[Page], big: bool, big_endian: bool) -> Vec<u8> {
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

/// The levels of a decoded file.
fn levels(bytes: &[u8], channels: usize, range: ValueRange) -> Vec<u8> {
    let how = Decoding { range, ..channels.into() };
    decode("x.tif", bytes, how).unwrap().data.to_vec()
}

/// 0, 1, 2, ... in every type fits all types.
fn ramp(count: usize) -> Vec<f64> {
    (0..count).map(|value| (value % 101) as f64).collect()
}

const KINDS: [(u16, u16); 10] = [
    (8, UNSIGNED),
    (16, UNSIGNED),
    (32, UNSIGNED),
    (64, UNSIGNED),
    (8, SIGNED),
    (16, SIGNED),
    (32, SIGNED),
    (64, SIGNED),
    (32, FLOAT),
    (64, FLOAT),
];

proptest! {
    #[test]
    fn all_types_layouts_and_byte_orders_hold_the_same_image(
        kind in 0..KINDS.len(), bands in 1usize..7, width in 1usize..9, height in 1usize..9,
        (planar, big, big_endian) in any::<(bool, bool, bool)>(),
    ) {
        let samples = ramp(width * height * bands);
        let page = Page { planar: planar && bands > 1, ..Page::grey((width, height), bands, KINDS[kind], samples.clone()) };
        let bytes = tiff(&[page], big, big_endian);
        prop_assert_eq!(native_channels(&bytes), if bands == 1 { 3 } else { bands });
        let expected: Vec<u8> = samples.iter().map(|value| (value * 255.0 / 100.0 + 0.5) as u8).collect();
        prop_assert_eq!(levels(&bytes, bands, ValueRange::Same([0.0, 100.0])), expected);
    }

    #[test]
    fn damaged_directories_and_pages_never_panic(at in 0usize..400, value in any::<u8>(), big in any::<bool>()) {
        let page = Page { planar: true, ..Page::grey((5, 4), 3, (16, UNSIGNED), ramp(60)) };
        let palette = Page { photometric: 3, palette: vec![7; 768], ..Page::grey((5, 4), 1, (8, UNSIGNED), ramp(20)) };
        for pages in [vec![page.clone(), page], vec![palette]] {
            let mut bytes = tiff(&pages, big, false);
            let at = at % bytes.len();
            bytes[at] = value;
            native_channels(&bytes);
            let _ = decode("x.tif", &bytes, 3);
            bytes.truncate(at);
            let _ = decode("x.tif", &bytes, 3);
        }
    }
}

#[test]
fn negative_values_and_no_data() {
    let samples = vec![-50.0, 50.0, -9999.0, f64::NAN];
    let page = Page { no_data: Some("-9999"), ..Page::grey((4, 1), 1, (32, FLOAT), samples) };
    let bytes = tiff(&[page], false, false);
    assert_eq!(levels(&bytes, 1, ValueRange::Same([-50.0, 50.0])), [0, 255, 0, 0]);
}

#[test]
fn colour_with_a_further_band_keeps_it_unless_it_is_alpha() {
    let of = |extra: u16, big: bool| {
        let page =
            Page { photometric: 2, extra: vec![extra], ..Page::grey((2, 1), 4, (8, UNSIGNED), ramp(8)) };
        tiff(&[page], big, false)
    };
    for big in [false, true] {
        assert_eq!(native_channels(&of(0, big)), 4);
        assert_eq!(levels(&of(0, big), 4, ValueRange::Full), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(native_channels(&of(2, big)), 3);
        assert_eq!(levels(&of(2, big), 3, ValueRange::Full), [0, 1, 2, 4, 5, 6]);
        assert_eq!(levels(&of(2, big), 4, ValueRange::Full), [0, 1, 2, 3, 4, 5, 6, 7], "asked for");
    }
}

#[test]
fn palettes_become_colours() {
    for (bits, scale) in [(8u16, 257u16), (4, 257), (8, 1)] {
        let entries = 1usize << bits;
        let mut palette = vec![0; 3 * entries];
        for (channel, level) in [10, 20, 30].into_iter().enumerate() {
            palette[channel * entries + 5] = level * scale;
        }
        let page =
            Page { photometric: 3, palette, ..Page::grey((3, 1), 1, (bits, UNSIGNED), vec![5.0, 0.0, 5.0]) };
        let bytes = tiff(&[page], false, false);
        assert_eq!(native_channels(&bytes), 3);
        assert_eq!(levels(&bytes, 3, ValueRange::Full), [10, 20, 30, 0, 0, 0, 10, 20, 30], "{bits} bits");
    }
}

#[test]
fn few_bits_are_spread_over_all_levels() {
    let two = Page::grey((3, 2), 1, (2, UNSIGNED), vec![0.0, 1.0, 2.0, 3.0, 0.0, 3.0]);
    assert_eq!(levels(&tiff(&[two], false, false), 1, ValueRange::Full), [0, 85, 170, 255, 0, 255]);
}

#[test]
fn pages_are_channels_copies_or_left_out_with_a_note() {
    let grey = |first: f64, side: usize| {
        Page::grey((side, 1), 1, (8, UNSIGNED), (0..side).map(|at| first + at as f64).collect())
    };
    let reduced = Page { subfile: 1, ..grey(99.0, 1) };
    let full = Page { photometric: 2, extra: Vec::new(), ..Page::grey((2, 1), 3, (8, UNSIGNED), ramp(6)) };
    let pyramid = tiff(&[reduced.clone(), full.clone()], false, false);
    assert_eq!(levels(&pyramid, 3, ValueRange::Full), [0, 1, 2, 3, 4, 5], "the second page is the image");
    let stack = tiff(&[grey(10.0, 2), grey(20.0, 2), reduced, grey(30.0, 2)], true, false);
    assert_eq!(native_channels(&stack), 3);
    assert_eq!(levels(&stack, 3, ValueRange::Full), [10, 20, 30, 11, 21, 31]);
    let others = tiff(&[full.clone(), full, grey(1.0, 4)], false, true);
    assert_eq!(levels(&others, 3, ValueRange::Full), [0, 1, 2, 3, 4, 5]);
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("x.tif"), others).unwrap();
    let set = Dataset::open(folder.path(), Split::Train, Channels::Auto).unwrap();
    let (set, _) = set.with_range(&Default::default()).unwrap();
    assert!(set.notes().iter().any(|note| note.contains("2 of 3 pages are not used")), "{:?}", set.notes());
}

/// One row of `side` grey pixels: `first`, `first` + 1, ...
fn row(first: usize, side: usize) -> Page {
    Page::grey((side, 1), 1, (8, UNSIGNED), (first..first + side).map(|value| value as f64).collect())
}

fn open(path: &std::path::Path, split: Split, pages: Pages) -> Dataset {
    Dataset::open(path, split, OpenOptions { channels: Channels::Auto, pages }).unwrap()
}

fn names(set: &Dataset) -> Vec<&str> {
    set.samples().iter().map(|sample| sample.name.as_str()).collect()
}

/// `train/a/stack.tif` of 12 full-size pages with a reduced copy after the first, `train/b/one.tif`, `test/b/two.tif` of two.
fn stacks() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut pages: Vec<Page> = (0..12).map(|page| row(10 * page, 2)).collect();
    pages.insert(1, Page { subfile: 1, ..row(99, 1) });
    for (name, pages) in [
        ("train/a/stack.tif", pages),
        ("train/b/one.tif", vec![row(3, 2), Page { subfile: 4, ..row(0, 2) }]),
        ("test/b/two.TIFF", vec![row(40, 2), row(50, 3)]),
    ] {
        let path = folder.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, tiff(&pages, false, false)).unwrap();
    }
    folder
}

#[test]
fn pages_are_images_in_the_order_of_the_file_with_its_label() {
    let folder = stacks();
    let train = open(folder.path(), Split::Train, Pages::Images);
    let numbers = [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let mut expected: Vec<String> = numbers.iter().map(|page| format!("train/a/stack.tif#{page}")).collect();
    expected.push("train/b/one.tif".into());
    assert_eq!(names(&train), expected);
    assert_eq!((train.channels(), train.classes().len()), (3, 2));
    assert_eq!(train.labels().unwrap(), [vec![0; 12], vec![1]].concat());
    let first = |set: &Dataset, index| set.decode(index).unwrap().data[0];
    assert_eq!(
        (0..12).map(|index| first(&train, index)).collect::<Vec<_>>(),
        [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110]
    );
    assert_eq!((first(&train, 12), train.subset(&[3]).decode(0).unwrap().data[0]), (3, 30));
    assert!(train.notes()[0].contains("1 of 2 files have several pages, which are 12 images"));
    let test = open(folder.path(), Split::Test, Pages::Images);
    assert_eq!(names(&test), ["test/b/two.TIFF#0", "test/b/two.TIFF#1"]);
    assert_eq!((test.labels().unwrap(), test.decode(1).unwrap().width), (vec![1, 1], 3));
    let parts = [Split::Train, Split::Test];
    let options = OpenOptions { channels: Channels::Auto, pages: Pages::Images };
    assert_eq!(Dataset::open_parts(folder.path(), &parts, options).unwrap().len(), 15);
    let by_rule = |rule| open(folder.path(), Split::Train, rule);
    assert_eq!((by_rule(Pages::Auto).len(), by_rule(Pages::Auto).channels()), (2, 12));
    assert_ne!(train.fingerprint(), by_rule(Pages::Auto).fingerprint());
}

#[test]
fn a_table_labels_all_pages_of_a_file() {
    let folder = stacks();
    let table = folder.path().join("labels-elsewhere.csv");
    fs_err::write(&table, "path,label\nstack.tif,cell\none.tif,debris\ntwo,cell\n").unwrap();
    let set = open(folder.path(), Split::Train, Pages::Images);
    let set = set.labelled(&Labels::Table(table), folder.path(), &[Split::Train]).unwrap();
    assert_eq!(set.labels().unwrap(), [vec![0; 12], vec![1]].concat());
    assert_eq!(set.classes(), ["cell", "debris"]);
}

#[test]
fn a_packed_set_records_the_rule_for_pages() {
    let folder = stacks();
    let out = tempfile::tempdir().unwrap();
    let packed = |name: &str, pages| {
        let (out, range) = (out.path().join(name), RangeChoice::Auto);
        let (channels, size, jpeg, labels, threads) = (Channels::Auto, None, Jpeg::Zune, Labels::Auto, 1);
        let options = PackOptions { channels, size, jpeg, range, pages, labels, threads };
        let packed = pack(folder.path(), &out, &options, &mut |_, _| {}, &Default::default());
        assert!(packed.unwrap().is_some());
        out
    };
    let out = packed("images.pack", Pages::Images);
    for rule in [Pages::Auto, Pages::Images] {
        let (set, files) = (open(&out, Split::Train, rule), open(folder.path(), Split::Train, Pages::Images));
        assert_eq!((set.samples(), set.decoding().pages), (files.samples(), Pages::Images));
        assert_eq!(
            (set.fingerprint(), set.decode(5).unwrap()),
            (files.fingerprint(), files.decode(5).unwrap())
        );
    }
    let options = OpenOptions { channels: Channels::Auto, pages: Pages::Channels };
    let refused = Dataset::open(&out, Split::Train, options).unwrap_err().to_string();
    assert!(refused.contains("written with data.pages = images"), "{refused}");
    assert_eq!(open(&packed("auto.pack", Pages::Auto), Split::Train, Pages::Auto).len(), 2);
}

#[test]
fn pages_that_cannot_be_channels_are_refused_where_they_must_be() {
    let decoded = |pages: &[Page], rule, channels: usize| {
        let how = Decoding { pages: rule, ..channels.into() };
        decode("x.tif", &tiff(pages, false, false), how).map_err(|error| error.to_string())
    };
    let stack = [row(1, 2), row(2, 2)];
    assert_eq!(decoded(&stack, Pages::Channels, 2), decoded(&stack, Pages::Auto, 2));
    let refused = decoded(&[row(1, 2), row(2, 2), row(3, 4)], Pages::Channels, 2).unwrap_err();
    assert!(refused.contains("page 0 is 2x1, 1 x 8 bits, page 2 is 4x1, 1 x 8 bits"), "{refused}");
    let colour = Page { photometric: 2, extra: Vec::new(), ..Page::grey((2, 1), 3, (8, UNSIGNED), ramp(6)) };
    assert!(decoded(&[colour.clone(), colour.clone()], Pages::Channels, 3).is_err());
    for rule in [Pages::Channels, Pages::Images] {
        assert!(decoded(std::slice::from_ref(&colour), rule, 3).is_ok());
    }
    let refused = decoded(&stack, Pages::Images, 1).unwrap_err();
    assert!(refused.contains("it holds 2 pages"), "a stack under a name that is not looked into: {refused}");
}

#[test]
fn pages_of_files_in_shards_are_images() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("set.tar");
    let mut shard = tar::Builder::new(fs_err::File::create(&path).unwrap());
    let bytes = tiff(&[row(1, 2), row(2, 2)], false, false);
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    shard.append_data(&mut header, "k.tif", &bytes[..]).unwrap();
    shard.finish().unwrap();
    let set = open(&path, Split::Train, Pages::Images);
    assert_eq!((set.len(), set.decode(1).unwrap().data[0]), (2, 2), "{:?}", names(&set));
}
