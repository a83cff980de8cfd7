//! Neighbours of single images in a set.

use std::path::{Path, PathBuf};

use serde::Serialize;
use simclr_data::{Dataset, dataset};
use tch::Tensor;

use super::{
    embedded_set::EmbeddedSet,
    nearest::{Near, of_queries, without},
};
use crate::{
    EvalError,
    eval::features::{ReadOptions, features},
};

/// An image and its neighbours.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Query {
    /// As given.
    pub query: String,
    /// Its name in the set, if it is a member, which is then left out of its neighbours.
    pub member: Option<String>,
    /// Nearest first.
    pub neighbours: Vec<Found>,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// Name in the set.
    pub name: String,
    /// Part of the set.
    pub part: &'static str,
    /// Class, if it has a label.
    pub class: Option<String>,
    /// Cosine of h.
    pub similarity: f64,
}

/// The `k` images of `set`, which was opened from `data`, nearest to each of `queries`: files, inside or outside of the set, or names of
/// images of the set.
///
/// # Errors
/// A query that is neither, or a file that cannot be decoded.
pub fn neighbours(
    set: &EmbeddedSet,
    data: &Path,
    queries: &[PathBuf],
    k: usize,
    options: (usize, usize),
) -> Result<Vec<Query>, EvalError> {
    let members: Vec<Option<usize>> = queries.iter().map(|query| member(set, data, query)).collect();
    let outside = queries.iter().zip(&members).filter(|(_, member)| member.is_none());
    let outside: Vec<PathBuf> = outside.map(|(query, _)| query.clone()).collect();
    let mut of_files = embedded(set, &outside, options)?.into_iter();
    let rows: Option<Vec<Tensor>> = members
        .iter()
        .map(|member| member.map_or_else(|| of_files.next(), |row| Some(set.h.get(row as i64))))
        .collect();
    let rows = rows.filter(|rows| !rows.is_empty()).ok_or(EvalError::NoImages)?;
    let near = of_queries(&set.h, &Tensor::stack(&rows, 0), k + 1);
    let one = |((query, member), near): ((&PathBuf, &Option<usize>), Vec<Near>)| Query {
        query: query.display().to_string(),
        member: member.map(|row| set.name(row).to_owned()),
        neighbours: without(near, member.unwrap_or(usize::MAX), k)
            .into_iter()
            .map(|near| found(set, near))
            .collect(),
    };
    Ok(queries.iter().zip(&members).zip(near).map(one).collect())
}

fn found(set: &EmbeddedSet, (row, similarity): Near) -> Found {
    let class = set.class(row).map(str::to_owned);
    Found { name: set.name(row).to_owned(), part: set.split(row).name(), class, similarity }
}

/// The row of an image of the set, given by its file or by its name.
fn member(set: &EmbeddedSet, data: &Path, query: &Path) -> Option<usize> {
    let mut rows = 0..set.members.len();
    if !query.exists() {
        return rows.find(|&row| Path::new(set.name(row)) == query);
    }
    let name = query.file_name()?.to_string_lossy().into_owned();
    let [files, sources] = [vec![query.to_owned()], dataset::sources_of(data)].map(|paths| both(&paths));
    let is_file = |own: &str| files.iter().any(|file| sources.iter().any(|source| holds(source, own, file)));
    rows.find(|&row| set.name(row).ends_with(&name) && is_file(set.name(row)))
}

/// Each path as written and with links resolved, absolute.
fn both(paths: &[PathBuf]) -> Vec<PathBuf> {
    let absolute = paths.iter().filter_map(|path| std::path::absolute(path).ok());
    absolute.chain(paths.iter().filter_map(|path| fs_err::canonicalize(path).ok())).collect()
}

/// Whether `file` is the image `own` of a source: names are relative to a folder, or begin with its name where there are several sources;
/// the sources may also be the files.
fn holds(source: &Path, own: &str, file: &Path) -> bool {
    if source.is_file() {
        return source == file && file.ends_with(own);
    }
    let among_several =
        source.parent().filter(|_| source.file_name().is_some_and(|name| Path::new(own).starts_with(name)));
    source.join(own) == file || among_several.is_some_and(|parent| parent.join(own) == file)
}

/// h of single files, each `[F]`.
fn embedded(
    set: &EmbeddedSet,
    files: &[PathBuf],
    (batch, threads): (usize, usize),
) -> Result<Vec<Tensor>, EvalError> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    if let Some(missing) = files.iter().find(|file| !file.is_file()) {
        let reason = "no such file, and no image of the set has this name".into();
        return Err(EvalError::File { path: missing.clone(), reason });
    }
    let read = ReadOptions { max_bad_share: 0.0, ..ReadOptions::of(&set.encoder, batch, threads) };
    let opened = Dataset::of_files(files, &set.encoder.decoding())?;
    let indices: Vec<usize> = (0..files.len()).collect();
    // For an error that names the query, in place of one on the share of damaged images in a set.
    indices.iter().try_for_each(|&row| opened.decode(row).map(drop))?;
    let found = features(&set.encoder, &opened, &indices, &read, &mut |_, _| {})?;
    Ok((0..files.len() as i64).map(|row| found.features[0].get(row)).collect())
}
