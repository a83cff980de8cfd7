//! Where the time of a step goes: its operations by phase and kind, with multiplications, memory traffic and launches, and its convolutions
//! by shape. Eager execution, since a CUDA graph has no operations to record. Operations of other threads (`in_parallel`) are not recorded; their time
//! is that of `simclr::in_parallel`.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
};

use simclr::{
    exec::StepContext,
    losses::SingleProcess,
    methods::{BatchSlice, Method as _, SimClr},
    optim::{self, Optimizer},
};
use simclr_shim::profile::{Layout, Operation, profile};
use tch::{Kind, Tensor};

/// Operations that return another view of the same memory, memory without values, or their argument.
const WITHOUT_TRAFFIC: [&str; 29] = [
    "alias",
    "as_strided",
    "as_strided_",
    "chunk",
    "contiguous",
    "detach",
    "detach_",
    "diagonal",
    "empty",
    "empty_like",
    "empty_strided",
    "expand",
    "narrow",
    "permute",
    "reshape",
    "resize_",
    "resolve_conj",
    "select",
    "set_",
    "slice",
    "split",
    "squeeze",
    "t",
    "to",
    "transpose",
    "unbind",
    "unsqueeze",
    "view",
    "_unsafe_view",
];

/// Operations that are listed by name for each phase.
const LISTED: usize = 5;

/// Recorded steps; the durations are their means.
const RECORDED_STEPS: u32 = 3;

/// Sums over the operations of a row of the table.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    /// Operations that move data: on a GPU at least as many kernel launches.
    launches: usize,
    milliseconds: f64,
    /// Two per multiplication with addition; convolutions and matrix products only.
    flop: f64,
    /// Read or written once, as if every operation were perfect.
    bytes: f64,
}

impl Sums {
    fn add(&mut self, other: Self) {
        self.launches += other.launches;
        self.milliseconds += other.milliseconds;
        self.flop += other.flop;
        self.bytes += other.bytes;
    }
}

/// Number and milliseconds of operations by name, for each phase.
type ByName = BTreeMap<&'static str, BTreeMap<String, (usize, f64)>>;

/// Phases and kinds in the order of their appearance.
type Table = Vec<((&'static str, &'static str), Sums)>;

/// Rates that a device does not exceed.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub tera_flop_per_second: f64,
    pub gigabytes_per_second: f64,
}

/// Prints the account of a step of `method` on `views` `[2N, C, S, S]`. The bound of a row is the longer of its arithmetic and its memory
/// traffic at `limits`, by default those of this device.
pub fn print(
    context: &StepContext<'_>,
    method: &SimClr,
    optimizer: &mut Optimizer,
    views: &Tensor,
    lr: f64,
    limits: Option<Limits>,
) -> Result<(), Box<dyn Error>> {
    let limits = limits.map_or_else(|| measured_limits(views), Ok)?;
    let mut table = Table::new();
    let (mut by_name, mut convolutions) = (ByName::new(), BTreeSet::new());
    for _ in 0..RECORDED_STEPS {
        for (phase, operations) in phases(context, method, optimizer, views, lr)? {
            add(&mut table, &mut by_name, phase, &operations);
            for operation in operations.iter().filter(|operation| is_forward_convolution(operation)) {
                convolutions.insert(shapes(operation));
            }
        }
    }
    print_table(&table, views.size()[0], limits);
    print_longest(&by_name);
    println!("\nconvolutions by shape, alone, TFLOP/s (ms): forward, gradient of the data, of the weights");
    for shapes in convolutions {
        print_convolution(&shapes, views)?;
    }
    Ok(())
}

