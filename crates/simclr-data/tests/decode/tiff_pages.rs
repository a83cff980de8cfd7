//! Pages of TIFF files as images or channels: `data.pages`.

use simclr_data::{
    Dataset, Split,
    dataset::{Channels, Labels, OpenOptions},
    decode::{Decoding, Pages, decode},
    pack::{PackOptions, pack},
};

use super::{
    tiff_values::ramp,
    tiff_writer::{Page, UNSIGNED, tiff},
};

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
fn pages_are_images_in_file_order_with_the_label_of_the_file() {
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
fn tables_label_all_pages_of_a_file() {
    let folder = stacks();
    let table = folder.path().join("labels-elsewhere.csv");
    fs_err::write(&table, "path,label\nstack.tif,cell\none.tif,debris\ntwo,cell\n").unwrap();
    let set = open(folder.path(), Split::Train, Pages::Images);
    let set = set.labelled(&Labels::Table(table), folder.path(), &[Split::Train]).unwrap();
    assert_eq!(set.labels().unwrap(), [vec![0; 12], vec![1]].concat());
    assert_eq!(set.classes(), ["cell", "debris"]);
}

#[test]
fn packed_sets_record_the_page_rule() {
    let folder = stacks();
    let out = tempfile::tempdir().unwrap();
    let packed = |name: &str, pages| {
        let out = out.path().join(name);
        let options = PackOptions { pages, ..PackOptions::default() };
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
fn pages_that_do_not_fit_the_rule_are_refused() {
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
