//! Evaluated output of a model: h, or an output of the projection head. "h against g(h)" is the ablation of the paper's
//! section 4.2 (figure 8).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An output of a model; as text `h`, `z` or `head.K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Layer {
    /// The encoder's feature.
    H,
    /// The projection, not normalised: the output of the last dense layer of the head, after its batch norm if it has one.
    /// Without a head, h.
    Z,
    /// The output of the K-th dense layer of the head, counted from 1, after its batch norm and, except for the last layer,
    /// its ReLU: the start of fine-tuning with `head_layers` K. `head.K` of the last layer is z.
    Head(usize),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::H => f.write_str("h"),
            Self::Z => f.write_str("z"),
            Self::Head(layer) => write!(f, "head.{layer}"),
        }
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().filter(|layer| *layer > 0).map(Self::Head);
        let named = match text {
            "h" => Some(Self::H),
            "z" => Some(Self::Z),
            _ => text.strip_prefix("head.").and_then(number),
        };
        named.ok_or_else(|| format!("layer `{text}`: expected h, z or head.K with K from 1"))
    }
}

impl From<Layer> for String {
    fn from(layer: Layer) -> Self {
        layer.to_string()
    }
}

impl TryFrom<String> for Layer {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_names_round_trip_and_other_names_are_refused() {
        for name in ["h", "z", "head.1", "head.12"] {
            assert_eq!(name.parse::<Layer>().unwrap().to_string(), name);
        }
        for name in ["", "H", "head", "head.", "head.0", "head.-1", "head.x", "z.1"] {
            let error = name.parse::<Layer>().unwrap_err();
            assert!(error.contains("expected h, z or head.K"), "{error}");
        }
    }
}
