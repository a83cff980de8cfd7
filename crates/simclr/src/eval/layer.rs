//! Which output of a model is judged: h, or what the projection head makes of it on the way to z. "h against g(h)" is the
//! ablation of the paper's section 4.2 (its figure 8).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::features::FrozenEncoder;
use crate::{EvalError, device::Precision, encoder::Mode};

/// An output of a model; as text `h`, `z` or `head.K`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Layer {
    /// The encoder's feature.
    H,
    /// The projection, not normalised: the output of the last dense layer of the head, after its batch norm where it has one.
    /// Without a head, h.
    Z,
    /// The output of the K-th dense layer of the head, counted from 1, after its batch norm and, but for the last layer, its
    /// ReLU: what `--keep-head K` fine-tunes from. `head.K` of the last layer is z.
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

impl FrozenEncoder {
    /// Numbers of an image in `layer`.
    ///
    /// # Errors
    /// A layer that the head does not have, or any of a head that was never trained: imported weights come without one.
    pub fn layer_dim(&self, layer: Layer) -> Result<i64, EvalError> {
        let widths = self.model().head.widths();
        let origin = self.origin();
        let imported = origin.checkpoint.is_some() && (origin.step, origin.total_steps) == (0, Some(0));
        let refused = |reason: String| Err(EvalError::Refused(format!("layer `{layer}`: {reason}")));
        match layer {
            Layer::H => Ok(self.feature_dim()),
            _ if imported => refused("imported weights have no projection head; expected h".into()),
            Layer::Z => Ok(widths.last().copied().unwrap_or(self.feature_dim())),
            Layer::Head(number) => match widths.get(number - 1) {
                Some(width) => Ok(*width),
                None if widths.is_empty() => {
                    refused("the run has no projection head; expected h or z".into())
                }
                None => refused(format!("the head has {} layers; expected head.1 to head.{0}", widths.len())),
            },
        }
    }

    /// The outputs `layers` of `images` `[B, C, S, S]` from one forward pass, side by side `[B, sum of widths]`, on the CPU.
    ///
    /// # Errors
    /// A TorchScript module that fails on this batch.
    ///
    /// # Panics
    /// If the head does not have one of the layers; see [`FrozenEncoder::layer_dim`].
    pub fn layers(&self, images: &Tensor, layers: &[Layer]) -> Result<Tensor, EvalError> {
        if layers == [Layer::H] {
            return self.forward(images);
        }
        let _guard = tch::no_grad_guard();
        let h = self.model().encoder.forward(images, &Mode::Eval, Precision::F32)?;
        let blocks = self.model().head.blocks(&h, &Mode::Eval, Precision::F32)?;
        let output = |layer: &Layer| match layer {
            Layer::H => h.shallow_clone(),
            Layer::Z => blocks.last().unwrap_or(&h).shallow_clone(),
            Layer::Head(number) => blocks[number - 1].shallow_clone(),
        };
        Ok(Tensor::cat(&layers.iter().map(output).collect::<Vec<_>>(), 1).to_device(Device::Cpu))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_others_are_refused() {
        for name in ["h", "z", "head.1", "head.12"] {
            assert_eq!(name.parse::<Layer>().unwrap().to_string(), name);
        }
        for name in ["", "H", "head", "head.", "head.0", "head.-1", "head.x", "z.1"] {
            let error = name.parse::<Layer>().unwrap_err();
            assert!(error.contains("expected h, z or head.K"), "{error}");
        }
    }
}