type Phases = Vec<(&'static str, Vec<Operation>)>;

/// The operations of a step. The loss has a backward pass of its own, as with gradient caching.
fn phases(
    context: &StepContext<'_>,
    method: &SimClr,
    optimizer: &mut Optimizer,
    views: &Tensor,
    lr: f64,
) -> Result<Phases, Box<dyn Error>> {
    let images = views.size()[0] / 2;
    let (embedded, forward) = profile(views, || method.embed(views, images, &context.train_mode()))?;
    let z = embedded?.1;
    let leaf = z.detach().set_requires_grad(true);
    let slice = BatchSlice { ids: &[], batch_images: images as usize, group: &SingleProcess };
    let ((), loss) = profile(views, || method.objective(&leaf, &slice).loss.backward())?;
    let (done, backward) = profile(views, || simclr_shim::backward(&z, &leaf.grad()))?;
    done?;
    let (done, update) = profile(views, || -> Result<(), Box<dyn Error>> {
        if optim::kernels_available(method.params()) {
            let _norm = optim::gradient_norm_on_gpu(method.params())?;
        } else {
            optim::gradient_norm(method.params())?;
        }
        Ok(optimizer.step(method.params(), lr)?)
    })?;
    done?;
    Ok(vec![("forward", forward), ("loss", loss), ("backward", backward), ("update", update)])
}

fn add(table: &mut Table, by_name: &mut ByName, phase: &'static str, operations: &[Operation]) {
    let moving = moving(operations);
    let mut own: Vec<i64> = operations.iter().map(|operation| operation.nanoseconds as i64).collect();
    for operation in operations {
        if let Some(parent) = operation.parent {
            own[parent] -= operation.nanoseconds as i64;
        }
    }
    let by_name = by_name.entry(phase).or_default();
    for (index, operation) in operations.iter().enumerate() {
        let key = (phase, kind(operations, index));
        let row = table.iter().position(|(found, _)| *found == key).unwrap_or_else(|| {
            table.push((key, Sums::default()));
            table.len() - 1
        });
        let counts = moving[index] || is_batch_norm(&operation.name);
        let (flop, bytes) = if counts { cost(operation) } else { (0.0, 0.0) };
        let milliseconds = own[index].max(0) as f64 / 1e6;
        let named = by_name.entry(operation.name.clone()).or_default();
        *named = (named.0 + 1, named.1 + milliseconds);
        table[row].1.add(Sums { launches: usize::from(moving[index]), milliseconds, flop, bytes });
    }
}

/// Which operations read or write values themselves: those that call no other that does, and the gradient of a convolution, `bmm` and `baddbmm`,
/// which copy tensors besides. A batch norm or max-pooling is one, or the kernels that it calls.
fn moving(operations: &[Operation]) -> Vec<bool> {
    let mut moving = vec![false; operations.len()];
    let mut calls_kernels = vec![false; operations.len()];
    let mut calls_moving = moving.clone();
    for (index, operation) in operations.iter().enumerate().rev() {
        let name = operation.name.as_str();
        let is_operation = name.starts_with("simclr::")
            || name.strip_prefix("aten::").is_some_and(|name| !WITHOUT_TRAFFIC.contains(&name));
        moving[index] = match name {
            _ if name.ends_with("convolution_backward") || matches!(name, "aten::baddbmm" | "aten::bmm") => {
                true
            }
            _ if name.starts_with("Simclr") || is_batch_norm(name) => !calls_kernels[index],
            _ => is_operation && !calls_moving[index],
        };
        if let Some(parent) = operation.parent {
            calls_moving[parent] |= moving[index] || calls_moving[index];
            calls_kernels[parent] |= name.starts_with("simclr::");
        }
    }
    moving
}

fn is_batch_norm(name: &str) -> bool {
    name == "simclr::batch_norm" || name.starts_with("Simclr") && name.contains("BatchNorm")
}

fn is_forward_convolution(operation: &Operation) -> bool {
    operation.name == "aten::conv2d"
}

/// Of the operation or of the next caller that has one; whatever the gradient of a convolution calls is convolution.
fn kind(operations: &[Operation], index: usize) -> &'static str {
    let mut callers = std::iter::successors(Some(index), |&index| operations[index].parent);
    if callers.any(|index| operations[index].name == "SimclrConvolutionBackward") {
        return "convolution";
    }
    let of = |name: &str| match name {
        "aten::conv2d" | "ConvolutionBackward0" => Some("convolution"),
        name if is_batch_norm(name) => Some("batch norm, ReLU"),
        "aten::mm" | "aten::addmm" | "aten::linear" | "aten::bmm" | "aten::matmul" | "aten::baddbmm" => {
            Some("matrix product")
        }
        name if name.to_lowercase().replace('_', "").contains("maxpool") => Some("pooling"),
        "aten::_to_copy" | "ToCopyBackward0" => Some("change of type"),
        "torch::autograd::AccumulateGrad" => Some("gradient accumulation"),
        _ => None,
    };
    let mut next = Some(index);
    while let Some(index) = next {
        if let Some(kind) = of(&operations[index].name) {
            return kind;
        }
        next = operations[index].parent;
    }
    "other"
}

fn defined(layouts: &[Layout]) -> Vec<&[i64]> {
    layouts.iter().filter_map(Layout::shape).collect()
}

