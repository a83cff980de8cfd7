//! TintedShapes: synthetic 32 x 32 images in which colour identifies the image and is independent of the class, so that a network that
//! compares colours solves the contrastive task without learning classes. The class is a silhouette at a random place, size and angle;
//! foreground and background colours are drawn for every image, with a low-frequency texture and noise.

use std::{io::Error, path::Path};

use crate::{
    atomic_file,
    rng::{Key, Stream},
};

/// Side of an image.
pub const SIDE: usize = 32;
/// The silhouettes, in label order.
pub const CLASSES: [&str; 10] =
    ["disc", "ring", "square", "triangle", "cross", "star", "bars", "crescent", "half-disc", "angle"];
/// Standard deviation of the noise.
const NOISE: f32 = 0.05;
/// Largest amplitude of the texture.
const TEXTURE: f32 = 0.1;
/// Least distance between the two colours, so that the silhouette is visible.
const CONTRAST: f32 = 0.4;
/// Samples per pixel and direction.
const SAMPLES: usize = 2;

/// Whether the silhouette `class` covers the point (`u`, `v`), which lies in `[-1, 1]^2` where it can.
fn covers(class: usize, u: f32, v: f32) -> bool {
    let (radius, angle) = (u.hypot(v), v.atan2(u));
    let square = u.abs().max(v.abs());
    match class {
        0 => radius < 0.85,
        1 => (0.55..0.95).contains(&radius),
        2 => square < 0.72,
        3 => v > -0.55 && v < 0.95 - 1.732 * u.abs(),
        4 => square < 0.9 && u.abs().min(v.abs()) < 0.24,
        5 => radius < 0.55 + 0.4 * (5.0 * angle).cos(),
        6 => (0.25..0.7).contains(&u.abs()) && v.abs() < 0.85,
        7 => radius < 0.9 && (u - 0.45).hypot(v) > 0.7,
        8 => radius < 0.95 && v > 0.0,
        _ => square < 0.8 && (u < -0.3 || v < -0.3),
    }
}

/// Place, size, angle, colours and texture of one image.
struct Drawn {
    centre: [f32; 2],
    scale: f32,
    angle: f32,
    /// Background and foreground.
    colors: [[f32; 3]; 2],
    /// Frequency in radians per pixel in both directions, phase, and amplitude by channel.
    waves: [([f32; 3], [f32; 3]); 2],
}

impl Drawn {
    fn of(stream: &mut Stream) -> Self {
        let scale = stream.uniform(8.0, 13.0);
        let mut place = || stream.uniform(scale - 1.0, SIDE as f32 - scale + 1.0);
        let centre = [place(), place()];
        let angle = stream.uniform(0.0, std::f32::consts::TAU);
        let colors = Self::colors(stream);
        let wave = |_| {
            let space = [stream.uniform(-0.4, 0.4), stream.uniform(-0.4, 0.4), stream.uniform(0.0, 6.3)];
            (space, [0; 3].map(|_| stream.uniform(-TEXTURE, TEXTURE)))
        };
        Self { centre, scale, angle, colors, waves: [0, 1].map(wave) }
    }

    /// Two colours at least [`CONTRAST`] apart.
    fn colors(stream: &mut Stream) -> [[f32; 3]; 2] {
        let color = |stream: &mut Stream| [0; 3].map(|_| stream.unit());
        let back = color(stream);
        loop {
            let front = color(stream);
            let squares: f32 = back.iter().zip(front).map(|(a, b)| (a - b).powi(2)).sum();
            if squares.sqrt() >= CONTRAST {
                return [back, front];
            }
        }
    }

    /// Share of pixel (`x`, `y`) that the silhouette covers.
    fn coverage(&self, class: usize, x: usize, y: usize) -> f32 {
        let (sin, cos) = self.angle.sin_cos();
        let at = |pixel: usize, sample: usize, centre: f32| {
            (pixel as f32 + (sample as f32 + 0.5) / SAMPLES as f32 - centre) / self.scale
        };
        let inside = |sample: &usize| {
            let (dx, dy) = (at(x, sample % SAMPLES, self.centre[0]), at(y, sample / SAMPLES, self.centre[1]));
            covers(class, cos * dx + sin * dy, cos * dy - sin * dx)
        };
        let all = SAMPLES * SAMPLES;
        (0..all).filter(inside).count() as f32 / all as f32
    }

    fn texture(&self, x: usize, y: usize, channel: usize) -> f32 {
        let wave = |(space, amplitude): &([f32; 3], [f32; 3])| {
            amplitude[channel] * (space[0] * x as f32 + space[1] * y as f32 + space[2]).sin()
        };
        self.waves.iter().map(wave).sum()
    }
}

