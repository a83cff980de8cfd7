//! Statistics of the stored values of a set, on a sample of its images: the basis of `data.range = "auto"`.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::{Dataset, notes::list_counts};
use crate::{DataError, RangeChoice, ValueRange, decode::Raster};

/// Number of sampled images: for sets of 8-bit images, which need no range, and for others.
const IMAGES: [usize; 2] = [8, 64];
const PIXELS_PER_IMAGE: usize = 4096;
/// Share of the values outside a measured range, at each end.
const TAIL: f64 = 0.001;
/// A 16-bit set that covers this many of 65536 values in every channel keeps the full range, and so its colour balance.
const WIDE_16_BITS: f64 = 32_768.0;
/// A note is due if more than this share of the values is in this many adjacent levels of 256.
const LOW_CONTRAST: (f64, usize) = (0.95, 16);
/// A note is due if more than this share of a channel's values is outside the range.
const CLIPPED_SHARE: f64 = 0.01;

/// Quantiles of a channel's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChannelValues {
    /// Minimum.
    pub lowest: f64,
    /// The 0.1 % quantile.
    pub low: f64,
    /// The 99.9 % quantile.
    pub high: f64,
    /// Maximum.
    pub highest: f64,
}

/// Number of invalid values: NaN, infinite, or a file's no-data value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Missing {
    /// Images with invalid values.
    pub images: usize,
    /// Invalid values.
    pub values: usize,
    /// All values.
    pub of: usize,
    /// Name of the first image with invalid values.
    pub first: String,
}

impl Missing {
    /// Adds the counts of one image.
    pub fn add(&mut self, name: &str, raster: &Raster) {
        let (values, of) = (raster.missing(), raster.len());
        let first = if values > 0 { name.to_owned() } else { String::new() };
        self.merge(Self { images: usize::from(values > 0), values, of, first });
    }

    /// Adds the counts of later images.
    pub fn merge(&mut self, other: Self) {
        if self.images == 0 {
            self.first = other.first;
        }
        self.images += other.images;
        self.values += other.values;
        self.of += other.of;
    }

    /// A note if any of `examined` images has invalid values.
    pub fn note(&self, examined: usize) -> Option<String> {
        let share = 100.0 * self.values as f64 / self.of.max(1) as f64;
        (self.images > 0).then(|| {
            format!(
                "{} of {examined} images hold NaN, infinite or no-data values ({share:.2} % of all values), which become 0; \
                 the first: `{}`",
                self.images, self.first
            )
        })
    }
}

/// An image that was decoded for [`Dataset::examine`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// Type of its values, such as `uint8`.
    pub kind: &'static str,
    /// Of the decoder.
    pub note: Option<String>,
    /// Its invalid values.
    pub missing: Missing,
}

/// Images between two reports of [`Dataset::examine`].
const EXAMINED_AT_ONCE: usize = 1024;

/// A sample of the values of a set.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// Decoded images of the sample.
    pub images: usize,
    /// Number of images by value type, such as `uint16`.
    pub kinds: BTreeMap<&'static str, usize>,
    /// In the decoded images.
    pub missing: Missing,
    /// Notes of the decoder, such as on unused pages, and their numbers of images.
    decoder_notes: BTreeMap<String, usize>,
    /// Sorted values of each channel.
    values: Vec<Vec<f64>>,
    /// Histogram of the sampled values over the full range.
    full_levels: Levels,
}

type Levels = Vec<u64>;

impl Dataset {
    /// Collects statistics on a sample of the images.
    pub fn survey(&self) -> Survey {
        let first = self.survey_of(IMAGES[0]);
        if first.kinds.keys().all(|&kind| kind == "uint8") { first } else { self.survey_of(IMAGES[1]) }
    }

    /// Decodes every image as for training, on all processors. `each` is called in the order of the set; errors are those of
    /// [`Dataset::decode`].
    pub fn examine(&self, each: &mut dyn FnMut(Result<Examined, DataError>)) {
        let indices: Vec<usize> = (0..self.len()).collect();
        for some in indices.chunks(EXAMINED_AT_ONCE) {
            let found: Vec<_> = some.par_iter().map(|&index| self.examine_image(index)).collect();
            found.into_iter().for_each(&mut *each);
        }
    }

