//! The range of stored values: `data.range`.

use image::{ImageBuffer, Luma, Rgb};
use simclr_data::{
    Dataset, RangeChoice, Split, ValueRange,
    dataset::Channels,
    pack::{PackOptions, pack},
};

fn put_16_bit(path: &std::path::Path, values: impl Fn(u32, u32) -> u16) {
    let image: ImageBuffer<Luma<u16>, Vec<u16>> = ImageBuffer::from_fn(32, 32, |x, y| Luma([values(x, y)]));
    image.save(path).unwrap();
}

fn twelve_bits(folder: &std::path::Path) {
    for image in 0..20u32 {
        put_16_bit(&folder.join(format!("{image:02}.png")), |x, y| {
            (300 + (x * 78 + y * 2 + 7 * image) % 2501) as u16
        });
    }
}

fn open(path: &std::path::Path) -> Dataset {
    Dataset::open(path, Split::Train, Channels::Auto).unwrap()
}

#[test]
fn values_of_16_bits_are_scaled_by_their_measured_range() {
    let folder = tempfile::tempdir().unwrap();
    twelve_bits(folder.path());
    let (set, range) = open(folder.path()).with_range(&RangeChoice::Auto).unwrap();
    let ValueRange::PerChannel(pairs) = &range else { panic!("{range}") };
    let fine = |[low, high]: &[f64; 2]| (300.0..310.0).contains(low) && (2790.0..=2801.0).contains(high);
    assert!(pairs.len() == 3 && pairs.iter().all(fine), "{range}");
    let again = Dataset::open_as(folder.path(), Split::Train, set.decoding()).unwrap();
    assert_eq!(again.decode(3).unwrap(), set.decode(3).unwrap(), "as an evaluation opens the set");
    let levels: std::collections::HashSet<u8> =
        (0..set.len()).flat_map(|index| set.decode(index).unwrap().data.to_vec()).collect();
    assert!(levels.len() > 250, "{} levels", levels.len());
    assert!(set.notes()[0].contains(&format!("uint16 values: data.range = {range}")), "{:?}", set.notes());
}

#[test]
fn wide_16_bit_values_keep_the_full_range_and_low_contrast_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    put_16_bit(&folder.path().join("1.png"), |x, y| (x * 2000 + y * 64) as u16);
    assert_eq!(open(folder.path()).survey().range(), ValueRange::Full);
    let dark = tempfile::tempdir().unwrap();
    twelve_bits(dark.path());
    let (set, _) = open(dark.path()).with_range(&RangeChoice::Set(ValueRange::Full)).unwrap();
    assert!(set.notes().iter().any(|note| note.contains("16 of 256 levels")), "{:?}", set.notes());
}

#[test]
fn images_of_8_bits_are_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let image = ImageBuffer::from_fn(8, 8, |x, y| Rgb([(x * 30) as u8, (y * 30) as u8, 40]));
    image.save(folder.path().join("1.png")).unwrap();
    put_16_bit(&folder.path().join("2.png"), |x, _| (x * 100) as u16);
    let (set, range) = open(folder.path()).with_range(&RangeChoice::Auto).unwrap();
    assert_eq!(range, ValueRange::Full, "one image of 8 bits is enough");
    assert_eq!(set.decode(0).unwrap().data, *image.as_raw());
    assert!(set.notes().iter().any(|note| note.contains("uint16 1, uint8 1")), "{:?}", set.notes());
}

#[test]
fn clipped_values_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    twelve_bits(folder.path());
    let range = RangeChoice::Set(ValueRange::Same([300.0, 1550.0]));
    let (set, _) = open(folder.path()).with_range(&range).unwrap();
    let note = set.notes().iter().find(|note| note.contains("outside of data.range")).unwrap();
    assert!(note.starts_with("50.") || note.starts_with("49."), "{note}");
}

#[test]
fn packed_sets_record_their_range() {
    let folder = tempfile::tempdir().unwrap();
    twelve_bits(folder.path());
    let out = folder.path().join("set.pack");
    let options = PackOptions { threads: 2, ..PackOptions::default() };
    let packed = pack(folder.path(), &out, &options, &mut |_, _| {}, &Default::default()).unwrap().unwrap();
    let (files, range) = open(folder.path()).with_range(&RangeChoice::Auto).unwrap();
    assert_eq!(packed.range, range);
    let (set, of_pack) = open(&out).with_range(&RangeChoice::Auto).unwrap();
    assert_eq!(of_pack, range);
    assert_eq!(set.decode(7).unwrap(), files.decode(7).unwrap());
    let refused = open(&out).with_range(&RangeChoice::Set(ValueRange::Full)).unwrap_err().to_string();
    assert!(
        refused.contains("the packed set was written with [[") && refused.contains("--range"),
        "{refused}"
    );
}