fn count(shape: &[i64]) -> f64 {
    shape.iter().product::<i64>() as f64
}

/// Floating-point operations and bytes.
fn cost(operation: &Operation) -> (f64, f64) {
    let total = |layouts: &[Layout]| layouts.iter().map(Layout::bytes).sum::<usize>() as f64;
    let (read, written) = (total(&operation.inputs), total(&operation.outputs));
    let inputs = defined(&operation.inputs);
    let name = operation.name.as_str();
    if name == "simclr::batch_norm" {
        // Moments read x; normalisation reads x and the residual and writes y, as large as x.
        let x = operation.inputs[0].bytes() as f64;
        return (0.0, read + 2.0 * x);
    }
    if is_batch_norm(name) {
        // Both passes read x and dy (and y after a residual, not counted); the second writes dx. The first reads the gradient of a
        // branch, too.
        let dy = operation.inputs.iter().map(Layout::bytes).max().unwrap_or_default() as f64;
        return (0.0, 4.0 * dy + read);
    }
    let flop = match name {
        _ if name.ends_with("convolution_backward") => {
            let gradients = operation.outputs.iter().take(2).filter(|layout| layout.bytes() > 0).count();
            gradients as f64 * convolution_flop(inputs[0], inputs[2])
        }
        _ if name.ends_with("convolution") => {
            defined(&operation.outputs).first().map_or(0.0, |y| convolution_flop(y, inputs[1]))
        }
        "aten::mm" => 2.0 * count(inputs[0]) * inputs[1][1] as f64,
        "aten::addmm" => 2.0 * count(inputs[1]) * inputs[2][1] as f64,
        "aten::bmm" => 2.0 * count(inputs[0]) * inputs[1][2] as f64,
        "aten::baddbmm" => 2.0 * count(inputs[1]) * inputs[2][2] as f64,
        _ => 0.0,
    };
    // The target of a copy is an argument, too.
    let overwrites = matches!(name, "aten::copy_" | "aten::fill_" | "aten::zero_");
    (flop, if overwrites { read } else { read + written })
}

/// `y` `[B, out, H, W]`, `weight` `[out, in, k, k]`.
fn convolution_flop(y: &[i64], weight: &[i64]) -> f64 {
    2.0 * count(y) * count(&weight[1..])
}

fn print_table(table: &Table, views: i64, limits: Limits) {
    let Limits { tera_flop_per_second, gigabytes_per_second } = limits;
    let steps = f64::from(RECORDED_STEPS);
    let per_step =
        |sums: &Sums| [sums.milliseconds / steps, sums.flop / steps / 1e9, sums.bytes / steps / 1e9];
    let bound = |sums: &Sums| {
        let [_, gflop, gb] = per_step(sums);
        (gflop / tera_flop_per_second).max(1e3 * gb / gigabytes_per_second)
    };
    let line = |name: &str, sums: &Sums, total: f64, bound: f64| {
        let [ms, gflop, gb] = per_step(sums);
        println!(
            "{name:<32} {:>8} {ms:>9.2} {:>6.1} {gflop:>8.1} {:>8.2} {gb:>7.2} {:>7.1} {bound:>9.2}",
            sums.launches / RECORDED_STEPS as usize,
            100.0 * sums.milliseconds / total,
            gflop / ms,
            1e3 * gb / ms,
        );
    };
    let mut total = Sums::default();
    table.iter().for_each(|(_, sums)| total.add(*sums));
    println!("account of an eager step of {views} views, mean of {RECORDED_STEPS}");
    println!(
        "bounds: {tera_flop_per_second:.2} TFLOP/s (bf16 product), {gigabytes_per_second:.1} GB/s (copy)"
    );
    println!(
        "{:<32} {:>8} {:>9} {:>6} {:>8} {:>8} {:>7} {:>7} {:>9}",
        "phase: kind", "launches", "ms", "%", "GFLOP", "TFLOP/s", "GB", "GB/s", "bound, ms"
    );
    for ((phase, kind), sums) in table.iter().filter(|(_, sums)| sums.milliseconds > 0.0) {
        line(&format!("{phase}: {kind}"), sums, total.milliseconds, bound(sums));
    }
    line("step", &total, total.milliseconds, table.iter().map(|(_, sums)| bound(sums)).sum());
}

