//! One update of Algorithm 1 (paper, section 2.1).

use simclr_data::Batch;
use tch::Tensor;

use crate::{
    ModelError,
    device::to_device,
    encoder::Mode,
    model::SimClr,
    nt_xent::{LossConfig, NtXent, nt_xent},
    optim::Optimizer,
};

/// What a step leaves behind.
#[derive(Debug)]
pub struct Stepped {
    /// NT-Xent.
    pub loss: f64,
    /// Contrastive accuracy, `[0, 1]`.
    pub contrastive_accuracy: f64,
    /// h `[2N, F]`, without graph.
    pub h: Tensor,
    /// z `[2N, D]`, without graph.
    pub z: Tensor,
}

/// Both views of all images through f and g in one batch, NT-Xent, gradients, update.
///
/// A loss that is not a number leaves the weights as they were; the caller sees it in [`Stepped::loss`].
///
/// # Errors
/// See [`SimClr::forward`].
///
/// # Shapes
/// `batch` holds `[2N, C, S, S]`, rows i and i + N being two views of one image.
pub fn train_step(
    model: &SimClr,
    optimizer: &mut Optimizer,
    loss: &LossConfig,
    batch: &Batch,
    (channels, size): (usize, usize),
    lr: f64,
) -> Result<Stepped, ModelError> {
    let shape = [2 * batch.ids.len() as i64, channels as i64, size as i64, size as i64];
    let views = to_device(&batch.pixels, shape, model.params.device());
    let (h, z) = model.forward(&views, Mode::Train)?;
    let NtXent { loss, accuracy } = nt_xent(&z, loss);
    let value = loss.double_value(&[]);
    if value.is_finite() {
        loss.backward();
        optimizer.step(&model.params, lr);
    }
    Ok(Stepped {
        loss: value,
        contrastive_accuracy: accuracy.double_value(&[]),
        h: h.detach(),
        z: z.detach(),
    })
}
