//! Batch norm against the formula in f64, its derivatives, and a batch split over members.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use simclr_shim::{
    BatchNorm, Cuda, Statistics, Sum,
    gpu::{Order, emulated, prepare},
    instructions, load_cuda, use_instructions,
};
use tch::{Device, Kind, Tensor};

const EPSILON: f64 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// The kernels of the CPU, those of GPUs (emulated, in either order of their threads, or on a GPU), or libtorch's operations as
/// where there are none.
#[derive(Debug, Clone, Copy)]
enum Way {
    Fused,
    Gpu(Order),
    OnGpu,
    Composed,
}

const WAYS: [Way; 4] = [Way::Fused, Way::Gpu(Order::Rising), Way::Gpu(Order::Falling), Way::Composed];

impl Way {
    fn device(self) -> Device {
        if matches!(self, Self::OnGpu) { Device::Cuda(0) } else { Device::Cpu }
    }

    /// Does something, a backward pass maybe, in this way.
    fn doing<T>(self, work: impl FnOnce() -> T) -> T {
        if let Self::Gpu(order) = self { emulated(order, work) } else { work() }
    }

    fn forward(
        self,
        norm: &BatchNorm,
        x: &Tensor,
        residual: Option<&Tensor>,
        relu: bool,
        statistics: Statistics,
    ) -> Tensor {
        match self {
            Self::Fused | Self::Gpu(_) | Self::OnGpu => norm.forward(x, residual, relu, statistics).unwrap(),
            Self::Composed => norm.forward_composed(x, residual, relu, statistics).unwrap(),
        }
    }
}

/// What goes in, in f64 but exact in the type under test.
struct Case {
    x: Tensor,
    residual: Option<Tensor>,
    scale: Tensor,
    shift: Tensor,
    /// Gradient of the loss by the output.
    weights: Tensor,
    kind: Kind,
    relu: bool,
}

/// What comes out, in f64.
struct Found {
    y: Tensor,
    dx: Tensor,
    d_residual: Option<Tensor>,
    d_scale: Tensor,
    d_shift: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

fn channels_last(x: &Tensor) -> Tensor {
    if x.dim() == 2 { x.shallow_clone() } else { x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]) }
}

/// Seeds libtorch's generator, which all threads share, and keeps other tests from drawing meanwhile.
fn drawing(seed: i64) -> MutexGuard<'static, ()> {
    static GENERATOR: Mutex<()> = Mutex::new(());
    let turn = GENERATOR.lock().unwrap_or_else(PoisonError::into_inner);
    tch::manual_seed(seed);
    turn
}

