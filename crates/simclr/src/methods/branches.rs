//! Which network encodes which views, and where its output lies in the embedding that executors pass around.

use tch::{Kind, Tensor};

use super::shuffle::Shuffle;
use crate::{
    ModelError,
    encoder::Mode,
    model::{Model, Stages},
};

/// The passes of the networks over the views of a batch or chunk, and the layout of the embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branches {
    /// The trained network encodes all views in one pass: z `[rows, D]`.
    Single,
    /// The trained network encodes first views, the other one second views: z `[rows, D]`, queries and then keys.
    Asymmetric,
    /// Both networks encode first views, then second views, in passes of their own: z `[rows, 2 D]`, query and key of every view.
    Symmetric,
    /// Both networks encode all views in one pass: z `[rows, 2 D]`, query and key of every view.
    Joint,
}

/// The rows of one pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// First row.
    pub start: i64,
    /// Number of rows.
    pub rows: i64,
    /// Number of first views among them if there are second views, too, else 0.
    pub first_of_pairs: i64,
}

/// The momentum encoder or the teacher of a method.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Encoder and head.
    pub model: &'a Model,
    /// Permutation of the images of a pass.
    pub shuffle: Option<&'a Shuffle>,
    /// Whether it never changes and always runs in evaluation mode, as the teacher of a distillation.
    pub is_fixed: bool,
}

impl Target<'_> {
    /// The mode of a pass while the trained network is in `mode`.
    pub fn mode(is_fixed: bool, mode: &Mode) -> Mode {
        if is_fixed { Mode::Eval } else { mode.clone() }
    }
}

impl Branches {
    /// Passes of the trained network over `rows` views, the first `first` of which are first views.
    pub fn queries(self, first: i64, rows: i64) -> Vec<Pass> {
        let pass = |start, rows| Pass { start, rows, first_of_pairs: 0 };
        match self {
            Self::Single | Self::Joint => {
                vec![Pass { first_of_pairs: if first < rows { first } else { 0 }, ..pass(0, rows) }]
            }
            Self::Asymmetric => vec![pass(0, first)],
            Self::Symmetric => vec![pass(0, first), pass(first, rows - first)],
        }
    }

    /// Passes of the other network.
    pub fn keys(self, first: i64, rows: i64) -> Vec<Pass> {
        match self {
            Self::Single => Vec::new(),
            Self::Asymmetric => vec![Pass { start: first, rows: rows - first, first_of_pairs: 0 }],
            Self::Symmetric | Self::Joint => self.queries(first, rows),
        }
    }

    /// The embedding from the outputs of all passes.
    pub fn join(self, queries: &[Tensor], keys: &[Tensor]) -> Tensor {
        let rows = |parts: &[Tensor]| {
            if parts.len() == 1 { parts[0].shallow_clone() } else { Tensor::cat(parts, 0) }
        };
        match self {
            Self::Single => rows(queries),
            Self::Asymmetric => Tensor::cat(&[rows(queries), rows(keys).detach()], 0),
            Self::Symmetric | Self::Joint => Tensor::cat(&[rows(queries), rows(keys).detach()], 1),
        }
    }

    /// The part of `gradient`, with respect to the embedding, at the output of a pass of the trained network.
    pub fn query_gradient(self, gradient: &Tensor, pass: Pass) -> Tensor {
        let gradient = gradient.narrow(0, pass.start, pass.rows);
        match self {
            Self::Single | Self::Asymmetric => gradient,
            Self::Symmetric | Self::Joint => gradient.narrow(1, 0, gradient.size()[1] / 2),
        }
        .contiguous()
    }

    /// Rows `[2m, D]`, i and i + m being a query of a first view and the key of its second view.
    pub fn positive_pairs(self, z: &Tensor) -> Tensor {
        match self {
            Self::Single | Self::Asymmetric => z.shallow_clone(),
            Self::Symmetric | Self::Joint => {
                let ((queries, keys), own) = (self.split(z), z.size()[0] / 2);
                Tensor::cat(&[queries.narrow(0, 0, own), keys.narrow(0, own, own)], 0)
            }
        }
    }

    /// Splits the embedding into queries and keys: of first and second views, or of every view.
    pub fn split(self, z: &Tensor) -> (Tensor, Tensor) {
        let dim = i64::from(matches!(self, Self::Symmetric | Self::Joint));
        let half = z.size()[dim as usize] / 2;
        (z.narrow(dim, 0, half), z.narrow(dim, half, half))
    }
}

