//! One HTML page on a run and a set, which needs neither a network nor another file: curves, views, map, neighbours, findings, facts.

mod evaluation; // stored results -> bars and table
mod facts; // run -> table
mod findings; // odd images, near-duplicates, label errors -> galleries
mod gallery; // rows of thumbnails
mod map; // places -> picture with thumbnails
mod page; // sections -> page
mod thumbnails; // images -> parts of one JPEG
mod training; // metrics -> curves and statements
mod views; // images -> originals and views

use std::{path::Path, sync::atomic::AtomicBool};

use simclr_data::output;

use crate::{
    ConfigError, EvalError,
    eval::features::{BadImage, ReadOptions},
    explore::{
        EmbeddedSet, ExploreOptions,
        findings::{self as find, Pair, Suspect},
        nearest::{self, Near},
        projection::{Projected, Projection},
    },
    train::{Observer, RunFolder},
};

/// Bytes that a page does not exceed.
pub const LIMIT: usize = 10_000_000;
/// Last line of every page.
const MARK: &str = "<!-- simclr report -->\n";
/// Pages of this module, the only kind of file that one replaces.
pub const PAGE: output::Kind = output::Kind {
    name: "a page of this command",
    is_earlier: |path| fs_err::read(path).is_ok_and(|page| page.ends_with(MARK.as_bytes())),
};

/// Classes, or images without labels, with an example.
const EXAMPLES: usize = 12;
/// Odd images.
const ODD: usize = 12;

/// Options of [`report`].
#[derive(Debug, Clone, PartialEq)]
pub struct ReportOptions {
    /// Which images are read, and how.
    pub explore: ExploreOptions,
    /// Neighbours of every image.
    pub k: usize,
    /// Least cosine of a near-duplicate.
    pub duplicates: f64,
    /// Least share of the neighbours that agree on another class than the label.
    pub agreement: f64,
    /// Images on the map at most.
    pub points: usize,
    /// How h becomes places on the map.
    pub map: Projection,
}

impl Default for ReportOptions {
    fn default() -> Self {
        let explore = ExploreOptions::default();
        Self { explore, k: 10, duplicates: 0.99, agreement: 0.8, points: 5000, map: Projection::Pca }
    }
}

impl ReportOptions {
    /// Checks the ranges of all values.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        let error = |key: &str, value: String, expected: &str| {
            Err(ConfigError::Value { key: key.into(), value, expected: expected.into() })
        };
        if self.k == 0 {
            return error("k", self.k.to_string(), "at least one neighbour");
        }
        if !(self.duplicates > 0.0 && self.duplicates <= 1.0) {
            return error("duplicates", self.duplicates.to_string(), "a cosine above 0 and up to 1");
        }
        if !(self.agreement > 0.5 && self.agreement <= 1.0) {
            return error("agreement", self.agreement.to_string(), "a share above 0.5 and up to 1");
        }
        Ok(())
    }
}

/// Result of [`report`].
#[derive(Debug)]
pub struct Report {
    /// The page.
    pub html: String,
    /// Images that were analysed, and images of the set.
    pub images: [usize; 2],
    /// Images on the map with a thumbnail.
    pub on_map: usize,
    /// Near-duplicates.
    pub duplicates: usize,
    /// Possible label errors; none without labels.
    pub suspects: Option<usize>,
    /// Images that could not be decoded.
    pub bad: Vec<BadImage>,
}

/// Everything that the page shows of the set.
struct Analysis<'a> {
    run: &'a RunFolder,
    data: &'a Path,
    options: &'a ReportOptions,
    set: EmbeddedSet,
    /// Of each row.
    near: Vec<Vec<Near>>,
    /// Of each row.
    places: Vec<[f64; 2]>,
    /// Shares of the variance of h along both axes of a linear map, in `[0, 1]`.
    variance: Option<[f64; 2]>,
    examples: Vec<usize>,
    odd: Vec<Near>,
    pairs: Vec<Pair>,
    suspects: Vec<Suspect>,
    /// Share of the labelled images with the class of most of their neighbours.
    agreement: Option<f64>,
}

impl Analysis<'_> {
    fn threads(&self) -> usize {
        ReadOptions::of(&self.set.encoder, 1, self.options.explore.threads).threads
    }
}

/// The page on the newest checkpoint of `run` and the set at `data`.
///
/// # Errors
/// Options out of range, no checkpoint, no readable image; see [`EvalError`].
pub fn report(
    run: &RunFolder,
    data: &Path,
    options: &ReportOptions,
    observer: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<Report, EvalError> {
    options.validate()?;
    let set = EmbeddedSet::open(run, data, &options.explore, observer, stop)?;
    observer.message(&format!("neighbours of {} images", set.members.len()));
    let near = nearest::of_each(&set.h, options.k);
    if options.map == Projection::Umap {
        observer.message("UMAP");
    }
    let mut projected = Projected::new(options.map, set.h.size()[1] as usize);
    projected.add(&set.h);
    let mut places = projected.places(options.explore.seed)?;
    let (places, variance) = (places.of_next(&set.h)?, places.variance());
    let (labels, seed) = (&set.labels, options.explore.seed);
    let analysis = Analysis {
        examples: find::examples(labels, EXAMPLES, seed),
        odd: find::odd(&near, ODD),
        pairs: find::duplicates(&near, options.duplicates),
        suspects: find::suspects(&near, labels, options.agreement),
        agreement: find::agreement(&near, labels),
        run,
        data,
        options,
        places,
        variance,
        near,
        set,
    };
    let (mut points, mut made) = (options.points, page::html(&analysis, options.points, observer)?);
    while made.0.len() > LIMIT && points > 0 {
        points /= 2;
        made = page::html(&analysis, points, observer)?;
    }
    let (html, on_map) = made;
    let labelled = analysis.agreement.is_some();
    Ok(Report {
        html,
        images: [analysis.set.members.len(), analysis.set.total],
        on_map,
        duplicates: analysis.pairs.len(),
        suspects: labelled.then_some(analysis.suspects.len()),
        bad: analysis.set.bad,
    })
}
