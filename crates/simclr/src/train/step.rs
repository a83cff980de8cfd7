//! One update of Algorithm 1 (paper, section 2.1).

use simclr_data::Batch;
use tch::Tensor;

use crate::{
    ModelError,
    device::to_device,
    encoder::Mode,
    model::SimClr,
    objective::{Objective, Value},
    optim::{self, Optimizer},
};

/// What a step leaves behind.
#[derive(Debug)]
pub struct Stepped {
    /// The objective's value.
    pub loss: f64,
    /// The objective's accuracy, `[0, 1]`.
    pub accuracy: f64,
    /// Norm of the gradient of all parameters together; NaN where the loss already was no number.
    pub gradient_norm: f64,
    /// h `[2N, F]`, without graph.
    pub h: Tensor,
    /// z `[2N, D]`, or logits, without graph.
    pub z: Tensor,
}

/// All views of all images through f and g in one batch, objective, gradients, update.
///
/// A loss or a gradient that is not a number leaves the weights as they were; the caller sees it in
/// [`Stepped::non_finite`].
///
/// # Errors
/// See [`SimClr::forward`].
///
/// # Shapes
/// `batch` holds `[2N, C, S, S]`, rows i and i + N being two views of one image; `[N, C, S, S]` with labels.
pub fn train_step(
    model: &SimClr,
    optimizer: &mut Optimizer,
    objective: &Objective,
    batch: &Batch,
    (channels, size): (usize, usize),
    lr: f64,
) -> Result<Stepped, ModelError> {
    let rows = batch.pixels.len() / (channels * size * size);
    let shape = [rows, channels, size, size].map(|side| side as i64);
    let views = to_device(&batch.pixels, shape, model.params.device());
    let (h, z) = model.forward(&views, &Mode::train())?;
    let Value { loss, accuracy } = objective.of(&z, &batch.ids);
    let value = loss.double_value(&[]);
    let mut gradient_norm = f64::NAN;
    if value.is_finite() {
        loss.backward();
        gradient_norm = optim::gradient_norm(&model.params);
        if gradient_norm.is_finite() {
            optimizer.step(&model.params, lr);
        }
    }
    let accuracy = accuracy.double_value(&[]);
    Ok(Stepped { loss: value, accuracy, gradient_norm, h: h.detach(), z: z.detach() })
}

impl Stepped {
    /// What is not a number, and its value.
    pub fn non_finite(&self) -> Option<(&'static str, f64)> {
        let figures = [("the loss", self.loss), ("the gradient's norm", self.gradient_norm)];
        figures.into_iter().find(|(_, value)| !value.is_finite())
    }
}