impl Case {
    fn new(shape: &[i64], kind: Kind, relu: bool, residual: bool) -> Self {
        let _turn = drawing(shape.iter().sum::<i64>());
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
            kind,
            relu,
        }
    }

    /// The formula; statistics over everything but channels.
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
        (self.formula(x, residual, scale, shift) * &self.weights).sum(Kind::Double).double_value(&[])
    }

    /// Slope of the loss along a direction of each input, by central differences in f64: x, residual, scale, shift.
    fn slopes(&self, along: [&Tensor; 4]) -> [f64; 4] {
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

    /// The formula differentiated by libtorch in f64.
    fn oracle(&self) -> Found {
        let leaf = |t: &Tensor| t.copy().set_requires_grad(true);
        let (x, residual) = (leaf(&self.x), self.residual.as_ref().map(leaf));
        let (scale, shift) = (leaf(&self.scale), leaf(&self.shift));
        let y = self.formula(&x, residual.as_ref(), &scale, &shift);
        (&y * &self.weights).sum(Kind::Double).backward();
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

    /// The node under test on rows `from .. from + count`.
    fn run(&self, way: Way, rows: (i64, i64), momentum: f64, exchange: Option<Sum>) -> Found {
        way.doing(|| self.pass(way, rows, momentum, exchange))
    }

    fn pass(&self, way: Way, (from, count): (i64, i64), momentum: f64, exchange: Option<Sum>) -> Found {
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
        let statistics = Statistics::Batch { momentum, exchange };
        let y = way.forward(&norm, &x, residual.as_ref(), self.relu, statistics);
        assert_eq!((y.kind(), y.size(), y.stride()), (self.kind, x.size(), x.stride()));
        y.f_mul(&part(&self.weights, self.kind)).unwrap().sum(Kind::Float).backward();
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

    fn rows(&self) -> i64 {
        self.x.size()[0]
    }
}

/// |found - expected| within `tolerance` of |expected| (root of the sum of squares).
fn close(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.size(), expected.size(), "{what}");
    let norm = |t: &Tensor| t.square().sum(Kind::Double).sqrt().double_value(&[]);
    let error = norm(&(found - expected)) / norm(expected);
    assert!(error < tolerance, "{what}: off by {error:e}, allowed {tolerance:e}"); // not a number fails too
}

fn variants() -> Vec<Case> {
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
    fn name(&self) -> String {
        format!("{:?} {:?} relu {} residual {}", self.x.size(), self.kind, self.relu, self.residual.is_some())
    }

    /// (of values in the type under test, of f32 values): a bf16 has 8 bits, so half a unit of them on average less.
    fn tolerances(&self) -> (f64, f64) {
        (if self.kind == Kind::BFloat16 { 3e-3 } else { 2e-6 }, 2e-6)
    }
}

fn compare(name: &str, found: &Found, expected: &Found, (values, vectors): (f64, f64)) {
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

#[test]
fn every_variant_is_the_formula_in_f64() {
    for case in variants() {
        for way in WAYS {
            let found = case.run(way, (0, case.rows()), MOMENTUM, None);
            compare(&format!("{} {way:?}", case.name()), &found, &case.oracle(), case.tolerances());
        }
    }
}

/// The same kernels without the emulation; and members, whose exchange is a sum with itself alone.
#[test]
#[ignore = "needs a GPU"]
fn on_a_gpu_every_variant_is_the_formula_in_f64() {
    assert_eq!(load_cuda(), Cuda::Loaded);
    prepare(&Tensor::zeros([1], (Kind::Float, Device::Cuda(0)))).unwrap();
    for case in variants() {
        let alone: Sum = Arc::new(|_: &Tensor| {});
        for exchange in [None, Some(alone)] {
            let found = case.run(Way::OnGpu, (0, case.rows()), MOMENTUM, exchange);
            compare(&format!("{} on a GPU", case.name()), &found, &case.oracle(), case.tolerances());
        }
    }
}

/// Held while the kernels are chosen, and where bits must not depend on them.
static INSTRUCTIONS: Mutex<()> = Mutex::new(());

/// Every build of the kernels that this machine can run.
#[test]
fn every_instruction_set_is_the_formula_in_f64() {
    let _held = INSTRUCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let best = instructions();
    let sets: Vec<_> =
        ["baseline", "avx2", "avx512"].into_iter().filter(|set| use_instructions(set).is_ok()).collect();
    assert!(sets.contains(&"baseline") && sets.last() == Some(&best.as_str()), "{best} of {sets:?}");
    for set in sets {
        use_instructions(set).unwrap();
        assert_eq!(instructions(), set);
        for case in variants() {
            let found = case.run(Way::Fused, (0, case.rows()), MOMENTUM, None);
            compare(&format!("{} {set}", case.name()), &found, &case.oracle(), case.tolerances());
        }
    }
    assert!(use_instructions("mmx").unwrap_err().to_string().contains("mmx"));
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for case in variants() {
        let found = case.run(Way::Fused, (0, case.rows()), MOMENTUM, None);
        let along = {
            let _turn = drawing(17);
            [&case.x, &case.x, &case.scale, &case.shift].map(Tensor::randn_like)
        };
        let slopes = case.slopes([0, 1, 2, 3].map(|at| &along[at]));
        let gradients =
            [Some(&found.dx), found.d_residual.as_ref(), Some(&found.d_scale), Some(&found.d_shift)];
        for (at, gradient) in gradients.into_iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let product = gradient * &along[at];
            let slope = product.sum(Kind::Double).double_value(&[]);
            // Rounding errors of a sum of n products are of the order of the products' norm.
            let scale = product.square().sum(Kind::Double).sqrt().double_value(&[]) + slope.abs();
            let tolerance = if case.kind == Kind::BFloat16 && at < 2 { 1e-2 } else { 1e-5 };
            let off = (slope - slopes[at]).abs() / scale;
            assert!(off < tolerance, "{} input {at}: {slope} but the slope is {}", case.name(), slopes[at]);
        }
    }
}

/// Threads that add their vectors up: each waits until all have brought theirs, then until all have taken the sum.
#[derive(Default)]
struct Meeting {
    state: Mutex<State>,
    change: Condvar,
}

#[derive(Default)]
struct State {
    sum: Option<Tensor>,
    arrived: usize,
    left: usize,
    calls: usize,
}

impl Meeting {
    fn sum(&self, members: usize, values: &Tensor) {
        let mut state = self.change.wait_while(self.state.lock().unwrap(), |state| state.left > 0).unwrap();
        state.sum = Some(state.sum.as_ref().map_or_else(|| values.copy(), |sum| sum + values));
        state.arrived += 1;
        state.calls += 1;
        self.change.notify_all();
        let mut state = self.change.wait_while(state, |state| state.arrived < members).unwrap();
        values.shallow_clone().copy_(state.sum.as_ref().unwrap());
        state.left += 1;
        if state.left == members {
            (state.sum, state.arrived, state.left) = (None, 0, 0);
        }
        self.change.notify_all();
    }
}

/// Runs `parts` (rows each) of a case as members of one exchange, each on a thread of its own.
fn together(case: &Case, way: Way, parts: &[i64]) -> (Vec<Found>, usize) {
    let meeting = Arc::new(Meeting::default());
    let members = parts.len();
    let mut from = 0;
    let threads: Vec<_> = parts
        .iter()
        .map(|&count| {
            let meeting = Arc::clone(&meeting);
            let sum: Sum = Arc::new(move |values: &Tensor| meeting.sum(members, values));
            let copy = Case {
                x: case.x.copy(),
                residual: case.residual.as_ref().map(Tensor::copy),
                scale: case.scale.copy(),
                shift: case.shift.copy(),
                weights: case.weights.copy(),
                ..*case
            };
            from += count;
            let rows = (from - count, count);
            std::thread::spawn(move || copy.run(way, rows, MOMENTUM, Some(sum)))
        })
        .collect();
    let found = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let calls = meeting.state.lock().unwrap().calls;
    (found, calls)
}

/// The parts of a batch put together again.
fn joined(found: &[Found]) -> Found {
    let all = |part: fn(&Found) -> &Tensor| found.iter().map(|found| part(found).copy()).collect::<Vec<_>>();
    let cat = |part| Tensor::cat(&all(part), 0);
    let sum = |part| Tensor::stack(&all(part), 0).sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
    for other in found {
        assert_eq!(other.running_mean, found[0].running_mean, "every member has the same bits");
        assert_eq!(other.running_var, found[0].running_var, "every member has the same bits");
    }
    Found {
        y: cat(|found| &found.y),
        dx: cat(|found| &found.dx),
        d_residual: found[0].d_residual.as_ref().map(|_| cat(|found| found.d_residual.as_ref().unwrap())),
        d_scale: sum(|found| &found.d_scale),
        d_shift: sum(|found| &found.d_shift),
        running_mean: found[0].running_mean.copy(),
        running_var: found[0].running_var.copy(),
    }
}

/// Chunks of 2 to 1 (and an uneven three) of a batch, which share their statistics, are that batch.
#[test]
fn members_of_an_exchange_are_one_batch() {
    let _held = INSTRUCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    for case in variants() {
        let third = case.rows() / 3;
        for (way, parts) in [
            (Way::Fused, vec![case.rows() - third, third]),
            (Way::Fused, vec![1, case.rows() - third - 1, third]),
            (Way::Gpu(Order::Rising), vec![1, case.rows() - third - 1, third]),
            (Way::Composed, vec![case.rows() - third, third]),
        ] {
            let (found, calls) = together(&case, way, &parts);
            assert_eq!(calls, 3 * parts.len(), "two exchanges forward and one backward, of every member");
            let name = format!("{} {way:?} in parts of {parts:?}", case.name());
            compare(&name, &joined(&found), &case.oracle(), case.tolerances());
            let alone = case.run(way, (0, case.rows()), MOMENTUM, None);
            let values = if case.kind == Kind::BFloat16 { 3e-3 } else { 1e-5 };
            compare(&name, &joined(&found), &alone, (values, 1e-5));
        }
    }
}

/// Statistics far from zero: the variance must not drown in the square of the mean.
#[test]
fn a_large_mean_does_not_spoil_the_variance() {
    let mut case = Case::new(&[64, 8, 4, 4], Kind::Float, false, false);
    case.x = channels_last(&(&case.x + 1000.0).to_kind(Kind::Float).to_kind(Kind::Double));
    let expected = case.oracle();
    for way in WAYS {
        for found in
            [case.run(way, (0, 64), MOMENTUM, None), together(&case, way, &[40, 24]).0.swap_remove(0)]
        {
            close("running variance", &found.running_var, &expected.running_var, 1e-4);
            close("running mean", &found.running_mean, &expected.running_mean, 1e-6);
        }
    }
}

#[test]
fn momentum_zero_leaves_the_running_statistics() {
    let case = Case::new(&[6, 8, 5, 3], Kind::Float, true, true);
    for way in WAYS {
        let found = case.run(way, (0, 6), 0.0, None);
        assert_eq!(found.running_mean.abs().max().double_value(&[]), 0.0);
        assert_eq!((found.running_var - 1.0).abs().max().double_value(&[]), 0.0);
    }
}

/// Inference normalises with the running statistics and leaves them, with a graph or without.
#[test]
fn inference_is_the_formula_with_running_statistics() {
    for case in variants() {
        let [x, scale, shift] = [&case.x, &case.scale, &case.shift].map(|t| t.to_kind(Kind::Float));
        let (mean, var) = (&shift * 0.5, &scale * &scale + 0.1);
        let (mean_before, var_before) = (mean.copy(), var.copy());
        let per_channel = |t: &Tensor| {
            let t = t.to_kind(Kind::Double);
            if x.dim() == 2 { t } else { t.view([-1, 1, 1]) }
        };
        let mut expected = (&case.x - per_channel(&mean)) / (per_channel(&var) + EPSILON).sqrt();
        expected = expected * per_channel(&scale) + per_channel(&shift);
        if let Some(residual) = &case.residual {
            expected += residual;
        }
        if case.relu {
            expected = expected.relu();
        }
        let norm = BatchNorm {
            scale: &scale,
            shift: &shift,
            running_mean: &mean,
            running_var: &var,
            epsilon: EPSILON,
        };
        let residual = case.residual.as_ref().map(|residual| residual.to_kind(case.kind));
        for graph in [false, true] {
            let x = x.to_kind(case.kind).set_requires_grad(graph);
            let y = norm.forward(&x, residual.as_ref(), case.relu, Statistics::Running).unwrap();
            assert_eq!((y.kind(), y.requires_grad()), (case.kind, graph));
            // libtorch rounds to bf16 before the residual and after.
            let tolerance = if case.kind == Kind::BFloat16 { 6e-3 } else { 2e-6 };
            close(&case.name(), &y.detach().to_kind(Kind::Double), &expected, tolerance);
        }
        assert_eq!((mean, var), (mean_before, var_before));
    }
}

/// The same numbers twice, on one thread and on all.
#[test]
fn the_number_of_threads_changes_no_bit() {
    let _held = INSTRUCTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    let case = Case::new(&[32, 64, 19, 19], Kind::BFloat16, true, true);
    let threads = tch::get_num_threads();
    let run = |threads: i32| {
        tch::set_num_threads(threads);
        case.run(Way::Fused, (0, 32), MOMENTUM, None)
    };
    let (one, two, again) = (run(1), run(2), run(2));
    tch::set_num_threads(threads);
    let parts: [fn(&Found) -> &Tensor; 6] =
        [|f| &f.y, |f| &f.dx, |f| &f.d_scale, |f| &f.d_shift, |f| &f.running_mean, |f| &f.running_var];
    for part in parts {
        assert!(part(&one) == part(&two) && part(&two) == part(&again));
    }
}

fn leaves() -> [Tensor; 5] {
    let options = (Kind::Float, Device::Cpu);
    let _turn = drawing(3);
    let [x, scale, shift] =
        [&[4, 3][..], &[3], &[3]].map(|shape| Tensor::randn(shape, options).set_requires_grad(true));
    [x, scale, shift, Tensor::zeros([3], options), Tensor::ones([3], options)]
}

fn norm([_, scale, shift, running_mean, running_var]: &[Tensor; 5]) -> BatchNorm<'_> {
    BatchNorm { scale, shift, running_mean, running_var, epsilon: EPSILON }
}

