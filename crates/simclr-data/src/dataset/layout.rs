//! Relative paths to splits and classes, alike for folders and for tars of folders.
//!
//! `train/<class>/.../x.jpg` and `test/<class>/...` (also `val`, `validation`; also one level further down), or
//! `<class>/.../x.jpg` without splits, or images directly in the folder, without labels.

use std::{collections::BTreeSet, path::Path};

use super::{Sample, Split, class_names::ClassNames};
use crate::DataError;

/// Names of the folder of the test part, the first that exists counts (`val` and `validation` alike).
const TEST: [&str; 3] = ["test", "val", "validation"];

/// File name endings that may be images; what a file is, is told by its content when it is decoded.
const EXTENSIONS: [&str; 8] = ["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "jfif"];

/// Whether a path looks like an image and no part of it is hidden.
pub fn is_image(path: &str) -> bool {
    let extension = path.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    let visible = path.split('/').all(|part| !part.starts_with('.'));
    visible && extension.is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// The images of a split.
pub struct Arranged {
    /// Index into the paths, and sample.
    pub kept: Vec<(usize, Sample)>,
    /// Of all splits, sorted.
    pub classes: ClassNames,
    /// Two class folders of this split that are one class.
    twins: Option<[String; 2]>,
}

impl Arranged {
    /// Keeps the images whose index `is_kept`, as a split recognised by the names of shards.
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
    let depth = split_depth(&parts);
    let class_at = depth.map_or(0, |depth| depth + 1);
    // A class is a folder: the last part of a path is the file.
    let class = |parts: &Vec<&'_ str>| (parts.len() > class_at + 1).then(|| parts[class_at].to_owned());
    let spellings: BTreeSet<String> = parts.iter().filter_map(class).collect();
    let classes = ClassNames::of(spellings);
    let wanted = wanted_names(&parts, depth, split);
    let inside = |parts: &[&str]| match depth {
        None => split == Split::Train,
        Some(depth) => parts.get(depth).is_some_and(|part| wanted.contains(part)),
    };
    let (mut kept, mut used) = (Vec::new(), BTreeSet::new());
    for (index, parts) in parts.iter().enumerate().filter(|(_, parts)| inside(parts)) {
        let label = (parts.len() > class_at + 1).then(|| parts[class_at]).and_then(|name| {
            used.insert(name);
            classes.label(name)
        });
        kept.push((index, Sample { name: paths[index].clone(), label }));
    }
    let twins = classes.first_twins(used.into_iter());
    Arranged { kept, classes, twins }
}

/// Whether the paths lie in folders that are named as splits.
pub fn has_splits(paths: &[String]) -> bool {
    split_depth(&paths.iter().map(|path| path.split('/').collect()).collect::<Vec<_>>()).is_some()
}

/// At which depth the split folders stand, if they do: `train` together with a test folder, or alone. A folder `train`
/// among other folders is a class (COCO has one).
fn split_depth(parts: &[Vec<&str>]) -> Option<usize> {
    let folders = |depth: usize| {
        let inside = parts.iter().filter(move |parts| parts.len() > depth + 1);
        inside.map(move |parts| parts[depth]).collect::<BTreeSet<_>>()
    };
    let is_split = |depth: usize| {
        let found = folders(depth);
        found.contains("train") && (found.len() == 1 || TEST.iter().any(|name| found.contains(name)))
    };
    if is_split(0) {
        return Some(0);
    }
    (folders(0).len() == 1 && is_split(1)).then_some(1)
}

fn wanted_names(parts: &[Vec<&str>], depth: Option<usize>, split: Split) -> Vec<&'static str> {
    let exists = |name: &str| parts.iter().any(|parts| depth.and_then(|d| parts.get(d)) == Some(&name));
    match split {
        Split::Train => vec!["train"],
        Split::Test if exists(TEST[0]) => vec![TEST[0]],
        Split::Validation if !exists(TEST[0]) => Vec::new(),
        Split::Test | Split::Validation => TEST[1..].to_vec(),
    }
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
        let below_classes = ["cat/train/1.jpg", "cat/test/2.jpg", "dog/train/3.jpg"];
        assert_eq!(names(&below_classes, Split::Train).len(), 3);
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
