//! Splits and classes from relative paths, for folders and for tars of folders.
//!
//! `train/<class>/.../x.jpg` and `test/<class>/...`, or `<class>/train/x.jpg` and `<class>/test/x.jpg`, by any of the names in
//! `splits`; or `<class>/.../x.jpg` without splits; or images directly in the folder, without labels. Folders that hold only one
//! of these layouts are skipped.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{Sample, Split, class_names::ClassNames, splits::Role};
use crate::DataError;

/// Extensions of files that may be images; the decoder goes by the content.
const EXTENSIONS: [&str; 13] =
    ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "jfif", "jpe", "gif", "ppm", "pgm", "pnm"];

/// By the extension of a path without hidden components.
pub fn is_image(path: &str) -> bool {
    is_visible(path) && has_image_extension(path)
}

/// By the extension of a path.
pub fn has_image_extension(path: &str) -> bool {
    let extension = path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// Whether no component of a path is hidden.
pub fn is_visible(path: &str) -> bool {
    path.split('/').all(|part| !part.starts_with('.'))
}

pub struct Arranged {
    /// Index into the paths, and sample.
    pub kept: Vec<(usize, Sample)>,
    /// Of all splits, sorted.
    pub classes: ClassNames,
    /// Two class folders of this split with Unicode-equivalent names.
    twins: Option<[String; 2]>,
    /// See `Dataset::notes`; for the training split only.
    pub notes: Vec<String>,
}

impl Arranged {
    /// Keeps the images with an index that `is_kept`, for splits by the names of shards.
    pub fn retain(&mut self, is_kept: impl Fn(usize) -> bool) {
        self.kept.retain(|(index, _)| is_kept(*index));
        // The two folders may be in different splits now; a note lists them in any case.
        self.twins = None;
    }

    /// # Errors
    /// Two class folders with Unicode-equivalent names below `root`.
    pub fn checked(self, root: &Path) -> Result<Self, DataError> {
        let Some([one, other]) = &self.twins else { return Ok(self) };
        let reason = format!("two class folders have one name in two Unicode forms: `{one}` and `{other}`");
        Err(DataError::format(root, reason))
    }
}

pub fn arrange(paths: &[String], split: Split) -> Arranged {
    let parts: Vec<Vec<&str>> = paths.iter().map(|path| path.split('/').collect()).collect();
    let Layout { split_at, class_at, around } = Layout::of(&parts);
    let roles: Vec<Option<Role>> = parts.iter().map(|parts| role(parts, split_at?)).collect();
    // The last component is the file, so that a class needs another one. Unlabelled parts have no classes.
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
    let mut kept = Vec::new();
    let mut used = BTreeSet::new();
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

/// Depths of the path components that denote the split and the class.
struct Layout {
    split_at: Option<usize>,
    class_at: usize,
    /// A note if the only folder of the set has the name of a split.
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

/// A training part alone, or with a test or validation part. A folder `train` among other folders is a class (as in COCO).
fn are_parts(folders: &BTreeSet<&str>) -> bool {
    let roles: Vec<_> = folders.iter().map(|name| Role::of_folder(name)).collect();
    let has_others = roles.iter().flatten().any(|role| *role != Role::Train);
    roles.contains(&Some(Role::Train)) && (folders.len() == 1 || has_others)
}

/// By the name of the folder at depth `at`.
fn role(parts: &[&str], at: usize) -> Option<Role> {
    (parts.len() > at + 1).then(|| Role::of_folder(parts[at]))?
}

/// A note on images outside the parts.
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
    fn val_next_to_test_is_the_validation_split() {
        let paths = ["train/a/1.png", "val/a/2.png", "test/a/3.png"];
        assert_eq!(names(&paths, Split::Test), [("test/a/3.png".into(), Some(0))]);
        assert_eq!(names(&paths, Split::Validation), [("val/a/2.png".into(), Some(0))]);
        assert!(names(&paths[..2], Split::Validation).is_empty(), "then it is the test part");
        assert!(names(&["a/1.png"], Split::Validation).is_empty());
    }

    #[test]
    fn sets_without_splits_are_training_splits_and_flat_ones_have_no_labels() {
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
    fn folders_around_the_set_are_skipped() {
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
    fn unlabelled_parts_have_no_classes() {
        let paths = ["train/a/1.png", "test/a/2.png", "unlabeled/x/3.png", "unlabeled/4.png"];
        let found = names(&paths, Split::Unlabelled);
        assert_eq!(found, [("unlabeled/x/3.png".into(), None), ("unlabeled/4.png".into(), None)]);
        assert_eq!(names(&paths, Split::Train), [("train/a/1.png".into(), Some(0))]);
        assert_eq!(names(&["cat/1.png", "unlabeled/2.png"], Split::Train).len(), 2, "a class among others");
    }

    #[test]
    fn unused_images_and_renamed_splits_are_noted() {
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
    fn classes_are_numbered_over_all_splits() {
        let paths = ["train/a/1.png", "train/b/1.png", "test/b/2.png"];
        assert_eq!(names(&paths, Split::Test), [("test/b/2.png".into(), Some(1))]);
    }

    #[test]
    fn hidden_files_and_other_extensions_are_not_images() {
        assert!(is_image("a/b.JPG") && is_image("x.tiff"));
        assert!(
            !is_image(".x.jpg") && !is_image("a/.hidden/x.jpg") && !is_image("x.txt") && !is_image("jpg")
        );
    }
}
