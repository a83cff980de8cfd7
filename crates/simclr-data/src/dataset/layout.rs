//! Relative paths to splits and classes, alike for folders and for tars of folders.
//!
//! `train/<class>/.../x.jpg` and `test/<class>/...`, or `<class>/train/x.jpg` and `<class>/test/x.jpg`, by any of the names in
//! `splits`; or `<class>/.../x.jpg` without splits; or images directly in the folder, without labels. Folders around all of
//! this, one in the other, are passed through.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{Sample, Split, class_names::ClassNames, splits::Role};
use crate::DataError;

/// File name endings that may be images; what a file is, is told by its content when it is decoded.
const EXTENSIONS: [&str; 13] =
    ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "jfif", "jpe", "gif", "ppm", "pgm", "pnm"];

/// Whether a path looks like an image and no part of it is hidden.
pub fn is_image(path: &str) -> bool {
    let extension = path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    is_visible(path) && extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// Whether no part of a path is hidden.
pub fn is_visible(path: &str) -> bool {
    path.split('/').all(|part| !part.starts_with('.'))
}

/// The images of a split.
pub struct Arranged {
    /// Index into the paths, and sample.
    pub kept: Vec<(usize, Sample)>,
    /// Of all splits, sorted.
    pub classes: ClassNames,
    /// Two class folders of this split that are one class.
    twins: Option<[String; 2]>,
    /// See `Dataset::notes`; of the training part.
    pub notes: Vec<String>,
}

impl Arranged {
    /// Keeps the images with an index that `is_kept`, as a split recognised by the names of shards.
    pub fn retain(&mut self, is_kept: impl Fn(usize) -> bool) {
        self.kept.retain(|(index, _)| is_kept(*index));
        // They may be in two splits; a note names them in any case.
        self.twins = None;
    }

    /// Refuses two class folders with one name below `root`.
    pub fn checked(self, root: &Path) -> Result<Self, DataError> {
        let Some([one, other]) = &self.twins else { return Ok(self) };
        let reason = format!("two class folders have one name in two Unicode forms: `{one}` and `{other}`");
        Err(DataError::Format { path: root.to_owned(), reason })
    }
}

/// The images of `split` among `paths`.
pub fn arrange(paths: &[String], split: Split) -> Arranged {
    let parts: Vec<Vec<&str>> = paths.iter().map(|path| path.split('/').collect()).collect();
    let Layout { split_at, class_at, around } = Layout::of(&parts);
    let roles: Vec<Option<Role>> = parts.iter().map(|parts| role(parts, split_at?)).collect();
    // A class is a folder: the last part of a path is the file. Folders outside of the labelled parts are no classes.
    let has_classes =
        |role: &Option<Role>| split_at.is_none() || role.is_some_and(|role| role != Role::Unlabelled);
    let class = |(parts, role): (&Vec<&str>, &Option<Role>)| {
        (parts.len() > class_at + 1 && has_classes(role)).then(|| parts[class_at].to_owned())
    };
    let classes = ClassNames::of(parts.iter().zip(&roles).filter_map(class).collect::<BTreeSet<String>>());
    let has_test = roles.contains(&Some(Role::Test));
    let inside = |role: &Option<Role>| match split_at {
        None => split == Split::Train,
        Some(_) => role.is_some_and(|role| role.is(split, has_test)),
    };
    let (mut kept, mut used) = (Vec::new(), BTreeSet::new());
    for (index, (parts, role)) in parts.iter().zip(&roles).enumerate().filter(|(_, (_, role))| inside(role)) {
        let class = (parts.len() > class_at + 1 && has_classes(role)).then(|| parts[class_at]);
        let label = class.and_then(|name| {
            used.insert(name);
            classes.label(name)
        });
        kept.push((index, Sample { name: paths[index].clone(), label }));
    }
    let twins = classes.first_twins(used.into_iter());
    let outside = split_at.and_then(|at| note_on_outside(&parts, &roles, at));
    let notes = if split == Split::Train { outside.into_iter().chain(around).collect() } else { Vec::new() };
    Arranged { kept, classes, twins, notes }
}

/// Whether the paths lie in folders that are named as splits.
pub fn has_splits(paths: &[String]) -> bool {
    Layout::of(&paths.iter().map(|path| path.split('/').collect()).collect::<Vec<_>>()).split_at.is_some()
}

/// At which depth a path names its split and its class.
struct Layout {
    split_at: Option<usize>,
    class_at: usize,
    /// A sentence where the only folder of the set is called as a part.
    around: Option<String>,
}

impl Layout {
    fn of(parts: &[Vec<&str>]) -> Self {
        let folders = |depth: usize| {
            let inside = parts.iter().filter(move |parts| parts.len() > depth + 1);
            inside.map(move |parts| parts[depth]).collect::<BTreeSet<_>>()
        };
        let mut depth = 0;
        loop {
            let here = folders(depth);
            if are_parts(&here) {
                return Self { split_at: Some(depth), class_at: depth + 1, around: None };
            }
            let all_deeper = parts.iter().all(|parts| parts.len() > depth + 2);
            let below = folders(depth + 1);
            let only_parts = below.iter().all(|name| Role::of_folder(name).is_some());
            if here.len() > 1 && all_deeper && only_parts && are_parts(&below) {
                return Self { split_at: Some(depth + 1), class_at: depth, around: None };
            }
            let only = here.first().filter(|_| here.len() == 1);
            if let Some(name) = only.filter(|name| Role::of_folder(name).is_some()) {
                let note = format!("the only part of the set is called `{name}`: it is the training part");
                return Self { split_at: None, class_at: depth + 1, around: Some(note) };
            }
            if only.is_none() || !all_deeper && !are_parts(&below) {
                return Self { split_at: None, class_at: depth, around: None };
            }
            depth += 1;
        }
    }
}

/// A training part with a test or validation part, or alone. A folder `train` among other folders is a class (COCO has one).
fn are_parts(folders: &BTreeSet<&str>) -> bool {
    let roles: Vec<_> = folders.iter().map(|name| Role::of_folder(name)).collect();
    let judged = roles.iter().flatten().any(|role| *role != Role::Train);
    roles.contains(&Some(Role::Train)) && (folders.len() == 1 || judged)
}

/// By the folder at depth `at`.
fn role(parts: &[&str], at: usize) -> Option<Role> {
    (parts.len() > at + 1).then(|| Role::of_folder(parts[at]))?
}

/// A sentence on images outside of the parts.
fn note_on_outside(parts: &[Vec<&str>], roles: &[Option<Role>], at: usize) -> Option<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for (parts, _) in parts.iter().zip(roles).filter(|(_, role)| role.is_none()) {
        let place = if parts.len() > at + 1 { format!("in `{}`", parts[at]) } else { "in no folder".into() };
        *counts.entry(place).or_default() += 1;
    }
    let total: usize = counts.values().sum();
    let listed: Vec<_> = counts.iter().map(|(place, count)| format!("{count} {place}")).collect();
    (total > 0).then(|| {
        format!("{total} images lie outside of the parts of the set and are not used: {}", listed.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&str], split: Split) -> Vec<(String, Option<u32>)> {
        let paths: Vec<_> = paths.iter().map(|&path| path.to_owned()).collect();
        arrange(&paths, split).kept.into_iter().map(|(_, sample)| (sample.name, sample.label)).collect()
    }

    #[test]
    fn splits_and_classes_by_folder() {
        let paths = ["test/cat/1.jpg", "train/ant/1.jpg", "train/cat/deep/2.jpg"];
        assert_eq!(
            names(&paths, Split::Train),
            [("train/ant/1.jpg".into(), Some(0)), ("train/cat/deep/2.jpg".into(), Some(1))]
        );
        assert_eq!(names(&paths, Split::Test), [("test/cat/1.jpg".into(), Some(1))]);
    }

    #[test]
    fn one_folder_above_the_splits_and_val_for_test() {
        let paths = ["set/train/a/1.png", "set/val/a/2.png"];
        assert_eq!(names(&paths, Split::Train), [("set/train/a/1.png".into(), Some(0))]);
        assert_eq!(names(&paths, Split::Test), [("set/val/a/2.png".into(), Some(0))]);
    }

    #[test]
    fn val_beside_test_is_the_part_to_choose_by() {
        let paths = ["train/a/1.png", "val/a/2.png", "test/a/3.png"];
        assert_eq!(names(&paths, Split::Test), [("test/a/3.png".into(), Some(0))]);
        assert_eq!(names(&paths, Split::Validation), [("val/a/2.png".into(), Some(0))]);
        assert!(names(&paths[..2], Split::Validation).is_empty(), "then it is the test part");
        assert!(names(&["a/1.png"], Split::Validation).is_empty());
    }

    #[test]
    fn without_splits_all_is_training_and_flat_has_no_labels() {
        assert_eq!(
            names(&["1.jpg", "2.jpg"], Split::Train),
            [("1.jpg".into(), None), ("2.jpg".into(), None)]
        );
        assert!(names(&["1.jpg"], Split::Test).is_empty());
        assert_eq!(names(&["b/1.jpg", "a/1.jpg"], Split::Train)[0].1, Some(1));
    }

    #[test]
    fn a_class_may_be_called_train() {
        let paths = ["car/1.jpg", "train/2.jpg"];
        assert_eq!(
            names(&paths, Split::Train),
            [("car/1.jpg".into(), Some(0)), ("train/2.jpg".into(), Some(1))]
        );
        assert!(names(&paths, Split::Test).is_empty());
    }

    #[test]
    fn splits_below_classes() {
        let paths = ["cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg"];
        assert_eq!(
            names(&paths, Split::Train),
            [("cat/train/1.jpg".into(), Some(0)), ("dog/train/3.jpg".into(), Some(1))]
        );
        assert_eq!(names(&paths, Split::Test), [("cat/test/2.jpg".into(), Some(0))]);
        let a_class_among_others = ["cat/train/1.jpg", "cat/test/2.jpg", "dog/3.jpg"];
        assert_eq!(names(&a_class_among_others, Split::Train).len(), 3);
    }

    #[test]
    fn folders_around_the_set_are_passed_through() {
        let deep = ["archive/data/Train/a/1.png", "archive/data/Valid/a/2.png", "archive/data/Train/b/3.png"];
        assert_eq!(
            names(&deep, Split::Train),
            [("archive/data/Train/a/1.png".into(), Some(0)), ("archive/data/Train/b/3.png".into(), Some(1))]
        );
        assert_eq!(names(&deep, Split::Test).len(), 1);
        let wrapped = ["photos/a/1.png", "photos/b/2.png"];
        assert_eq!(names(&wrapped, Split::Train)[1], ("photos/b/2.png".into(), Some(1)));
        let one_class = ["photos/1.png", "photos/2.png"];
        assert_eq!(names(&one_class, Split::Train)[1], ("photos/2.png".into(), Some(0)));
    }

    #[test]
    fn an_unlabelled_part_has_no_classes() {
        let paths = ["train/a/1.png", "test/a/2.png", "unlabeled/x/3.png", "unlabeled/4.png"];
        let found = names(&paths, Split::Unlabelled);
        assert_eq!(found, [("unlabeled/x/3.png".into(), None), ("unlabeled/4.png".into(), None)]);
        assert_eq!(names(&paths, Split::Train), [("train/a/1.png".into(), Some(0))]);
        assert_eq!(names(&["cat/1.png", "unlabeled/2.png"], Split::Train).len(), 2, "a class among others");
    }

    #[test]
    fn what_is_decided_without_being_asked_is_noted() {
        let notes = |paths: &[&str]| {
            let paths: Vec<_> = paths.iter().map(|&path| path.to_owned()).collect();
            arrange(&paths, Split::Train).notes
        };
        let outside = notes(&["train/a/1.png", "test/a/2.png", "extra/3.png", "extra/4.png", "5.png"]);
        assert_eq!(
            outside,
            ["3 images lie outside of the parts of the set and are not used: 2 in `extra`, 1 in no folder"]
        );
        let only = ["test/a/1.png", "test/b/2.png"];
        assert_eq!(names(&only, Split::Train)[1], ("test/b/2.png".into(), Some(1)));
        assert_eq!(notes(&only), ["the only part of the set is called `test`: it is the training part"]);
        assert_eq!(names(&["val/1.png"], Split::Train), [("val/1.png".into(), None)]);
        assert!(notes(&["train/a/1.png", "test/a/2.png"]).is_empty());
    }

    #[test]
    fn a_class_that_only_the_training_part_has_keeps_its_place() {
        let paths = ["train/a/1.png", "train/b/1.png", "test/b/2.png"];
        assert_eq!(names(&paths, Split::Test), [("test/b/2.png".into(), Some(1))]);
    }

    #[test]
    fn hidden_files_and_other_endings_are_no_images() {
        assert!(is_image("a/b.JPG") && is_image("x.tiff"));
        assert!(
            !is_image(".x.jpg") && !is_image("a/.hidden/x.jpg") && !is_image("x.txt") && !is_image("jpg")
        );
    }
}
