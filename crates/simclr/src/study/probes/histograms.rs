//! Colour histograms of crops (paper, figure 6): crops of one image share their colours, so that histograms alone identify the image;
//! colour distortion removes that shortcut.

use simclr_data::{
    augment::{AugmentBuffers, apply},
    rng::Key,
};

use super::super::{arm::Run, table::Figures, workspace::Workspace};
use crate::EvalError;

/// Images of the retrieval.
const IMAGES: usize = 1000;
/// Bins of a channel.
const BINS: usize = 16;
/// Crops per image, and images, in the picture of intensities.
const DRAWN: (u64, usize) = (3, 2);

/// `retrieval`: share of first crops for which the second crop of the same image has the nearest histogram among the second crops of
/// all images, in percent; series `histogram`: image, crop, and the histogram over all channels.
pub(super) fn histograms(workspace: &Workspace, run: &Run, seed: u64) -> Result<Figures, EvalError> {
    let config = run.config(&workspace.scale, seed)?;
    let part = workspace.train_part(&run.images).thinned(IMAGES);
    let side = config.train.image_size;
    let mut buffers = AugmentBuffers::default();
    let mut of_view = |at: usize, view: u64| -> Result<Vec<f32>, EvalError> {
        let image = part.set.decode(part.indices[at])?;
        let key = Key { seed, epoch: 0, image: part.indices[at] as u64, view };
        let params = config.augment.draw(key, image.width, image.height);
        let mut pixels = vec![0.0; image.channels * side * side];
        apply(&image, &params, &config.augment, side, &mut pixels, &mut buffers);
        Ok(pixels)
    };
    let mut crops = [Vec::new(), Vec::new()];
    for at in 0..part.indices.len() {
        for (view, crops) in crops.iter_mut().enumerate() {
            crops.push(by_channel(&of_view(at, view as u64)?, side * side));
        }
    }
    let mut figures = Figures::of("retrieval", 100.0 * retrieval(&crops[0], &crops[1]));
    let mut drawn = Vec::new();
    for image in 0..DRAWN.1.min(part.indices.len()) {
        for crop in 0..DRAWN.0 {
            let own = histogram(&of_view(image, crop)?);
            drawn.push(
                [vec![image as f64, crop as f64], own.iter().map(|&x| f64::from(x)).collect()].concat(),
            );
        }
    }
    figures.series.insert("histogram".into(), drawn);
    Ok(figures)
}

/// Shares of the intensities in `[0, 1]` in each bin.
fn histogram(pixels: &[f32]) -> [f32; BINS] {
    let mut counts = [0.0; BINS];
    for value in pixels {
        counts[((value * BINS as f32) as usize).min(BINS - 1)] += 1.0 / pixels.len() as f32;
    }
    counts
}

/// The histograms of all channels, one after the other.
fn by_channel(pixels: &[f32], area: usize) -> Vec<f32> {
    pixels.chunks(area).flat_map(histogram).collect()
}

/// Share of `queries` for which the entry of `bank` at the same position is nearest (L1, of equal ones the first).
fn retrieval(queries: &[Vec<f32>], bank: &[Vec<f32>]) -> f64 {
    let distance = |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum() };
    let nearest = |query: &Vec<f32>| {
        let distances = bank.iter().map(|other| distance(query, other)).enumerate();
        distances.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(at, _)| at)
    };
    let right = queries.iter().enumerate().filter(|(at, query)| nearest(query) == Some(*at)).count();
    right as f64 / queries.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_count_shares() {
        let counts = histogram(&[0.0, 0.05, 0.99, 1.0]);
        assert_eq!((counts[0], counts[15]), (0.5, 0.5));
        assert_eq!(by_channel(&[0.0, 0.0, 1.0, 1.0], 2).len(), 2 * BINS);
    }

    #[test]
    fn the_nearest_histogram_is_retrieved() {
        let bank = [vec![1.0, 0.0], vec![0.0, 1.0]];
        assert_eq!(retrieval(&[vec![0.9, 0.1], vec![0.2, 0.8]], &bank), 1.0);
        assert_eq!(retrieval(&[vec![0.9, 0.1], vec![0.8, 0.2]], &bank), 0.5);
    }
}