/// The operations of each phase with the longest times of their own.
fn print_longest(by_name: &ByName) {
    for (phase, operations) in by_name {
        let mut longest: Vec<_> = operations.iter().collect();
        longest.sort_by(|(_, (_, a)), (_, (_, b))| b.total_cmp(a));
        let text = longest.iter().take(LISTED).map(|(name, (calls, milliseconds))| {
            let (calls, milliseconds) =
                (calls / RECORDED_STEPS as usize, milliseconds / f64::from(RECORDED_STEPS));
            format!("{name} {milliseconds:.2} ms ({calls})")
        });
        println!("{phase}, longest operations (calls): {}", text.collect::<Vec<_>>().join(", "));
    }
}

/// What one bf16 matrix product and one copy reach on the device of `like`.
fn measured_limits(like: &Tensor) -> Result<Limits, Box<dyn Error>> {
    let side = if like.device().is_cuda() { 8192 } else { 2048 };
    let matrix = Tensor::randn([side, side], (Kind::Float, like.device())).to_kind(Kind::BFloat16);
    let values = Tensor::zeros([64 << 20], (Kind::Float, like.device()));
    let target = values.copy();
    let product = fastest(like, &|| {
        drop(matrix.mm(&matrix));
        Ok(())
    })?;
    let copy = fastest(like, &|| {
        target.shallow_clone().copy_(&values);
        Ok(())
    })?;
    Ok(Limits {
        tera_flop_per_second: 2.0 * (side as f64).powi(3) / product / 1e12,
        gigabytes_per_second: 2.0 * 4.0 * values.numel() as f64 / copy / 1e9,
    })
}

/// Shapes of input, kernel and output of a convolution, with the bytes of an element.
type Convolution = (usize, Vec<i64>, Vec<i64>, Vec<i64>);

fn shapes(operation: &Operation) -> Convolution {
    let (x, weight, y) = (&operation.inputs[0], &operation.inputs[1], &operation.outputs[0]);
    let shape = |layout: &Layout| layout.shape().unwrap_or_default().to_vec();
    let element = x.bytes() / count(&shape(x)) as usize;
    (element, shape(x), shape(weight), shape(y))
}

/// Seconds on the device of `like`, fastest of five.
fn fastest(like: &Tensor, work: &dyn Fn() -> Result<(), Box<dyn Error>>) -> Result<f64, Box<dyn Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        let (done, operations) = profile(like, work)?;
        done?;
        let roots = operations.iter().filter(|operation| operation.parent.is_none());
        best = best.min(roots.map(|operation| operation.nanoseconds).sum::<u64>() as f64 / 1e9);
    }
    Ok(best)
}

/// The convolution and its two gradients, each alone.
fn print_convolution(
    (element, x_shape, weight_shape, y_shape): &Convolution,
    like: &Tensor,
) -> Result<(), Box<dyn Error>> {
    let kind = if *element == 2 { Kind::BFloat16 } else { Kind::Float };
    let random = |shape: &[i64]| {
        let values = Tensor::randn(shape, (Kind::Float, like.device())).to_kind(kind);
        simclr::device::channels_last(&values)
    };
    let (x, weight, dy) = (random(x_shape), random(weight_shape), random(y_shape));
    let (stride, padding) = (x_shape[2] / y_shape[2], weight_shape[2] / 2);
    let convolve =
        |x: &Tensor, weight: &Tensor| x.conv2d(weight, None::<&Tensor>, [stride], [padding], [1], 1);
    let forward = fastest(like, &|| {
        let _no_grad = tch::no_grad_guard();
        drop(convolve(&x, &weight));
        Ok(())
    })?;
    let gradient = |of_data: bool| {
        let leaf = |tensor: &Tensor, wanted: bool| tensor.detach().set_requires_grad(wanted);
        let backward = fastest(like, &|| {
            let y = convolve(&leaf(&x, of_data), &leaf(&weight, !of_data));
            Ok(simclr_shim::backward(&y, &dy)?)
        })?;
        Ok::<f64, Box<dyn Error>>(backward - forward)
    };
    let flop = convolution_flop(y_shape, weight_shape);
    let text = |seconds: f64| format!("{:8.3} ({:8.3})", flop / seconds / 1e12, 1e3 * seconds);
    println!(
        "{:>4} -> {:<4} {}x{} / {stride}, {:>3} px: {} {} {}",
        x_shape[1],
        y_shape[1],
        weight_shape[2],
        weight_shape[3],
        x_shape[2],
        text(forward),
        text(gradient(true)?),
        text(gradient(false)?),
    );
    Ok(())
}