fn shared(sum: &Sum) -> Statistics {
    Statistics::Batch { momentum: MOMENTUM, exchange: Some(Arc::clone(sum)) }
}

/// The graph holds the exchange, and lets go of it with the graph; without gradients there is no graph.
#[test]
fn the_exchange_lives_as_long_as_the_graph() {
    for way in WAYS {
        let leaves = leaves();
        let sum: Sum = Arc::new(|_: &Tensor| {});
        let forward = || way.doing(|| way.forward(&norm(&leaves), &leaves[0], None, true, shared(&sum)));
        let y = tch::no_grad(forward);
        assert!(!y.requires_grad());
        assert_eq!(Arc::strong_count(&sum), 1, "nothing is kept under no_grad");
        let y = forward();
        assert_eq!(Arc::strong_count(&sum), 2);
        y.sum(Kind::Float).backward();
        drop(y);
        assert_eq!(Arc::strong_count(&sum), 1);
    }
}

/// A panic in the exchange unwinds through no C++ frame: it is an error of the pass, in its own words.
#[test]
fn a_panicking_exchange_is_an_error() {
    let leaves = leaves();
    let failing: Sum = Arc::new(|_: &Tensor| panic!("member {} is gone", 3));
    let error = norm(&leaves).forward(&leaves[0], None, false, shared(&failing)).unwrap_err();
    assert!(error.to_string().contains("member 3 is gone"), "{error}");
    for way in WAYS {
        let calls = Mutex::new(0);
        let later: Sum = Arc::new(move |_: &Tensor| {
            let mut calls = calls.lock().unwrap();
            *calls += 1;
            assert!(*calls < 3, "the peer hung up");
        });
        let y = way.doing(|| way.forward(&norm(&leaves), &leaves[0], None, false, shared(&later)));
        let error = y.sum(Kind::Float).f_backward().unwrap_err();
        assert!(error.to_string().contains("the peer hung up"), "{error}");
    }
}

