//! Which stored values become 0 and 255: `data.range`.
//!
//! Sensors write 12 bits into 16, reflectance from 300 to 2800, temperatures as floats. Cut to 8 bits by a fixed scale, such
//! images keep a few levels; views therefore start from 8 bits of the range that the values really cover.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::DataError;

/// How stored values become 8 bits.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ValueRange {
    /// Each file over what its type holds: 8 bits as they are, 16 bits from 0 to 65535. Other types have no full range.
    #[default]
    #[serde(with = "full")]
    Full,
    /// These values become 0 and 255 in all channels.
    Same([f64; 2]),
    /// Likewise, channel by channel.
    PerChannel(Vec<[f64; 2]>),
}

/// `data.range`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected `auto`, `full`, [low, high] or one such pair for each channel")]
pub enum RangeChoice {
    /// [`ValueRange::Full`] for 8-bit images, for all others what a sample of them covers, channel by channel.
    #[default]
    #[serde(with = "auto")]
    Auto,
    /// `"full"`, `[low, high]`, or one such pair for each channel.
    Set(ValueRange),
}

/// A module for `serde(with)` that writes a unit variant of an untagged enum as a word.
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
    /// Low and high of `channels` channels; none for the full range.
    pub(crate) fn of_channels(&self, channels: usize) -> Option<Vec<[f64; 2]>> {
        match self {
            Self::Full => None,
            Self::Same(range) => Some(vec![*range; channels]),
            Self::PerChannel(ranges) => Some(ranges.clone()),
        }
    }

    /// Whether this range is one of images of `channels` channels.
    ///
    /// # Errors
    /// Another number of pairs, a low end that is not below its high end, or one that is not finite.
    pub fn validate(&self, channels: Option<usize>) -> Result<(), DataError> {
        let wrong =
            |reason: String| Err(DataError::Config { key: "data.range", value: self.to_string(), reason });
        let pairs: &[[f64; 2]] = match self {
            Self::Full => return Ok(()),
            Self::Same(range) => std::slice::from_ref(range),
            Self::PerChannel(ranges) => ranges,
        };
        if let (Self::PerChannel(_), Some(channels)) = (self, channels)
            && pairs.len() != channels
        {
            return wrong(format!(
                "expected one pair for each of the {channels} channels, got {}",
                pairs.len()
            ));
        }
        let fine = |[low, high]: &[f64; 2]| low.is_finite() && high.is_finite() && low < high;
        match pairs.iter().find(|pair| !fine(pair)) {
            None if !pairs.is_empty() => Ok(()),
            None => wrong("expected at least one pair of numbers".into()),
            Some([low, high]) => wrong(format!("expected a low end below its high end, got [{low}, {high}]")),
        }
    }
}

impl RangeChoice {
    /// See [`ValueRange::validate`]; the number of channels is checked when it is known.
    ///
    /// # Errors
    /// Those of [`ValueRange::validate`].
    pub fn validate(&self) -> Result<(), DataError> {
        match self {
            Self::Auto => Ok(()),
            Self::Set(range) => range.validate(None),
        }
    }
}

impl fmt::Display for ValueRange {
    /// As it is written in a configuration.
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

    /// As it is written in a configuration, with or without quotes around the words.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |_| {
            "expected auto, full, [low, high] or one such pair for each channel, as in [[0, 4095], [0, 255]]"
                .to_owned()
        };
        let choice: Self = match text {
            "auto" => Self::Auto,
            "full" => Self::Set(ValueRange::Full),
            pairs => Self::Set(serde_json::from_str(pairs).map_err(wrong)?),
        };
        choice.validate().map_err(|error| error.to_string())?;
        Ok(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_and_written_as_a_configuration_has_them() {
        for text in ["auto", "full", "[0.0,4095.0]", "[[0.0,1.5],[-3.0,7.0]]"] {
            let choice: RangeChoice = text.parse().unwrap();
            let written = serde_json::to_string(&choice).unwrap();
            assert_eq!(written.trim_matches('"'), text);
            assert_eq!(serde_json::from_str::<RangeChoice>(&written).unwrap(), choice);
        }
        assert_eq!("[1, 2]".parse(), Ok(RangeChoice::Set(ValueRange::Same([1.0, 2.0]))));
    }

    #[test]
    fn impossible_ranges_are_refused() {
        for text in ["[2, 1]", "[1, 1]", "[[0, 1], [5, 4]]", "[]", "wide", "[0]", "[0, 1, 2]"] {
            assert!(text.parse::<RangeChoice>().is_err(), "{text}");
        }
        let two = ValueRange::PerChannel(vec![[0.0, 1.0], [0.0, 2.0]]);
        assert!(two.validate(Some(2)).is_ok() && two.validate(None).is_ok());
        let refused = two.validate(Some(3)).unwrap_err().to_string();
        assert!(refused.contains("each of the 3 channels, got 2"), "{refused}");
    }
}
