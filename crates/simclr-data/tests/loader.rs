//! The loader: batches are a function of (data, seed, step), not of threads; failed images are left out and listed; nothing hangs.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use simclr_data::{
    AugmentConfig, Batch, Chunking, DataError, Dataset, EvalReader, Image, Loader, LoaderConfig, Sample,
    augment::{AugmentBuffers, TransformConfig, apply},
    dataset::Source,
    decode::Decoding,
    loader::Batches,
    rng::Key,
};

const SIZE: usize = 8;
const VIEW: usize = 3 * SIZE * SIZE;

/// Random pixels, with a size by image; some images fail, one may panic.
#[derive(Default)]
struct Noise {
    bad: HashSet<usize>,
    panics: Option<usize>,
    decoded: Arc<AtomicUsize>,
}

impl Source for Noise {
    fn decode(&self, index: usize, &Decoding { channels, .. }: &Decoding) -> Result<Image, DataError> {
        self.decoded.fetch_add(1, Ordering::SeqCst);
        assert_ne!(Some(index), self.panics, "a decoder with a bug");
        if self.bad.contains(&index) {
            return Err(DataError::Decode { name: index.to_string(), reason: "bad on purpose".into() });
        }
        Ok(image(index, channels))
    }

    fn stored_bytes(&self, index: usize) -> u64 {
        index as u64
    }
}

fn image(index: usize, channels: usize) -> Image {
    let (width, height) = (9 + index % 5, 9 + index % 3);
    let mut stream = Key { seed: 77, epoch: 0, image: index as u64, view: 0 }.stream();
    let data = (0..width * height * channels).map(|_| stream.below(256) as u8).collect();
    Image::new(width, height, channels, data)
}

fn dataset(images: usize, source: Noise) -> Arc<Dataset> {
    let samples = (0..images).map(|index| Sample { name: format!("{index:04}"), label: None }).collect();
    Arc::new(Dataset::from_source(samples, Vec::new(), 3, Box::new(source)))
}

fn config(threads: usize) -> LoaderConfig {
    LoaderConfig {
        views: 2,
        batch: 8,
        size: SIZE,
        seed: 5,
        threads,
        prefetch: 2,
        max_bad_share: 0.5,
        ..LoaderConfig::default()
    }
}

fn loader(images: usize, source: Noise, config: LoaderConfig) -> Loader {
    Loader::new(dataset(images, source), AugmentConfig::default(), config).unwrap()
}

fn all(batches: Batches) -> Vec<Batch> {
    batches.map(Result::unwrap).collect()
}

#[test]
fn batches_do_not_depend_on_threads() {
    let [one, four] =
        [1, 4].map(|threads| all(loader(50, Noise::default(), config(threads)).batches(0, 12).unwrap()));
    assert_eq!(one.len(), 12);
    assert!(one == four, "1 and 4 threads differ");
}

#[test]
fn later_start_steps_give_the_tail_of_the_stream() {
    let loader = loader(50, Noise::default(), config(2));
    assert_eq!(loader.steps_per_epoch(), 6, "the last, smaller batch is dropped");
    let whole = all(loader.batches(0, 20).unwrap());
    for start in [1, 5, 6, 7, 12, 19] {
        let tail = all(loader.batches(start, 20).unwrap());
        assert!(whole[start as usize..] == tail, "starting at {start}");
    }
    assert!(all(loader.batches(20, 20).unwrap()).is_empty());
}

/// From a change on, batches are those of a loader with the other side.
#[test]
fn the_side_of_the_views_changes_between_steps() {
    let changing = LoaderConfig { size_changes: vec![(3, 12), (4, 24)], ..config(2) };
    let found = all(loader(50, Noise::default(), changing).batches(0, 6).unwrap());
    for (steps, size) in [(0..3, SIZE), (3..4, 12), (4..6, 24)] {
        let constant =
            all(loader(50, Noise::default(), LoaderConfig { size, ..config(2) }).batches(0, 6).unwrap());
        assert!(found[steps.clone()] == constant[steps.clone()], "steps {steps:?} at {size} px");
    }
}

#[test]
fn epochs_hold_every_image_once_in_different_orders() {
    let order = |seed| {
        let batches =
            all(loader(48, Noise::default(), LoaderConfig { seed, ..config(2) }).batches(0, 12).unwrap());
        assert!(batches.iter().enumerate().all(|(step, batch)| batch.step == step as u64));
        assert!(batches.iter().all(|batch| batch.epoch == batch.step / 6));
        let ids: Vec<usize> = batches.into_iter().flat_map(|batch| batch.ids).collect();
        [ids[..48].to_vec(), ids[48..].to_vec()]
    };
    let [first, second] = order(5);
    for epoch in [&first, &second] {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..48));
    }
    assert_ne!(first, second, "epochs differ");
    assert_ne!(first, order(6)[0], "seeds differ");
}

