//! Lists within notes.

use std::fmt::Display;

/// "`a`, `b`, ...": the first `max` of `names`.
pub(super) fn list_names<T: Display>(
    names: impl IntoIterator<Item = T, IntoIter: ExactSizeIterator>,
    max: usize,
) -> String {
    list(names.into_iter().map(|name| format!("`{name}`")), max)
}

/// "png 3, jpg 1, ...": the first `max` of `counts`.
pub fn list_counts<T: Display, N: Display>(
    counts: impl IntoIterator<Item = (T, N), IntoIter: ExactSizeIterator>,
    max: usize,
) -> String {
    list(counts.into_iter().map(|(name, count)| format!("{name} {count}")), max)
}

fn list(items: impl ExactSizeIterator<Item = String>, max: usize) -> String {
    let more = if items.len() > max { ", ..." } else { "" };
    items.take(max).collect::<Vec<_>>().join(", ") + more
}
