//! What must not change a loss, and where its gradient must not point.

use simclr::losses::{LossConfig, contrastive_loss};
use tch::{Kind, Tensor};

use super::{cases, oracle::both, pairs};

#[test]
fn losses_do_not_depend_on_the_order_of_images_or_of_views() {
    let n = 7;
    let z = pairs(n, 5, 61, 0.8);
    let view = |view: i64| z.narrow(0, view * n, n);
    let swapped = Tensor::cat(&[view(1), view(0)], 0);
    let reversed = Tensor::cat(&[view(0).flip([0]), view(1).flip([0])], 0);
    for (keys, config) in cases() {
        let value = |z: &Tensor| contrastive_loss(z, &config).loss.double_value(&[]);
        let whole = value(&z);
        for other in [&swapped, &reversed] {
            assert!(
                (value(other) - whole).abs() < 1e-5 * whole.abs().max(1.0),
                "{keys}: {} {whole}",
                value(other)
            );
        }
        // The views of one image in the other order change which similarities are of the other side, so only pairs may move.
        let mixed = Tensor::cat(&[view(0).roll([1], [0]), view(1)], 0);
        assert!((value(&mixed) - whole).abs() > 1e-4, "{keys}: pairs do not matter");
    }
}

#[test]
fn gradients_are_orthogonal_to_normalised_rows() {
    for (keys, config) in cases().into_iter().filter(|(_, config)| config.normalize) {
        let z = pairs(9, 4, 71, 0.8);
        let (_, gradient) = both(&z, &config);
        let along = (&gradient * &z).sum_dim_intlist([1i64].as_slice(), false, Kind::Float).abs().max();
        assert!(along.double_value(&[]) < 1e-5 / config.temperature, "{keys}: {along}");
        assert!(gradient.abs().max().double_value(&[]) > 1e-4, "{keys}");
        let scaled = contrastive_loss(&(&z * 3.0), &config).loss.double_value(&[]);
        let value = contrastive_loss(&z, &config).loss.double_value(&[]);
        assert!((scaled - value).abs() < 1e-5 * value.abs().max(1.0), "{keys}: {scaled} {value}");
    }
}

/// Accuracy is over the N views of the other side, for every loss and choice of negatives.
#[test]
fn accuracy_does_not_depend_on_the_loss() {
    let z = pairs(60, 4, 81, 0.8);
    let accuracy = |config: &LossConfig| contrastive_loss(&z, config).accuracy.double_value(&[]);
    let expected = accuracy(&LossConfig::default());
    assert!(expected > 0.1 && expected < 0.9, "{expected}");
    for (keys, config) in cases().iter().filter(|(_, config)| config.normalize) {
        assert_eq!(accuracy(config), expected, "{keys}");
    }
}
