//! From h to two dimensions, for rows that come in parts.

use std::{str::FromStr, vec};

use tch::Tensor;

use super::{
    map::{Axes, Moments},
    umap::umap,
};
use crate::EvalError;

/// From h to two dimensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Projection {
    /// The first two principal components.
    #[default]
    Pca,
    /// UMAP.
    Umap,
}

impl FromStr for Projection {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "pca" => Ok(Self::Pca),
            "umap" => Ok(Self::Umap),
            _ => Err("expected pca or umap".into()),
        }
    }
}

/// Rows of a set, of which UMAP needs all at once.
#[derive(Debug)]
pub enum Projected {
    /// Moments of the rows so far.
    Pca(Moments),
    /// The rows so far.
    Umap(Vec<Tensor>),
}

/// Places of all rows of a set.
#[derive(Debug)]
pub enum Places {
    /// A place follows from its row.
    Pca(Axes),
    /// In the order of the rows.
    Umap(vec::IntoIter<[f64; 2]>),
}

impl Projected {
    /// Of no rows of `width` F.
    pub fn new(projection: Projection, width: usize) -> Self {
        match projection {
            Projection::Pca => Self::Pca(Moments::new(width)),
            Projection::Umap => Self::Umap(Vec::new()),
        }
    }

    /// Takes in the rows of `h` `[n, F]`.
    pub fn add(&mut self, h: &Tensor) {
        match self {
            Self::Pca(moments) => moments.add(h),
            Self::Umap(rows) => rows.push(h.to_device(tch::Device::Cpu)),
        }
    }

    /// The places, by `seed` for UMAP.
    ///
    /// # Errors
    /// libtorch's, for an eigenvalue problem that does not converge.
    pub fn places(self, seed: u64) -> Result<Places, EvalError> {
        match self {
            Self::Pca(moments) => Ok(Places::Pca(moments.axes()?)),
            Self::Umap(rows) if rows.is_empty() => Ok(Places::Umap(Vec::new().into_iter())),
            Self::Umap(rows) => Ok(Places::Umap(umap(&Tensor::cat(&rows, 0), seed)?.into_iter())),
        }
    }
}

impl Places {
    /// Shares of the variance along both axes of a linear map, in `[0, 1]`.
    pub fn variance(&self) -> Option<[f64; 2]> {
        match self {
            Self::Pca(axes) => Some(axes.variance),
            Self::Umap(_) => None,
        }
    }

    /// Those of the next rows, `h` `[n, F]`.
    ///
    /// # Errors
    /// Another width than that of the rows that were taken in.
    pub fn of_next(&mut self, h: &Tensor) -> Result<Vec<[f64; 2]>, EvalError> {
        match self {
            Self::Pca(axes) => axes.places(h),
            Self::Umap(places) => Ok(places.take(h.size()[0] as usize).collect()),
        }
    }
}
