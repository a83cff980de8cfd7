//! Splits, and the names of folders and shards that denote them in all formats.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::notes::list_names;

/// A split of a data set, stored in folders or files with one of the names below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// The training split; the whole set if it has no splits.
    Train,
    /// The test split (`test`, `t10k-`, `test_batch`; `val` or `validation` if there is no other).
    Test,
    /// The hold-out split for model selection (`val`, `validation`), if there is a test split as well.
    Validation,
    /// Further images for pretraining (`unlabeled`, `unlabelled`, `unsupervised`). Its folders are not classes.
    Unlabelled,
}

impl Split {
    /// All splits, in the order in which they are listed.
    pub const ALL: [Self; 4] = [Self::Train, Self::Test, Self::Validation, Self::Unlabelled];

    /// Spelling in configurations and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Validation => "validation",
            Self::Unlabelled => "unlabelled",
        }
    }
}

impl FromStr for Split {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|split| split.name() == text);
        found.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// The split that a folder's or shard's name denotes. Whether `Validation` is the test split depends on the whole set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Train,
    Test,
    Validation,
    Unlabelled,
}

const NAMES: [(&str, Role); 13] = [
    ("train", Role::Train),
    ("training", Role::Train),
    ("test", Role::Test),
    ("testing", Role::Test),
    ("val", Role::Validation),
    ("valid", Role::Validation),
    ("validation", Role::Validation),
    ("dev", Role::Validation),
    ("eval", Role::Validation),
    ("evaluation", Role::Validation),
    ("unlabeled", Role::Unlabelled),
    ("unlabelled", Role::Unlabelled),
    ("unsupervised", Role::Unlabelled),
];

/// Optional endings of a name: `test_set`, `train-images`.
const ENDINGS: [&str; 4] = ["set", "images", "data", "split"];
const SEPARATORS: [char; 4] = ['_', '-', ' ', '.'];

impl Role {
    /// By the name of a folder, in any case, with or without an ending and a number: `Training`, `test_set`, `val2017`.
    pub fn of_folder(name: &str) -> Option<Self> {
        let name = name.to_lowercase();
        let word = name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches(SEPARATORS);
        let bare = ENDINGS.iter().find_map(|ending| word.strip_suffix(ending)).unwrap_or(word);
        Self::of_word(bare.trim_end_matches(SEPARATORS))
    }

    /// By the last word in a shard's name that denotes a split: `imagenet1k-train-0000.tar`.
    pub fn of_shard(path: &Path) -> Option<Self> {
        let name = path.file_stem()?.to_string_lossy().to_lowercase();
        let mut words = name.split(|c: char| !c.is_alphabetic()).rev();
        words.find_map(|word| Self::of_word(word.strip_suffix("set").unwrap_or(word)))
    }

    fn of_word(word: &str) -> Option<Self> {
        NAMES.iter().find(|(name, _)| *name == word).map(|(_, role)| *role)
    }

    /// Whether a part with this role belongs to `split`. A validation part is the test split of a set without another one.
    pub fn is(self, split: Split, set_has_test: bool) -> bool {
        match split {
            Split::Train => self == Self::Train,
            Split::Unlabelled => self == Self::Unlabelled,
            Split::Test if set_has_test => self == Self::Test,
            Split::Validation if !set_has_test => false,
            Split::Test | Split::Validation => self == Self::Validation,
        }
    }
}

/// Whether the names of shards denote splits: at least one is a training shard.
pub fn have_parts(files: &[PathBuf]) -> bool {
    files.iter().any(|file| Role::of_shard(file) == Some(Role::Train))
}

/// The shards of a split. Unless a name denotes the training split, all shards belong to it.
pub fn shards_of(files: &[PathBuf], split: Split) -> Vec<PathBuf> {
    let roles: Vec<Option<Role>> = files.iter().map(|file| Role::of_shard(file)).collect();
    if !have_parts(files) {
        return if split == Split::Train { files.to_vec() } else { Vec::new() };
    }
    let has_test = roles.contains(&Some(Role::Test));
    let belongs = |role: &Option<Role>| role.is_some_and(|role| role.is(split, has_test));
    files.iter().zip(&roles).filter(|(_, role)| belongs(role)).map(|(file, _)| file.clone()).collect()
}

/// A note on shards without a split's name next to shards with one.
pub fn note_on_shards(files: &[PathBuf]) -> Option<String> {
    const NAMED: usize = 5;
    let others: Vec<_> = files.iter().filter(|file| Role::of_shard(file).is_none()).collect();
    if !have_parts(files) || others.is_empty() {
        return None;
    }
    let names = others.iter().map(|file| file.file_name().unwrap_or_default().to_string_lossy());
    Some(format!(
        "{} files are not read, for their names belong to no part of the set: {}",
        others.len(),
        list_names(names, NAMED)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_in_any_case_with_endings_and_numbers() {
        for name in ["train", "Train", "TRAINING", "training_set", "train2017", "train-images", "trainset"] {
            assert_eq!(Role::of_folder(name), Some(Role::Train), "{name}");
        }
        for name in ["test", "Testing", "test_set", "TEST 2"] {
            assert_eq!(Role::of_folder(name), Some(Role::Test), "{name}");
        }
        for name in ["val", "valid", "Validation", "dev", "eval", "val2017"] {
            assert_eq!(Role::of_folder(name), Some(Role::Validation), "{name}");
        }
        for name in ["trains", "dataset", "images", "set", "trainval", "2017", "", "contest", "unlabel"] {
            assert_eq!(Role::of_folder(name), None, "{name}");
        }
    }

    #[test]
    fn shards_by_a_word_anywhere_in_the_name() {
        let files = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let some = files(&["imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar", "notes.tar"]);
        assert_eq!(shards_of(&some, Split::Train), some[..1]);
        assert_eq!(shards_of(&some, Split::Test), some[1..2]);
        assert!(shards_of(&some, Split::Validation).is_empty());
        assert!(note_on_shards(&some).unwrap().contains("`notes.tar`"));
        let three = files(&["Train.parquet", "set/cifar-test.parquet", "cifar_dev_1.parquet"]);
        assert_eq!(shards_of(&three, Split::Test), three[1..2]);
        assert_eq!(shards_of(&three, Split::Validation), three[2..]);
        assert_eq!(note_on_shards(&three), None);
        let plain = files(&["a.tar", "contest.tar"]);
        assert_eq!(shards_of(&plain, Split::Train), plain);
        assert!(shards_of(&plain, Split::Test).is_empty() && note_on_shards(&plain).is_none());
    }
}
