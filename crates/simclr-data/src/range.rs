//! `data.range`: the stored values that become 0 and 255.
//!
//! Sensors store 12 bits in 16, reflectance from 300 to 2800, temperatures as floats. A fixed scale would leave such images only
//! a few of 256 levels; they are therefore scaled by the range of their values.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::DataError;

/// The range of stored values.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ValueRange {
    /// The full range of the type: 8 bits unchanged, 16 bits from 0 to 65535. Other types have none.
    #[default]
    #[serde(with = "full")]
    Full,
    /// `[low, high]` of all channels.
    Same([f64; 2]),
    /// `[low, high]` of each channel.
    PerChannel(Vec<[f64; 2]>),
}

/// `data.range`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected `auto`, `full`, [low, high] or one such pair for each channel")]
pub enum RangeChoice {
    /// [`ValueRange::Full`] for 8-bit images, else measured on a sample of the images, per channel.
    #[default]
    #[serde(with = "auto")]
    Auto,
    /// `"full"`, `[low, high]`, or one such pair for each channel.
    Set(ValueRange),
}

/// Defines a module for `serde(with)` that writes a unit variant of an untagged enum as a string.
macro_rules! word {
    ($module:ident, $word:literal) => {
        mod $module {
            use serde::{Deserialize, Deserializer, Serializer, de::Error};

            pub(super) fn serialize<S: Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str($word)
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
                let text = String::deserialize(deserializer)?;
                if text == $word { Ok(()) } else { Err(D::Error::custom(concat!("expected `", $word, "`"))) }
            }
        }
    };
}
pub(crate) use word;

word!(full, "full");
word!(auto, "auto");

impl ValueRange {
    /// Low and high of `channels` channels; `None` for the full range.
    pub(crate) fn per_channel(&self, channels: usize) -> Option<Vec<[f64; 2]>> {
        match self {
            Self::Full => None,
            Self::Same(range) => Some(vec![*range; channels]),
            Self::PerChannel(ranges) => Some(ranges.clone()),
        }
    }

    /// # Errors
    /// A number of pairs other than `channels`, a low end that is not below its high end, or a value that is not finite.
    pub fn validate(&self, channels: Option<usize>) -> Result<(), DataError> {
        let invalid = |reason: String| Err(DataError::config("data.range", self, reason));
        let pairs: &[[f64; 2]] = match self {
            Self::Full => return Ok(()),
            Self::Same(range) => std::slice::from_ref(range),
            Self::PerChannel(ranges) => ranges,
        };
        if let (Self::PerChannel(_), Some(channels)) = (self, channels)
            && pairs.len() != channels
        {
            return invalid(format!(
                "expected one pair for each of the {channels} channels, got {}",
                pairs.len()
            ));
        }
        let is_valid = |[low, high]: &[f64; 2]| low.is_finite() && high.is_finite() && low < high;
        match pairs.iter().find(|pair| !is_valid(pair)) {
            None if !pairs.is_empty() => Ok(()),
            None => invalid("expected at least one pair of numbers".into()),
            Some([low, high]) => {
                invalid(format!("expected a low end below its high end, got [{low}, {high}]"))
            }
        }
    }
}

impl RangeChoice {
    /// # Errors
    /// Those of [`ValueRange::validate`], but for the number of channels.
    pub fn validate(&self) -> Result<(), DataError> {
        match self {
            Self::Auto => Ok(()),
            Self::Set(range) => range.validate(None),
        }
    }
}

impl fmt::Display for ValueRange {
    /// As in configurations.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pair = |[low, high]: &[f64; 2]| format!("[{low}, {high}]");
        match self {
            Self::Full => write!(f, "full"),
            Self::Same(range) => write!(f, "{}", pair(range)),
            Self::PerChannel(ranges) => {
                write!(f, "[{}]", ranges.iter().map(pair).collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl FromStr for RangeChoice {
    type Err = String;

    /// As in configurations, without quotes.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = |_| {
            "expected auto, full, [low, high] or one such pair for each channel, as in [[0, 4095], [0, 255]]"
                .to_owned()
        };
        let choice: Self = match text {
            "auto" => Self::Auto,
            "full" => Self::Set(ValueRange::Full),
            pairs => Self::Set(serde_json::from_str(pairs).map_err(expected)?),
        };
        choice.validate().map_err(|error| error.to_string())?;
        Ok(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_round_trip() {
        for text in ["auto", "full", "[0.0,4095.0]", "[[0.0,1.5],[-3.0,7.0]]"] {
            let choice: RangeChoice = text.parse().unwrap();
            let written = serde_json::to_string(&choice).unwrap();
            assert_eq!(written.trim_matches('"'), text);
            assert_eq!(serde_json::from_str::<RangeChoice>(&written).unwrap(), choice);
        }
        assert_eq!("[1, 2]".parse(), Ok(RangeChoice::Set(ValueRange::Same([1.0, 2.0]))));
    }

    #[test]
    fn invalid_ranges_are_refused() {
        for text in ["[2, 1]", "[1, 1]", "[[0, 1], [5, 4]]", "[]", "wide", "[0]", "[0, 1, 2]"] {
            assert!(text.parse::<RangeChoice>().is_err(), "{text}");
        }
        let two = ValueRange::PerChannel(vec![[0.0, 1.0], [0.0, 2.0]]);
        assert!(two.validate(Some(2)).is_ok() && two.validate(None).is_ok());
        let refused = two.validate(Some(3)).unwrap_err().to_string();
        assert!(refused.contains("each of the 3 channels, got 2"), "{refused}");
    }
}