/// h of all queries `[., F]` and the embedding of `views`.
pub(super) fn embed(
    branches: Branches,
    (online, target): (&Model, Option<Target<'_>>),
    (views, first): (&Tensor, i64),
    mode: &Mode,
) -> Result<(Tensor, Tensor), ModelError> {
    let rows = views.size()[0];
    let (mut hs, mut queries, mut keys) = (Vec::new(), Vec::new(), Vec::new());
    for pass in branches.queries(first, rows) {
        let (h, z) = encode(online, None, (views, pass), mode)?;
        hs.push(h);
        queries.push(z);
    }
    for (pass, target) in branches.keys(first, rows).into_iter().zip(target.iter().cycle()) {
        let mode = Target::mode(target.is_fixed, mode);
        let encoded = tch::no_grad(|| encode(target.model, target.shuffle, (views, pass), &mode));
        keys.push(encoded?.1);
    }
    let h = if hs.len() == 1 { hs.swap_remove(0) } else { Tensor::cat(&hs, 0) };
    Ok((h, branches.join(&queries, &keys)))
}

/// Encodes the queries of `views` again and propagates `gradient`, with respect to the embedding, back through them.
pub(super) fn backward(
    branches: Branches,
    online: &Model,
    (views, first): (&Tensor, i64),
    mode: &Mode,
    gradient: &Tensor,
) -> Result<(), ModelError> {
    for pass in branches.queries(first, views.size()[0]).into_iter().filter(|pass| pass.rows > 0) {
        let (_, z) = encode(online, None, (views, pass), mode)?;
        backward_from(&z, &branches.query_gradient(gradient, pass))?;
    }
    Ok(())
}

/// Propagates `gradient` back from `output`; parameter gradients add up.
///
/// # Errors
/// libtorch errors.
pub fn backward_from(output: &Tensor, gradient: &Tensor) -> Result<(), ModelError> {
    Ok(simclr_shim::backward(output, gradient)?)
}

/// All stages of `stages` on the rows of `pass`, without gradient: the inputs of all stages, and the output.
///
/// # Errors
/// See [`Stages::run`].
pub fn run_stages(
    stages: &Stages,
    (views, pass): (&Tensor, Pass),
    mode: &Mode,
) -> Result<Vec<Tensor>, ModelError> {
    let mut values = vec![views.narrow(0, pass.start, pass.rows)];
    for stage in 0..stages.count() {
        let next = tch::no_grad(|| stages.run(stage, &values[stage], mode))?;
        values.push(next);
    }
    Ok(values)
}

/// h and z of one pass, in the order of its rows.
fn encode(
    model: &Model,
    shuffle: Option<&Shuffle>,
    (views, pass): (&Tensor, Pass),
    mode: &Mode,
) -> Result<(Tensor, Tensor), ModelError> {
    let rows = views.narrow(0, pass.start, pass.rows);
    if pass.rows == 0 {
        // Batch norm has no statistics of no rows.
        let empty = |width| Tensor::zeros([0, width], (Kind::Float, views.device()));
        return Ok((empty(model.encoder.feature_dim()), empty(model.embedding_dim())));
    }
    if let Some(shuffle) = shuffle.filter(|_| mode.groups() > 1) {
        let [order, inverse] = shuffle.order(pass.rows);
        let (h, z) = model.forward(&rows.index_select(0, &order), mode)?;
        return Ok((h.index_select(0, &inverse), z.index_select(0, &inverse)));
    }
    if mode.groups() > 1 && pass.first_of_pairs > 0 {
        let (h, z) = model.forward(&paired(&rows, pass.first_of_pairs, mode.groups()), mode)?;
        return Ok((h, unpaired(&z, pass.first_of_pairs, mode.groups())));
    }
    model.forward(&rows, mode)
}

/// First row and number of rows of the first and of the second views of every batch-norm group. Both views of an image are in the
/// same group, and the groups are those of [`crate::encoder::group_rows`].
fn pairs(rows: i64, first: i64, groups: usize) -> impl Iterator<Item = [(i64, i64); 2]> {
    let part = move |images: i64, group: usize| {
        let bound = |group: usize| images * group as i64 / groups as i64;
        (bound(group), bound(group + 1) - bound(group))
    };
    (0..groups).map(move |group| {
        let (start, count) = part(rows - first, group);
        [part(first, group), (first + start, count)]
    })
}

/// Rows such that both views of an image are in the same group: the first views of a group, then its second views.
fn paired(rows: &Tensor, first: i64, groups: usize) -> Tensor {
    let parts = pairs(rows.size()[0], first, groups).flatten();
    let parts: Vec<Tensor> = parts.map(|(start, count)| rows.narrow(0, start, count)).collect();
    Tensor::cat(&parts, 0)
}

/// The inverse of [`paired`].
fn unpaired(rows: &Tensor, first: i64, groups: usize) -> Tensor {
    let (mut firsts, mut seconds, mut at) = (Vec::new(), Vec::new(), 0);
    for [(_, first), (_, second)] in pairs(rows.size()[0], first, groups) {
        firsts.push(rows.narrow(0, at, first));
        seconds.push(rows.narrow(0, at + first, second));
        at += first + second;
    }
    firsts.extend(seconds);
    Tensor::cat(&firsts, 0)
}
