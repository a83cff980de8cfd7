//! What the stored values of a set are, by a sample of its images: the basis of `data.range = "auto"`.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{Dataset, notes::list_counts};
use crate::{DataError, RangeChoice, ValueRange, decode::Raster};

/// Images that are sampled, spread evenly. The first number is for sets of 8-bit images, which have no range to measure.
const IMAGES: [usize; 2] = [8, 64];
/// Pixels of an image that are sampled.
const PIXELS: usize = 4096;
/// Share of the values at either end that lie outside of a measured range.
const TAIL: f64 = 0.001;
/// Of 16 bits' 65536 values; a set that uses this many in every channel keeps its full range, and so its colour balance.
const MUCH_OF_16_BITS: f64 = 32_768.0;
/// More than this share of the values in this many neighbouring levels of 256 is hardly an image.
const FEW_LEVELS: (f64, usize) = (0.95, 16);
/// More than this share of a channel's values outside of the range is worth a note.
const MUCH_CUT: f64 = 0.01;

/// Values of a channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChannelValues {
    /// Least value.
    pub lowest: f64,
    /// One in a thousand values is less.
    pub low: f64,
    /// One in a thousand values is greater.
    pub high: f64,
    /// Greatest value.
    pub highest: f64,
}

/// Values that are no measurements: NaN, infinite, or a file's no-data value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Images with any.
    pub images: usize,
    /// Their number.
    pub values: usize,
    /// Of so many.
    pub of: usize,
    /// Name of the first such image.
    pub first: String,
}

impl Missing {
    /// Counts those of one image.
    pub fn add(&mut self, name: &str, raster: &Raster) {
        let (values, of) = (raster.missing(), raster.len());
        let first = if values > 0 { name.to_owned() } else { String::new() };
        self.merge(Self { images: usize::from(values > 0), values, of, first });
    }

    fn merge(&mut self, other: Self) {
        if self.images == 0 {
            self.first = other.first;
        }
        self.images += other.images;
        self.values += other.values;
        self.of += other.of;
    }

    /// A sentence, where there are any among `looked_at` images.
    pub fn note(&self, looked_at: usize) -> Option<String> {
        let share = 100.0 * self.values as f64 / self.of.max(1) as f64;
        (self.images > 0).then(|| {
            format!(
                "{} of {looked_at} images hold NaN, infinite or no-data values ({share:.2} % of all values), which become 0; \
                 the first: `{}`",
                self.images, self.first
            )
        })
    }
}

/// A sample of the values of a set.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Images that were looked at and could be decoded.
    pub images: usize,
    /// Images by the type of their values, such as `uint16`.
    pub kinds: BTreeMap<&'static str, usize>,
    /// In the images that were looked at.
    pub missing: Missing,
    /// What of a file is not used, and in how many images.
    failed_images: BTreeMap<String, usize>,
    /// Sorted values of each channel.
    values: Vec<Vec<f64>>,
    /// Sampled values by their level over the full range.
    full_levels: Levels,
}

/// Values by level.
type Levels = Vec<u64>;

impl Dataset {
    /// Samples the values of the set.
    pub fn survey(&self) -> Survey {
        let first = self.survey_of(IMAGES[0]);
        if first.kinds.keys().all(|&kind| kind == "uint8") { first } else { self.survey_of(IMAGES[1]) }
    }

    /// Decodes image `index` as training does, and counts its missing values; the type of its values, and what of its file is
    /// not used or used in a way of its own.
    ///
    /// # Errors
    /// Those of [`Dataset::decode`].
    pub fn examine(
        &self,
        index: usize,
        missing: &mut Missing,
    ) -> Result<(&'static str, Option<String>), DataError> {
        let (raster, name) = (self.stored_values(index)?, &self.samples()[index].name);
        missing.add(name, &raster);
        let found = (raster.kind(), raster.note().map(str::to_owned));
        if self.source.recorded_range().is_none() {
            raster.into_image(name, self.channels(), &self.decoding().range)?;
        }
        Ok(found)
    }

    fn survey_of(&self, images: usize) -> Survey {
        let count = images.min(self.len());
        let indices: Vec<usize> = (0..count).map(|at| at * self.len() / count).collect();
        let looked = indices.par_iter().filter_map(|&index| {
            let raster = self.stored_values(index).ok()?;
            let pixels = raster.sample(PIXELS, self.channels()).ok()?;
            let name = &self.samples()[index].name;
            let mut missing = Missing::default();
            missing.add(name, &raster);
            Some((raster.kind(), raster.note().map(str::to_owned), missing, pixels))
        });
        let mut survey = Survey {
            values: vec![Vec::new(); self.channels()],
            full_levels: vec![0; 256],
            ..Survey::default()
        };
        for (kind, note, missing, pixels) in looked.collect::<Vec<_>>() {
            survey.add(kind, note, missing, &pixels);
        }
        survey.values.par_iter_mut().for_each(|values| values.sort_by(f64::total_cmp));
        survey
    }

    /// The set with `choice` resolved and applied, and the range; [`Dataset::notes`] then has what a user must know of it.
    ///
    /// # Errors
    /// Those of [`Dataset::scaled_to`].
    pub fn with_range(self, choice: &RangeChoice) -> Result<(Self, ValueRange), DataError> {
        let survey = self.survey();
        self.with_range_of(choice, &survey)
    }

    /// As [`Dataset::with_range`], by a survey of this set that was made before.
    ///
    /// # Errors
    /// Those of [`Dataset::scaled_to`].
    pub fn with_range_of(
        mut self,
        choice: &RangeChoice,
        survey: &Survey,
    ) -> Result<(Self, ValueRange), DataError> {
        let range = self.range_of(choice, survey);
        let notes = self.notes_on_values(survey, choice, &range);
        // Notes on labels stay the last ones.
        let at = self.notes.len() - self.label_notes;
        self.notes.splice(at..at, notes);
        Ok((self.scaled_to(&range)?, range))
    }