/// Compares every row with a direct call of the augmentation.
fn check_rows(batches: &[Batch]) {
    let augment = AugmentConfig::default();
    for batch in batches {
        let n = batch.ids.len();
        assert_eq!(batch.pixels().len(), 2 * n * VIEW);
        for (row, pixels) in batch.pixels().chunks_exact(VIEW).enumerate() {
            let id = batch.ids[row % n];
            let image = image(id, 3);
            let key = Key { seed: 5, epoch: batch.epoch, image: id as u64, view: (row / n) as u64 };
            let mut expected = vec![0.0; VIEW];
            let params = augment.draw(key, image.width, image.height);
            apply(&image, &params, &augment, SIZE, &mut expected, &mut AugmentBuffers::default());
            assert!(pixels == expected, "step {} row {row}", batch.step);
        }
    }
}

#[test]
fn rows_i_and_i_plus_n_are_the_two_views_of_image_i() {
    let batches = all(loader(20, Noise::default(), config(3)).batches(0, 4).unwrap());
    check_rows(&batches);
    let (first, second) = batches[0].pixels().split_at(8 * VIEW);
    for (a, b) in first.chunks(VIEW).zip(second.chunks(VIEW)) {
        assert!(a != b, "the two views of an image differ");
    }
    let again = batches[2..].iter().flat_map(|batch| batch.ids.iter().zip(batch.pixels().chunks(VIEW)));
    let before: Vec<_> =
        batches[..2].iter().flat_map(|b| b.ids.iter().zip(b.pixels().chunks(VIEW))).collect();
    let twice: Vec<_> =
        again.filter_map(|(id, view)| Some((view, before.iter().find(|(old, _)| *old == id)?.1))).collect();
    assert!(!twice.is_empty() && twice.iter().all(|(new, old)| new != old), "the views of two epochs differ");
}

#[test]
fn failed_images_are_left_out_and_listed() {
    let source = Noise { bad: [3, 4, 17].into(), ..Noise::default() };
    let batches = all(loader(24, source, config(3)).batches(0, 6).unwrap());
    check_rows(&batches);
    for epoch in 0..2 {
        let of_epoch = batches.iter().filter(|batch| batch.epoch == epoch);
        let mut bad: Vec<usize> =
            of_epoch.clone().flat_map(|batch| batch.failed.iter().map(|(id, _)| *id)).collect();
        bad.sort_unstable();
        assert_eq!(bad, [3, 4, 17]);
        assert_eq!(of_epoch.map(|batch| batch.ids.len()).sum::<usize>(), 21);
    }
    let (_, reason) = batches.iter().find_map(|batch| batch.failed.first()).unwrap();
    assert!(reason.contains("bad on purpose"), "{reason}");
}

#[test]
fn too_many_failed_images_end_the_stream() {
    let bad: HashSet<usize> = [3, 4, 17].into();
    let stream = |max_bad_share| {
        let source = Noise { bad: bad.clone(), ..Noise::default() };
        loader(24, source, LoaderConfig { max_bad_share, ..config(2) }).batches(0, 30).unwrap()
    };
    assert_eq!(all(stream(3.0 / 24.0)).len(), 30, "the same image is counted once, however often it comes");
    let mut batches = stream(2.0 / 24.0);
    let mut named = HashSet::new();
    let error = loop {
        match batches.next().expect("an error comes before the end") {
            Ok(batch) => named.extend(batch.failed.iter().map(|(id, _)| *id)),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, DataError::TooManyBad { bad: 3, seen: 24, .. }), "{error}");
    named.extend(batches.failed_images().iter().map(|(id, _)| *id));
    assert_eq!(named, bad, "the images of the batch that failed are named too");
    assert!(batches.next().is_none());
}

#[test]
fn batches_of_fewer_than_two_images_are_errors() {
    let source = Noise { bad: (0..24).collect(), ..Noise::default() };
    let mut batches =
        loader(24, source, LoaderConfig { max_bad_share: 1.0, ..config(2) }).batches(0, 3).unwrap();
    let error = batches.next().unwrap().unwrap_err();
    assert!(matches!(error, DataError::EmptyBatch { step: 0, .. }), "{error}");
    assert_eq!(batches.failed_images().len(), 8);
    assert!(batches.next().is_none());
}

/// With views shuffled over the processes, a part may have second views of other parts' images, but no first view of its own.
#[test]
fn parts_without_an_anchor_are_errors() {
    let first = |bad: HashSet<usize>| {
        let source = Noise { bad, ..Noise::default() };
        let config = LoaderConfig { max_bad_share: 1.0, ..config(2) };
        let chunking = Chunking { images: 2, shuffle_views: true, passes: 1 };
        let part = loader(24, source, config).chunked(chunking).part(0, 4);
        part.batches(0, 1).unwrap().next().unwrap()
    };
    let whole = first(HashSet::new()).unwrap();
    assert_eq!((whole.ids.len(), whole.second_view_ids.len()), (2, 2));
    let error = first(whole.ids.iter().copied().collect()).unwrap_err();
    assert!(matches!(error, DataError::EmptyBatch { step: 0, .. }), "{error}");
}