/// A gradient that somebody else holds must not be overwritten, nor the input.
#[test]
fn the_backward_pass_overwrites_nothing_that_others_see() {
    for way in WAYS {
        for gates in [(false, false), (true, false), (false, true), (true, true)] {
            way.doing(|| overwrites_nothing(way, gates));
        }
    }
}

fn overwrites_nothing(way: Way, (relu, residual): (bool, bool)) {
    let case = Case::new(&[6, 8, 5, 3], Kind::Float, relu, residual);
    let f32 = |t: &Tensor| channels_last(&t.to_kind(Kind::Float));
    let (x, weights) = (f32(&case.x).set_requires_grad(true), f32(&case.weights));
    let (scale, shift) = (case.scale.to_kind(Kind::Float), case.shift.to_kind(Kind::Float));
    let (mean, var) = (scale.zeros_like(), scale.ones_like());
    let norm =
        BatchNorm { scale: &scale, shift: &shift, running_mean: &mean, running_var: &var, epsilon: EPSILON };
    let added = case.residual.as_ref().map(|residual| f32(residual).set_requires_grad(true));
    let statistics = Statistics::Batch { momentum: 0.0, exchange: None };
    let y = way.forward(&norm, &x, added.as_ref(), relu, statistics);
    let before = [&x, &weights, &y].map(|t| t.detach().copy());
    let leaves: Vec<_> = [Some(&x), added.as_ref()].into_iter().flatten().collect();
    let once = Tensor::run_backward(&[(&y * &weights).sum(Kind::Float)], &leaves, true, false);
    let twice = Tensor::run_backward(&[(&y * &weights).sum(Kind::Float)], &leaves, true, false);
    assert_eq!(once, twice);
    assert_eq!(before, [&x, &weights, &y].map(|t| t.detach().copy()));
}

/// The node has no second derivative and says so, rather than giving a wrong one.
#[test]
fn a_second_derivative_is_refused() {
    let leaves = leaves();
    let statistics = Statistics::Batch { momentum: 0.0, exchange: None };
    let y = norm(&leaves).forward(&leaves[0], None, false, statistics).unwrap().square().sum(Kind::Float);
    let error = Tensor::f_run_backward(&[y], &[&leaves[0]], true, true).unwrap_err();
    assert!(error.to_string().contains("second derivative"), "{error}");
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let leaves = leaves();
    let refused = |x: &Tensor, residual: Option<&Tensor>| {
        norm(&leaves).forward(x, residual, false, Statistics::Running).unwrap_err().to_string()
    };
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    assert!(refused(&zeros(&[4, 3, 2]), None).contains("[4, 3, 2]"));
    assert!(refused(&zeros(&[4, 5]), None).contains("5 channels"));
    assert!(refused(&zeros(&[4, 3]), Some(&zeros(&[3, 3]))).contains("[3, 3]"));
}
