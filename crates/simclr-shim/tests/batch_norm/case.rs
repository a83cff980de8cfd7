//! Test cases of batch norm: inputs, the implementations under test, the formula in f64, and comparisons.

use std::sync::{Mutex, MutexGuard, PoisonError};

use simclr_shim::{
    BatchNorm, Statistics, Sum, branch,
    gpu::{Order, emulated},
};
use tch::{Device, Kind, Tensor};

pub const EPSILON: f64 = 1e-5;
pub const MOMENTUM: f64 = 0.1;

/// CPU kernels, GPU kernels (emulated with threads in either order, or on a GPU), or ATen operations.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    Fused,
    Emulated(Order),
    OnGpu,
    ViaAten,
}

pub const WAYS: [Way; 4] =
    [Way::Fused, Way::Emulated(Order::Rising), Way::Emulated(Order::Falling), Way::ViaAten];

impl Way {
    pub fn device(self) -> Device {
        if matches!(self, Self::OnGpu) { Device::Cuda(0) } else { Device::Cpu }
    }

    /// Runs `work` with this implementation, including backward passes.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> T {
        if let Self::Emulated(order) = self { emulated(order, work) } else { work() }
    }

    pub fn forward(
        self,
        norm: &BatchNorm,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
        statistics: Statistics,
    ) -> Tensor {
        match self {
            Self::Fused | Self::Emulated(_) | Self::OnGpu => {
                norm.forward(x, residual, relu, statistics).unwrap()
            }
            Self::ViaAten => norm.forward_via_aten(x, residual, relu, statistics).unwrap(),
        }
    }
}

/// Inputs in f64, exactly representable in the dtype under test.
pub struct Case {
    pub x: Tensor,
    pub residual: Option<Tensor>,
    pub scale: Tensor,
    pub shift: Tensor,
    /// Gradient of the loss with respect to the output.
    pub weights: Tensor,
    /// That with respect to a second handle to the output.
    pub of_branch: Option<Tensor>,
    pub kind: Kind,
    pub relu: bool,
}

/// Outputs in f64.
pub struct Found {
    pub y: Tensor,
    pub dx: Tensor,
    pub d_residual: Option<Tensor>,
    pub d_scale: Tensor,
    pub d_shift: Tensor,
    pub running_mean: Tensor,
    pub running_var: Tensor,
}

pub fn channels_last(x: &Tensor) -> Tensor {
    if x.dim() == 2 { x.shallow_clone() } else { x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]) }
}

/// Seeds libtorch's generator, which all threads share, and locks out other tests.
pub fn seeded(seed: i64) -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let guard = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    guard
}

