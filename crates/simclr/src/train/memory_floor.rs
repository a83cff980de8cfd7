//! A lower bound of the memory of a run, checked before anything is allocated: a run that cannot fit is refused with figures, where
//! it would otherwise be killed by the system. Whether a run above the bound fits is measured in `auto_config`.

use tch::Device;

use super::machine::{self, GIB, gib};
use crate::{Plan, TrainError, encoder::EncoderName};

/// Smaller runs are not checked.
const CHECKED: f64 = GIB;

/// # Errors
/// [`TrainError::Memory`] if the lower bound exceeds the free memory of `device`.
pub(super) fn check(plan: &Plan, device: Device) -> Result<(), TrainError> {
    let needed = lower_bound(plan);
    if needed < CHECKED {
        return Ok(());
    }
    match machine::free_on(device) {
        Some(free) if needed > free => {
            let (encoder, head, size) =
                (&plan.config.encoder, &plan.config.head, plan.config.train.image_size);
            let what = format!(
                "a run of {} x{} with {} head layers of {} units on views of {size} px and {} channels",
                encoder.name.as_str(),
                encoder.width,
                head.layers,
                head.hidden.max(head.out),
                plan.channels
            );
            Err(TrainError::Memory {
                what,
                needed: format!("at least {}", gib(needed)),
                limit: format!("{}, which is free", gib(free)),
            })
        }
        _ => Ok(()),
    }
}

/// Bytes of weights, gradients and one moment of the optimizer, and of the views of a pass, all in f32.
fn lower_bound(plan: &Plan) -> f64 {
    let (encoder, head) = (&plan.config.encoder, &plan.config.head);
    let encoder_weights = if encoder.file.is_some() { 0.0 } else { weights_at_width_1(encoder.name) };
    let (hidden, out) = (head.hidden as f64, head.out as f64);
    let between = head.layers.saturating_sub(2) as f64 * hidden * hidden;
    let weights = encoder_weights * encoder.width.powi(2) + between + hidden * out;
    let images = plan.chunk() * plan.config.task.objective.views();
    let size = plan.config.train.image_size as f64;
    4.0 * (3.0 * weights + images as f64 * plan.channels as f64 * size * size)
}

/// Weights of the convolutions that grow with the square of the width, rounded down; 0 for transformers.
fn weights_at_width_1(name: EncoderName) -> f64 {
    match name {
        EncoderName::Resnet18 => 11.1e6,
        EncoderName::Resnet34 => 21.2e6,
        EncoderName::Resnet50 => 23.4e6,
        EncoderName::Resnet101 => 42.3e6,
        EncoderName::Resnet152 => 57.9e6,
        EncoderName::Resnet200 => 62.3e6,
        EncoderName::ConvC3 | EncoderName::ConvC4 => 0.09e6,
        EncoderName::ConvC7 => 0.14e6,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        encoder::{Encoder, EncoderConfig},
        params::Params,
    };

    /// A lower bound, and at most a quarter below the truth at width 2.
    #[test]
    fn the_weights_of_an_encoder_are_bounded_from_below() {
        for name in ["resnet18", "resnet34", "resnet50", "resnet101", "conv-c3", "conv-c4", "conv-c7"] {
            let name: EncoderName = serde_json::from_value(name.into()).unwrap();
            let config = EncoderConfig { name, width: 2.0, ..EncoderConfig::default() };
            let mut params = Params::new(Device::Cpu, 0);
            let _ = Encoder::new(&config, 3, 32, &mut params).unwrap();
            let truth: usize = params.params().iter().map(|param| param.tensor.numel()).sum();
            let bound = 4.0 * weights_at_width_1(name);
            let near = bound >= 0.75 * truth as f64 || name == EncoderName::ConvC4;
            assert!(bound <= truth as f64 && near, "{name:?}: {bound} of {truth}");
        }
    }
}
