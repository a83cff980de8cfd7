//! Recording of the operations that a closure runs, with durations (C++ side: `profile.cpp`).

use std::{
    ffi::c_char,
    sync::{Mutex, PoisonError},
};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{ShimError, check, take};

unsafe extern "C" {
    fn simclr_profile_begin(like: *const C_tensor, handle: *mut u64) -> *mut c_char;
    fn simclr_profile_end(handle: u64) -> *mut c_char;
}

/// An ATen operation (`aten::mm`), a node of the autograd graph (`ConvolutionBackward0`) or a kernel of ours (`simclr::...`).
#[derive(Debug, Clone, PartialEq)]
pub struct Operation {
    /// As libtorch names it.
    pub name: String,
    /// Index of the operation that called it.
    pub parent: Option<usize>,
    /// From begin to end: on the CPU of the call, on a GPU of the stream. Includes the operations that it called.
    pub nanoseconds: u64,
    /// Tensor arguments, also those in lists.
    pub inputs: Vec<Layout>,
    /// Tensor results.
    pub outputs: Vec<Layout>,
}

/// Size of a tensor argument or result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// An undefined tensor, such as a gradient that is not needed.
    Undefined,
    /// Bytes of an element and shape.
    Defined(usize, Vec<i64>),
}

impl Layout {
    /// `None` if undefined.
    pub fn shape(&self) -> Option<&[i64]> {
        match self {
            Self::Undefined => None,
            Self::Defined(_, shape) => Some(shape),
        }
    }

    /// Bytes of all elements.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Undefined => 0,
            Self::Defined(element, shape) => element * shape.iter().product::<i64>() as usize,
        }
    }

    fn parse_all(text: &str) -> Option<Vec<Self>> {
        let parse = |word: &str| {
            let Some((element, shape)) = word.split_once(':') else { return Some(Self::Undefined) };
            let sides = shape.split(',').filter(|side| !side.is_empty()).map(str::parse);
            Some(Self::Defined(element.parse().ok()?, sides.collect::<Result<_, _>>().ok()?))
        };
        text.split_whitespace().map(parse).collect()
    }
}

/// Recordings share one list on the C++ side.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The result of `work`, and the operations that it ran on the device of `like`, on this thread and in backward passes that this thread
/// started, in the order of their begins.
///
/// # Errors
/// libtorch errors.
pub fn profile<T>(like: &Tensor, work: impl FnOnce() -> T) -> Result<(T, Vec<Operation>), ShimError> {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut handle = 0;
    // SAFETY: `like` lives; `handle` is written on success.
    check(unsafe { simclr_profile_begin(like.as_ptr(), &mut handle) })?;
    let result = work();
    // SAFETY: `handle` was written above and is used once.
    let text = take(unsafe { simclr_profile_end(handle) }).unwrap_or_default();
    let parsed = text.lines().map(parse).collect::<Option<Vec<_>>>();
    Ok((result, parsed.ok_or_else(|| ShimError("the recording cannot be parsed".into()))?))
}

/// The result of `work`, and the names of the ATen operations and of our kernels that it ran, such as `aten::item`. For tests: a captured
/// step must not synchronise with the host.
///
/// # Errors
/// libtorch errors.
pub fn operations<T>(work: impl FnOnce() -> T) -> Result<(T, Vec<String>), ShimError> {
    let (result, operations) = profile(&Tensor::from(0.0), work)?;
    Ok((result, operations.into_iter().map(|operation| operation.name).collect()))
}

fn parse(line: &str) -> Option<Operation> {
    let mut fields = line.split('\t');
    let parent: i64 = fields.next()?.parse().ok()?;
    let nanoseconds = fields.next()?.parse().ok()?;
    let name = fields.next()?.to_owned();
    let inputs = Layout::parse_all(fields.next()?)?;
    let outputs = Layout::parse_all(fields.next()?)?;
    Some(Operation { name, parent: usize::try_from(parent).ok(), nanoseconds, inputs, outputs })
}
