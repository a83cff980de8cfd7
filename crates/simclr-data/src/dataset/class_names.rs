//! Class names in label order, up to Unicode equivalence: file systems store an accented letter as one code point (NFC, usual on
//! Linux and Windows) or as letter and accent (NFD, in archives from macOS).

use std::{
    borrow::Cow,
    collections::{BTreeSet, HashMap, HashSet},
};

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// Class names in label order, and the label of every spelling of them.
pub struct ClassNames {
    pub names: Vec<String>,
    labels: HashMap<String, u32>,
    /// Pairs of the spelling that names a class and an equivalent one.
    twins: Vec<[String; 2]>,
}

impl ClassNames {
    /// From `spellings` in label order; of equivalent ones the first counts.
    pub fn of(spellings: impl IntoIterator<Item = String>) -> Self {
        let mut found = Self { names: Vec::new(), labels: HashMap::new(), twins: Vec::new() };
        for spelling in spellings {
            match found.label(&spelling) {
                Some(label) => found.twins.push([found.names[label as usize].clone(), spelling]),
                None => {
                    found.labels.insert(composed(&spelling).into_owned(), found.names.len() as u32);
                    found.names.push(spelling);
                }
            }
        }
        found
    }

    /// For numbered labels; equal names remain separate classes.
    pub fn numbered(names: Vec<String>) -> Self {
        let labels = names.iter().map(|name| composed(name).into_owned()).zip(0..).collect();
        Self { names, labels, twins: Vec::new() }
    }

    /// Sorted: numbers by value (`10` after `9`), then names.
    pub fn sorted(spellings: impl Iterator<Item = String>) -> Self {
        let number = |name: String| (name.parse().unwrap_or(i64::MAX), name);
        let spellings: BTreeSet<(i64, String)> = spellings.map(number).collect();
        Self::of(spellings.into_iter().map(|(_, name)| name))
    }

    pub fn label(&self, spelling: &str) -> Option<u32> {
        self.labels.get(&*composed(spelling)).copied()
    }

    /// Renames classes by `names`; labels stay the same.
    pub fn rename(&mut self, names: &HashMap<String, String>) {
        for name in &mut self.names {
            if let Some(new) = names.get(name) {
                name.clone_from(new);
            }
        }
    }

    /// A note for each pair of spellings of one class.
    pub fn notes(&self) -> Vec<String> {
        let note = |[one, other]: &[String; 2]| {
            let (a, b) = (escaped(one), escaped(other));
            format!("class `{one}` is spelled in two Unicode forms, {a} and {b}: one class")
        };
        self.twins.iter().map(note).collect()
    }

    /// The first pair of equivalent `spellings`, if any.
    pub fn first_twins<'a>(&self, spellings: impl Iterator<Item = &'a str>) -> Option<[String; 2]> {
        if self.twins.is_empty() {
            return None;
        }
        let spellings: HashSet<&str> = spellings.collect();
        let both = |twins: &&[String; 2]| twins.iter().all(|name| spellings.contains(&name[..]));
        self.twins.iter().find(both).map(|twins| [escaped(&twins[0]), escaped(&twins[1])])
    }
}

/// NFC.
fn composed(name: &str) -> Cow<'_, str> {
    match is_nfc_quick(name.chars()) {
        IsNormalized::Yes => name.into(),
        _ => name.nfc().collect::<String>().into(),
    }
}

/// Makes the difference of equivalent spellings visible.
fn escaped(name: &str) -> String {
    name.escape_default().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composed_and_decomposed_spellings_are_one_class() {
        let (composed, decomposed) = ("caf\u{e9}".to_owned(), "cafe\u{301}".to_owned());
        let classes = ClassNames::sorted([composed.clone(), decomposed.clone(), "bar".into()].into_iter());
        assert_eq!(classes.names.len(), 2);
        assert_eq!(classes.label(&composed), classes.label(&decomposed));
        assert!(classes.notes()[0].contains("caf\\u{e9}"), "{:?}", classes.notes());
        assert!(classes.first_twins([&composed[..], &decomposed].into_iter()).is_some());
        assert_eq!(classes.first_twins([&composed[..], "bar"].into_iter()), None);
    }

    #[test]
    fn numbers_are_in_numeric_order() {
        let classes = ClassNames::sorted(["10", "9", "b"].map(str::to_owned).into_iter());
        assert_eq!(classes.names, ["9", "10", "b"]);
        assert!(classes.notes().is_empty());
    }
}