    fn notes_on_values(&self, survey: &Survey, choice: &RangeChoice, range: &ValueRange) -> Vec<String> {
        let is_scaled = self.source.recorded_range().is_some();
        let mut notes = survey.notes();
        if is_scaled {
            notes.extend(note_on_levels(&survey.full_levels));
        } else {
            if *choice == RangeChoice::Auto && *range != ValueRange::Full {
                let kinds: Vec<&str> = survey.kinds.keys().copied().collect();
                let (kinds, images) = (kinds.join(", "), survey.images);
                notes.push(format!("{kinds} values: data.range = {range}, measured on {images} images"));
            }
            notes.extend(survey.notes_on(range));
        }
        notes
    }
}

impl Survey {
    fn add(&mut self, kind: &'static str, note: Option<String>, missing: Missing, pixels: &[Vec<f64>]) {
        self.images += 1;
        *self.kinds.entry(kind).or_default() += 1;
        if let Some(note) = note {
            *self.failed_images.entry(note).or_default() += 1;
        }
        self.missing.merge(missing);
        let full = match kind {
            "uint8" => Some(1.0),
            "uint16" => Some(257.0),
            _ => None,
        };
        for pixel in pixels {
            for (values, &value) in self.values.iter_mut().zip(pixel).filter(|(_, value)| value.is_finite()) {
                values.push(value);
                if let Some(per_level) = full {
                    self.full_levels[level(value / per_level)] += 1;
                }
            }
        }
    }

    /// Values of each channel; none where all are missing.
    pub fn channels(&self) -> Vec<Option<ChannelValues>> {
        let of = |values: &Vec<f64>| {
            let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
            (!values.is_empty()).then(|| ChannelValues {
                lowest: at(0.0),
                low: at(TAIL),
                high: at(1.0 - TAIL),
                highest: at(1.0),
            })
        };
        self.values.iter().map(of).collect()
    }

    /// What `data.range = "auto"` stands for.
    pub fn range(&self) -> ValueRange {
        let channels = self.channels();
        let is_full_16_bits = || {
            let wide =
                |found: &Option<ChannelValues>| found.is_some_and(|f| f.high - f.low >= MUCH_OF_16_BITS);
            self.kinds.keys().all(|&kind| kind == "uint16") && channels.iter().all(wide)
        };
        if self.images == 0 || self.kinds.contains_key("uint8") || is_full_16_bits() {
            return ValueRange::Full;
        }
        let pair = |found: &Option<ChannelValues>| match found {
            Some(ChannelValues { low, high, .. }) if low < high => rounded_outward(*low, *high),
            Some(ChannelValues { low, .. }) => [*low, *low + 1.0],
            None => [0.0, 1.0],
        };
        ValueRange::PerChannel(channels.iter().map(pair).collect())
    }

    /// What was found shuffle_views from any range.
    fn notes(&self) -> Vec<String> {
        let failed_images = self.failed_images.iter();
        let mut notes: Vec<String> = failed_images
            .map(|(what, images)| format!("{images} of {} images: {what}", self.images))
            .collect();
        notes.extend(self.missing.note(self.images));
        if self.kinds.len() > 1 {
            let kinds = list_counts(&self.kinds, usize::MAX);
            notes.push(format!(
                "images hold values of several types ({kinds}); data.range sets one range for all"
            ));
        }
        notes
    }

    /// What `range` does to the values.
    fn notes_on(&self, range: &ValueRange) -> Vec<String> {
        let Some(pairs) = range.per_channel(self.values.len()) else {
            return note_on_levels(&self.full_levels).into_iter().collect();
        };
        let (mut notes, mut levels) = (Vec::new(), vec![0; 256]);
        for (channel, (values, [low, high])) in self.values.iter().zip(pairs).enumerate() {
            let outside = values.iter().filter(|&&value| value < low || value > high).count();
            let share = outside as f64 / values.len().max(1) as f64;
            if share > MUCH_CUT {
                let percent = 100.0 * share;
                notes.push(format!(
                    "{percent:.1} % of the values of channel {channel} lie outside of data.range and become its ends"
                ));
            }
            for value in values {
                levels[level((value - low) / (high - low) * 255.0)] += 1;
            }
        }
        notes.extend(note_on_levels(&levels));
        notes
    }
}

/// A cast of floats saturates.
fn level(value: f64) -> usize {
    usize::from((value + 0.5) as u8)
}

/// Four digits of the span, so that a range reads well; both ends move outward.
fn rounded_outward(low: f64, high: f64) -> [f64; 2] {
    let digits = 3 - (high - low).log10().floor() as i32;
    // A power of ten below 1 is not exact, so it is divided by.
    let scale = 10f64.powi(digits.abs());
    let (up, down) = if digits >= 0 { (scale, 1.0) } else { (1.0, scale) };
    [(low * up / down).floor() * down / up, (high * up / down).ceil() * down / up]
}

/// A sentence where nearly all values fall into a few neighbouring levels.
fn note_on_levels(levels: &Levels) -> Option<String> {
    let (share, width) = FEW_LEVELS;
    let all: u64 = levels.iter().sum();
    let (at, most) = levels
        .windows(width)
        .map(|window| window.iter().sum::<u64>())
        .enumerate()
        .max_by_key(|(_, sum)| *sum)?;
    (most as f64 > share * all as f64).then(|| {
        format!(
            "{:.1} % of the values fall into {width} of 256 levels ({at} to {}): the images have hardly any contrast; \
             data.range sets which values become 0 and 255",
            100.0 * most as f64 / all as f64,
            at + width - 1
        )
    })
}