impl Case {
    pub fn new(shape: &[i64], kind: Kind, relu: bool, residual: bool) -> Self {
        let _guard = seeded(shape.iter().sum::<i64>());
        let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Double, Device::Cpu));
        let exact = |x: Tensor| channels_last(&x.to_kind(kind).to_kind(Kind::Double));
        let f32_exact = |x: Tensor| x.to_kind(Kind::Float).to_kind(Kind::Double);
        let channels = [shape[1]];
        Self {
            x: exact(draw(shape) * 1.5 + 0.7),
            residual: residual.then(|| exact(draw(shape))),
            scale: f32_exact(draw(&channels) * 0.5 + 1.0),
            shift: f32_exact(draw(&channels)),
            weights: exact(draw(shape)),
            of_branch: None,
            kind,
            relu,
        }
    }

    /// The output has two consumers.
    pub fn with_branch(self) -> Self {
        let of_branch = Some(self.weights.flip([0]) * 0.5);
        Self { of_branch, ..self }
    }

    fn all_weights(&self) -> Tensor {
        self.of_branch.as_ref().map_or_else(|| self.weights.shallow_clone(), |more| &self.weights + more)
    }

    /// The formula; statistics over all dimensions but channels.
    fn formula(&self, x: &Tensor, residual: Option<&Tensor>, scale: &Tensor, shift: &Tensor) -> Tensor {
        let dims: &[i64] = if x.dim() == 2 { &[0] } else { &[0, 2, 3] };
        let per_channel = |t: &Tensor| if x.dim() == 2 { t.shallow_clone() } else { t.view([-1, 1, 1]) };
        let centred = x - x.mean_dim(dims, true, Kind::Double);
        let variance = (&centred * &centred).mean_dim(dims, true, Kind::Double);
        let mut y = centred / (variance + EPSILON).sqrt() * per_channel(scale) + per_channel(shift);
        if let Some(residual) = residual {
            y += residual;
        }
        if self.relu { y.relu() } else { y }
    }

    fn loss(&self, x: &Tensor, residual: Option<&Tensor>, scale: &Tensor, shift: &Tensor) -> f64 {
        (self.formula(x, residual, scale, shift) * self.all_weights()).sum(Kind::Double).double_value(&[])
    }

    /// Directional derivatives of the loss by central differences in f64: along x, residual, scale, shift.
    pub fn slopes(&self, along: [&Tensor; 4]) -> [f64; 4] {
        let step = 1e-6;
        let slope = |at: usize| {
            let moved = |by: f64| {
                let shifted =
                    |input: usize, t: &Tensor| if input == at { t + along[at] * by } else { t.copy() };
                let residual = self.residual.as_ref().map(|residual| shifted(1, residual));
                self.loss(
                    &shifted(0, &self.x),
                    residual.as_ref(),
                    &shifted(2, &self.scale),
                    &shifted(3, &self.shift),
                )
            };
            (moved(step) - moved(-step)) / (2.0 * step)
        };
        [slope(0), if self.residual.is_some() { slope(1) } else { 0.0 }, slope(2), slope(3)]
    }

    /// The formula, differentiated by libtorch in f64.
    pub fn oracle(&self) -> Found {
        let leaf = |t: &Tensor| t.copy().set_requires_grad(true);
        let (x, residual) = (leaf(&self.x), self.residual.as_ref().map(leaf));
        let (scale, shift) = (leaf(&self.scale), leaf(&self.shift));
        let y = self.formula(&x, residual.as_ref(), &scale, &shift);
        (&y * self.all_weights()).sum(Kind::Double).backward();
        let channels = self.x.size()[1];
        let by_channel = self.x.transpose(0, 1).reshape([channels, -1]);
        Found {
            y: y.detach(),
            dx: x.grad(),
            d_residual: residual.map(|residual| residual.grad()),
            d_scale: scale.grad(),
            d_shift: shift.grad(),
            running_mean: by_channel.mean_dim([1i64].as_slice(), false, Kind::Double) * MOMENTUM,
            running_var: by_channel.var_dim([1i64].as_slice(), true, false) * MOMENTUM + (1.0 - MOMENTUM),
        }
    }

    /// The implementation under test on rows `from .. from + count`.
    pub fn run(&self, way: Way, rows: (i64, i64), momentum: f64, all_reduce: Option<Sum>) -> Found {
        way.run(|| self.pass(way, rows, momentum, all_reduce))
    }

    fn pass(&self, way: Way, (from, count): (i64, i64), momentum: f64, all_reduce: Option<Sum>) -> Found {
        let device = way.device();
        let part =
            |t: &Tensor, kind| channels_last(&t.narrow(0, from, count).to_kind(kind).to_device(device));
        let leaf = |t: Tensor| t.detach().set_requires_grad(true);
        let (x, residual) =
            (leaf(part(&self.x, self.kind)), self.residual.as_ref().map(|r| leaf(part(r, self.kind))));
        let vector = |t: &Tensor| leaf(t.to_kind(Kind::Float).to_device(device));
        let (scale, shift) = (vector(&self.scale), vector(&self.shift));
        let (running_mean, running_var) = (scale.zeros_like().detach(), scale.ones_like().detach());
        let norm = BatchNorm {
            scale: &scale,
            shift: &shift,
            running_mean: &running_mean,
            running_var: &running_var,
            epsilon: EPSILON,
        };
        let statistics = Statistics::Batch { momentum, all_reduce };
        let y = way.forward(&norm, &x, residual.as_ref(), self.relu, statistics);
        assert_eq!((y.kind(), y.size(), y.stride()), (self.kind, x.size(), x.stride()));
        let weighted = |y: &Tensor, weights| y.f_mul(&part(weights, self.kind)).unwrap().sum(Kind::Float);
        let of_branch = self.of_branch.as_ref().map(|weights| weighted(&branch(&y).unwrap(), weights));
        let loss = weighted(&y, &self.weights);
        of_branch.map_or_else(|| loss.shallow_clone(), |more| &loss + more).backward();
        let f64 = |t: Tensor| t.detach().to_kind(Kind::Double).to_device(Device::Cpu);
        Found {
            y: f64(y),
            dx: f64(x.grad()),
            d_residual: residual.map(|residual| f64(residual.grad())),
            d_scale: f64(scale.grad()),
            d_shift: f64(shift.grad()),
            running_mean: f64(running_mean),
            running_var: f64(running_var),
        }
    }

    pub fn rows(&self) -> i64 {
        self.x.size()[0]
    }
}

/// |found - expected| within `tolerance` of |expected| (root of the sum of squares).
pub fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let norm = |t: &Tensor| t.square().sum(Kind::Double).sqrt().double_value(&[]);
    let error = norm(&(found - expected)) / norm(expected);
    assert!(error < tolerance, "{what}: off by {error:e}, allowed {tolerance:e}"); // NaN fails too
}

pub fn variants() -> Vec<Case> {
    let mut cases = Vec::new();
    for shape in [&[37, 5][..], &[16, 96], &[6, 8, 5, 3], &[4, 130, 3, 3]] {
        for kind in [Kind::Float, Kind::BFloat16] {
            for (relu, residual) in [(false, false), (true, false), (false, true), (true, true)] {
                cases.push(Case::new(shape, kind, relu, residual));
            }
        }
    }
    cases
}

impl Case {
    pub fn name(&self) -> String {
        format!("{:?} {:?} relu {} residual {}", self.x.size(), self.kind, self.relu, self.residual.is_some())
    }

    /// Relative tolerances of values in the dtype under test (bf16 has 8 significant bits), and of f32 values.
    pub fn tolerances(&self) -> (f64, f64) {
        (if self.kind == Kind::BFloat16 { 3e-3 } else { 2e-6 }, 2e-6)
    }
}

pub fn compare(name: &str, found: &Found, expected: &Found, (values, vectors): (f64, f64)) {
    close(&format!("{name}: y"), &found.y, &expected.y, values);
    close(&format!("{name}: dx"), &found.dx, &expected.dx, values);
    if let (Some(found), Some(expected)) = (&found.d_residual, &expected.d_residual) {
        close(&format!("{name}: gradient of the residual"), found, expected, values);
    }
    close(&format!("{name}: gradient of the scale"), &found.d_scale, &expected.d_scale, vectors);
    close(&format!("{name}: gradient of the shift"), &found.d_shift, &expected.d_shift, vectors);
    close(&format!("{name}: running mean"), &found.running_mean, &expected.running_mean, vectors);
    close(&format!("{name}: running variance"), &found.running_var, &expected.running_var, vectors);
}