    fn examine_image(&self, index: usize) -> Result<Examined, DataError> {
        let raster = self.stored_values(index)?;
        let name = &self.samples()[index].name;
        let mut missing = Missing::default();
        missing.add(name, &raster);
        let (kind, note) = (raster.kind(), raster.note().map(str::to_owned));
        if self.source.recorded_range().is_none() {
            raster.into_image(name, self.channels(), &self.decoding().range)?;
        }
        Ok(Examined { kind, note, missing })
    }

    fn survey_of(&self, images: usize) -> Survey {
        let count = images.min(self.len());
        let indices: Vec<usize> = (0..count).map(|at| at * self.len() / count).collect();
        let sampled = indices.par_iter().filter_map(|&index| {
            let raster = self.stored_values(index).ok()?;
            let pixels = raster.sample(PIXELS_PER_IMAGE, self.channels()).ok()?;
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
        for (kind, note, missing, pixels) in sampled.collect::<Vec<_>>() {
            survey.add(kind, note, missing, &pixels);
        }
        survey.values.par_iter_mut().for_each(|values| values.sort_by(f64::total_cmp));
        survey
    }

    /// Resolves and applies `choice`; returns the range as well. Adds notes to [`Dataset::notes`].
    ///
    /// # Errors
    /// Those of [`Dataset::scaled_to`].
    pub fn with_range(self, choice: &RangeChoice) -> Result<(Self, ValueRange), DataError> {
        let survey = self.survey();
        self.with_range_of(choice, &survey)
    }

    /// As [`Dataset::with_range`], with an earlier survey of this set.
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
        // Notes on labels must stay the last ones.
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
                let kinds = kinds.join(", ");
                let images = survey.images;
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
            *self.decoder_notes.entry(note).or_default() += 1;
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

    /// Quantiles of each channel; `None` without valid values.
    pub fn channels(&self) -> Vec<Option<ChannelValues>> {
        let quantiles = |values: &Vec<f64>| {
            let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
            (!values.is_empty()).then(|| ChannelValues {
                lowest: at(0.0),
                low: at(TAIL),
                high: at(1.0 - TAIL),
                highest: at(1.0),
            })
        };
        self.values.iter().map(quantiles).collect()
    }

    /// The range for `data.range = "auto"`.
    pub fn range(&self) -> ValueRange {
        let channels = self.channels();
        let is_full_16_bits = || {
            let wide = |found: &Option<ChannelValues>| found.is_some_and(|f| f.high - f.low >= WIDE_16_BITS);
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

    /// Notes that do not depend on the range.
    fn notes(&self) -> Vec<String> {
        let decoder_notes = self.decoder_notes.iter();
        let mut notes: Vec<String> = decoder_notes
            .map(|(note, images)| format!("{images} of {} images: {note}", self.images))
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

    fn notes_on(&self, range: &ValueRange) -> Vec<String> {
        let Some(pairs) = range.per_channel(self.values.len()) else {
            return note_on_levels(&self.full_levels).into_iter().collect();
        };
        let mut notes = Vec::new();
        let mut levels = vec![0; 256];
        for (channel, (values, [low, high])) in self.values.iter().zip(pairs).enumerate() {
            let outside = values.iter().filter(|&&value| value < low || value > high).count();
            let share = outside as f64 / values.len().max(1) as f64;
            if share > CLIPPED_SHARE {
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

/// Rounds and saturates.
fn level(value: f64) -> usize {
    usize::from((value + 0.5) as u8)
}

/// Rounds both ends outward to four digits of the span, for readability.
fn rounded_outward(low: f64, high: f64) -> [f64; 2] {
    let digits = 3 - (high - low).log10().floor() as i32;
    // Negative powers of ten are not exact, so that they are divided by.
    let scale = 10f64.powi(digits.abs());
    let (up, down) = if digits >= 0 { (scale, 1.0) } else { (1.0, scale) };
    [(low * up / down).floor() * down / up, (high * up / down).ceil() * down / up]
}

/// A note if nearly all values are in a few adjacent levels.
fn note_on_levels(levels: &Levels) -> Option<String> {
    let (share, width) = LOW_CONTRAST;
    let all: u64 = levels.iter().sum();
    let sums = levels.windows(width).map(|window| window.iter().sum::<u64>());
    let (at, largest) = sums.enumerate().max_by_key(|(_, sum)| *sum)?;
    (largest as f64 > share * all as f64).then(|| {
        format!(
            "{:.1} % of the values fall into {width} of 256 levels ({at} to {}): the images have hardly any contrast; \
             data.range sets which values become 0 and 255",
            100.0 * largest as f64 / all as f64,
            at + width - 1
        )
    })
}
