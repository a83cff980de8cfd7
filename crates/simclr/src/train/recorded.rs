//! A step as a CUDA graph: the GPU is asked once and then does the same again for every batch, without waiting for the host
//! between its thousand kernels. Only the views and the learning rate are new each time; both lie where the recording reads them.

use simclr_shim::stream::CudaGraph;
use tch::{Kind, Tensor};

use super::step::{Setting, Stepped};
use crate::{
    TrainError,
    nt_xent::SingleProcess,
    objective::{Objective, Value},
    optim::{self, Optimizer},
};

/// Steps before the recording: libraries make their plans in them, cuDNN tries its ways, kernels are loaded.
const WARM_UP: usize = 3;

/// Records the step of a run and does it again.
#[derive(Debug)]
pub struct Recorder {
    state: State,
    /// What is to be said, once.
    note: Option<String>,
}

#[derive(Debug)]
enum State {
    /// After so many steps.
    WarmUp(usize),
    Recorded(Recorded),
    /// Step by step for good.
    Off,
}

#[derive(Debug)]
struct Recorded {
    recording: CudaGraph,
    /// What the recording reads, `[2N, C, S, S]`.
    views: Tensor,
    made: Enqueued,
}

/// What a step leaves on the device.
#[derive(Debug)]
pub struct Enqueued {
    /// Loss, accuracy, norm of the gradient, `[3]` in f64.
    pub figures: Tensor,
    /// See [`Stepped`].
    pub h: Tensor,
    /// See [`Stepped`].
    pub z: Tensor,
}

impl Recorder {
    /// For the steps of `setting`, if `wanted`. What cannot be recorded goes step by step: CPUs, steps in which the host has a
    /// part (several processes, labels), TorchScript modules, whose inside is not ours.
    pub fn new(setting: &Setting<'_>, wanted: bool) -> Self {
        let Setting { model, objective, group, .. } = *setting;
        let on_gpu = model.params.device().is_cuda() && optim::kernels_available(&model.params);
        let ours = model.stages().is_some() && matches!(objective, Objective::Contrastive(_));
        let can = wanted && on_gpu && ours && group.count() == 1;
        Self { state: if can { State::WarmUp(0) } else { State::Off }, note: None }
    }

    /// One step of the views `[2N, C, S, S]` of a batch; none where it has to be made step by step: before the recording, and
    /// for a batch that lacks images.
    ///
    /// # Errors
    /// What CUDA said to a replay.
    pub fn step(
        &mut self,
        setting: &Setting<'_>,
        optimizer: &mut Optimizer,
        new: &Tensor,
        lr: f64,
    ) -> Result<Option<Stepped>, TrainError> {
        if let State::WarmUp(steps) = &mut self.state {
            *steps += 1;
            if *steps <= WARM_UP {
                return Ok(None);
            }
            self.record(setting, optimizer, new);
        }
        let State::Recorded(Recorded { recording, views, made }) = &self.state else { return Ok(None) };
        if new.size() != views.size() {
            return Ok(None);
        }
        views.shallow_clone().copy_(new);
        optimizer.set_step_scalars(&setting.model.params, lr);
        recording.replay()?;
        Ok(Some(made.read()))
    }

    /// What there is to say about the recording, once.
    pub fn note(&mut self) -> Option<String> {
        self.note.take()
    }

    fn record(&mut self, setting: &Setting<'_>, optimizer: &Optimizer, views: &Tensor) {
        let views = views.copy();
        let recorded = CudaGraph::capture(|| enqueue(setting, optimizer, &views));
        self.state = match recorded {
            Ok((recording, made)) => {
                self.note = Some("the step is recorded as a CUDA graph".into());
                State::Recorded(Recorded { recording, views, made })
            }
            Err(error) => {
                self.note = Some(format!("the step goes without a CUDA graph, which is slower: {error}"));
                // Those of the recording have no values.
                let params = setting.model.params.params();
                params.iter().for_each(|param| drop(simclr_shim::drop_gradient(&param.tensor)));
                State::Off
            }
        };
    }
}

/// Asks the device for a whole step of one process: forward, NT-Xent, backward, and, where loss and gradient are numbers, the
/// update that was announced. Nothing is waited for.
///
/// # Errors
/// What libtorch says.
pub fn enqueue(setting: &Setting<'_>, optimizer: &Optimizer, views: &Tensor) -> Result<Enqueued, TrainError> {
    let Setting { model, objective, .. } = *setting;
    let images = views.size()[0] as usize / 2;
    let (h, z) = model.forward(views, &setting.mode())?;
    let Value { loss, accuracy } = objective.of(&z, &[], &SingleProcess, images);
    loss.f_backward()?;
    let norm = optim::gradient_norm_on_gpu(&model.params)?;
    let loss = loss.detach().to_kind(Kind::Double);
    // No number where either is none.
    let guard = &loss * 0.0 + &norm;
    optimizer.launch_step(&model.params, Some(&guard))?;
    let figures = Tensor::stack(&[loss, accuracy.to_kind(Kind::Double), norm], 0);
    Ok(Enqueued { figures, h: h.detach(), z: z.detach() })
}

impl Enqueued {
    /// Waits for the step.
    ///
    /// # Panics
    /// If the device fails.
    pub fn read(&self) -> Stepped {
        let figures = Vec::<f64>::try_from(&self.figures).expect("three numbers come back from the device");
        let (h, z) = (self.h.shallow_clone(), self.z.shallow_clone());
        let images = z.size()[0] as usize / 2;
        Stepped {
            loss: figures[0],
            accuracy: figures[1],
            gradient_norm: figures[2],
            h,
            z,
            counts: vec![images],
        }
    }
}