/// Image `index` of the set `seed`, of the class `index % 10`: three planes of [`SIDE`] x [`SIDE`] bytes.
pub fn image(seed: u64, index: usize) -> Vec<u8> {
    let mut stream = Key { seed, epoch: 0, image: index as u64, view: 2 }.stream();
    let drawn = Drawn::of(&mut stream);
    let class = index % CLASSES.len();
    let area = SIDE * SIDE;
    let coverage: Vec<f32> = (0..area).map(|at| drawn.coverage(class, at % SIDE, at / SIDE)).collect();
    let noise = stream.normals(3 * area);
    let value = |at: usize| {
        let (channel, pixel) = (at / area, at % area);
        let [back, front] = drawn.colors.map(|color| color[channel]);
        let flat = back + coverage[pixel] * (front - back);
        let value = flat + drawn.texture(pixel % SIDE, pixel / SIDE, channel) + NOISE * noise[at];
        (255.0 * value.clamp(0.0, 1.0)).round() as u8
    };
    (0..3 * area).map(value).collect()
}

/// Writes a set as CIFAR-10 binary files into `folder`: `train` and `test` images with equally many of each class.
///
/// # Errors
/// Those of the operating system.
pub fn write(folder: &Path, seed: u64, train: usize, test: usize) -> Result<(), Error> {
    let records = |range: std::ops::Range<usize>| -> Vec<u8> {
        let record = |index: usize| {
            let label = (index % CLASSES.len()) as u8;
            std::iter::once(label).chain(image(seed, index))
        };
        range.flat_map(record).collect()
    };
    fs_err::create_dir_all(folder)?;
    atomic_file::write(&folder.join("batches.meta.txt"), (CLASSES.join("\n") + "\n").as_bytes())?;
    atomic_file::write(&folder.join("data_batch_1.bin"), &records(0..train))?;
    atomic_file::write(&folder.join("test_batch.bin"), &records(train..train + test))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dataset, Split, dataset::Channels};

    #[test]
    fn a_written_set_is_opened_with_its_classes() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 3, 40, 20).unwrap();
        for (split, images) in [(Split::Train, 40), (Split::Test, 20)] {
            let set = Dataset::open(folder.path(), split, Channels::Auto).unwrap();
            assert_eq!((set.len(), set.classes()), (images, &CLASSES.map(str::to_owned)[..]));
            let labels = set.labels().unwrap();
            let of_class = |class: u32| labels.iter().filter(|label| **label == class).count();
            assert!((0..10).all(|class| of_class(class) == images / 10));
        }
    }

    #[test]
    fn images_are_a_function_of_seed_and_index() {
        assert_eq!(image(1, 7), image(1, 7));
        assert_ne!(image(1, 7), image(2, 7));
        assert_ne!(image(1, 7), image(1, 17));
    }

    /// Pearson correlation between the mean of a channel and the class, over images: colour carries no class information. Each lies
    /// within 4 / sqrt(n).
    #[test]
    fn colour_is_independent_of_the_class() {
        let images = 1000;
        for channel in 0..3 {
            let mean = |index: usize| {
                let pixels = &image(5, index)[channel * SIDE * SIDE..][..SIDE * SIDE];
                pixels.iter().map(|&value| f64::from(value)).sum::<f64>() / pixels.len() as f64
            };
            let means: Vec<f64> = (0..images).map(mean).collect();
            let average = means.iter().sum::<f64>() / images as f64;
            let deviation = means.iter().map(|x| (x - average).powi(2)).sum::<f64>().sqrt();
            for class in 0..CLASSES.len() {
                let own = |index: usize| if index % CLASSES.len() == class { 0.9 } else { -0.1 };
                let product: f64 = means.iter().enumerate().map(|(at, x)| (x - average) * own(at)).sum();
                let norm = (0..images).map(|at| own(at).powi(2)).sum::<f64>().sqrt();
                let correlation = product / deviation / norm;
                assert!(correlation.abs() < 4.0 / (images as f64).sqrt(), "{channel} {class} {correlation}");
            }
        }
    }

    /// Silhouettes differ: two classes in one place disagree on at least a twentieth of the square.
    #[test]
    fn silhouettes_differ() {
        let points = |class: usize| -> Vec<bool> {
            let at = |index: usize| index as f32 / 20.0 - 1.0;
            (0..41 * 41).map(|index| covers(class, at(index % 41), at(index / 41))).collect()
        };
        for (a, one) in CLASSES.iter().enumerate() {
            for (b, other) in CLASSES.iter().enumerate().take(a) {
                let differ = points(a).iter().zip(points(b)).filter(|(a, b)| **a != *b).count();
                assert!(differ > 41 * 41 / 20, "{one} {other}: {differ}");
            }
        }
    }
}