#[test]
fn worker_panics_are_errors() {
    let source = Noise { panics: Some(11), ..Noise::default() };
    let results: Vec<_> = loader(24, source, config(2)).batches(0, 3).unwrap().collect();
    let lost = results.iter().filter(|result| matches!(result, Err(DataError::WorkerLost { .. })));
    assert_eq!(lost.count(), 1, "every image is decoded once per epoch");
    assert!(results.last().unwrap().is_err(), "nothing follows it");
}

#[test]
fn dropped_streams_end_their_workers() {
    let decoded = Arc::new(AtomicUsize::new(0));
    let source = Noise { decoded: Arc::clone(&decoded), ..Noise::default() };
    let mut batches = loader(80, source, config(2)).batches(0, 1_000_000).unwrap();
    batches.next().unwrap().unwrap();
    drop(batches);
    let at_drop = decoded.load(Ordering::SeqCst);
    // One received, `prefetch` in the channel, one waiting to be sent, one in progress.
    assert!((8..=8 * 5).contains(&at_drop), "{at_drop} images");
    assert_eq!(Arc::strong_count(&decoded), 1, "the workers hold the data no more");
}

#[test]
fn batches_larger_than_the_set_are_refused() {
    let result = Loader::new(dataset(7, Noise::default()), AugmentConfig::default(), config(1));
    let Err(error) = result else { panic!("8 images of 7 were accepted") };
    assert!(error.to_string().contains("train.batch = 8"), "{error}");
}

#[test]
fn eval_reader_keeps_the_order_and_lists_failed_images() {
    let source = || Noise { bad: [4].into(), ..Noise::default() };
    let wanted = [9, 2, 4, 0, 31, 2];
    let transform = TransformConfig::default().to(SIZE, 3);
    let one = EvalReader::new(&dataset(32, source()), &transform, 1).unwrap().read(&wanted);
    let three = EvalReader::new(&dataset(32, source()), &transform, 3).unwrap().read(&wanted);
    assert_eq!(one.ids, [9, 2, 0, 31, 2]);
    assert_eq!((&one.ids, &one.failed), (&three.ids, &three.failed));
    assert!(one.pixels == three.pixels && one.pixels.len() == 5 * VIEW);
    assert!(one.pixels[VIEW..2 * VIEW] == one.pixels[4 * VIEW..], "the same image gives the same view");
    assert!(one.pixels[..VIEW] != one.pixels[VIEW..2 * VIEW]);
    assert_eq!(one.failed.len(), 1);
    assert_eq!(one.failed[0].0, 4);
}

/// Training with labels uses the first of the two views of a contrastive run.
#[test]
fn one_view_is_the_first_of_two() {
    let batches = |views| {
        let config = LoaderConfig { views, ..config(2) };
        all(loader(24, Noise::default(), config).batches(0, 3).unwrap())
    };
    for (one, two) in batches(1).iter().zip(&batches(2)) {
        assert_eq!((one.ids.len(), one.pixels().len(), &one.ids), (8, 8 * VIEW, &two.ids));
        assert_eq!(one.pixels(), &two.pixels()[..8 * VIEW]);
    }
}

#[test]
fn subsets_renumber_images() {
    let source = Noise { bad: HashSet::from([4]), ..Noise::default() };
    let whole = dataset(10, source);
    let part = whole.subset(&[7, 2, 4]).subset(&[1, 2, 0]);
    let names: Vec<_> = part.samples().iter().map(|sample| sample.name.as_str()).collect();
    assert_eq!(names, ["0002", "0004", "0007"]);
    assert_eq!(part.decode(2).unwrap().data, image(7, 3).data);
    assert!(part.decode(1).is_err(), "the bad one is among them");
    assert_ne!(part.fingerprint(), whole.fingerprint());
    assert_eq!(whole.subset(&(0..10).collect::<Vec<_>>()).fingerprint(), whole.fingerprint());
}

#[test]
fn lists_name_images_in_full_or_by_their_last_component() {
    let names = ["a/1.png", "a/2.png", "b/2.png", "#odd.png"];
    let samples = names.map(|name| Sample { name: name.into(), label: None }).to_vec();
    let set = Dataset::from_source(samples, Vec::new(), 3, Box::new(Noise::default()));
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("list.txt");
    let listed = |text: &str| {
        fs_err::write(&list, text).unwrap();
        set.listed(&list).map_err(|error| error.to_string())
    };
    assert_eq!(listed("# two of them\nb/2.png\r\n\n1.png\nb/2.png\n"), Ok(vec![0, 2]));
    assert_eq!(listed("#odd.png"), Ok(vec![3]));
    for (text, reason) in
        [("2.png", "several"), ("c/1.png", "`c/1.png` is not an image"), ("# nothing", "names no image")]
    {
        assert!(listed(text).unwrap_err().contains(reason), "{text}");
    }
}
