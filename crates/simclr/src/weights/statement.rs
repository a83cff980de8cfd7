//! Input statistics that accompany a file of weights: `config.json` of timm, `preprocessor_config.json` of transformers.

use std::path::Path;

use serde_json::Value;

/// Mean and standard deviation per channel, of values in `[0, 1]`.
pub(super) type Statistics = (Vec<f64>, Vec<f64>);

/// Files, and the place of mean and standard deviation in them.
const PLACES: [(&str, &str, &str); 3] = [
    ("config.json", "/pretrained_cfg/mean", "/pretrained_cfg/std"),
    ("config.json", "/mean", "/std"),
    ("preprocessor_config.json", "/image_mean", "/image_std"),
];

/// The statistics in a file next to `weights`, with the name of that file.
pub(super) fn find(weights: &Path) -> Option<(Statistics, &'static str)> {
    PLACES.iter().find_map(|(name, mean, std)| {
        let text = fs_err::read_to_string(weights.with_file_name(name)).ok()?;
        let file: Value = serde_json::from_str(&text).ok()?;
        let numbers = |place: &str| file.pointer(place).and_then(numbers);
        let (mean, std) = (numbers(mean)?, numbers(std)?);
        let is_usable = mean.len() == std.len() && !mean.is_empty() && std.iter().all(|value| *value > 0.0);
        is_usable.then_some(((mean, std), *name))
    })
}

fn numbers(list: &Value) -> Option<Vec<f64>> {
    list.as_array()?.iter().map(Value::as_f64).collect()
}

/// `values` for `channels` channels: unchanged, their mean for one channel, or repeated in order.
pub(super) fn for_channels(values: &[f64], channels: usize) -> Vec<f64> {
    match (values.len(), channels) {
        (0, _) => Vec::new(),
        (count, _) if count == channels => values.to_vec(),
        (count, 1) => vec![values.iter().sum::<f64>() / count as f64],
        (count, _) => (0..channels).map(|channel| values[channel % count]).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_timm_and_transformers_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let weights = folder.path().join("model.safetensors");
        assert_eq!(find(&weights), None);
        let write = |name: &str, text: &str| fs_err::write(folder.path().join(name), text).unwrap();
        write("preprocessor_config.json", r#"{"image_mean": [0.1, 0.2], "image_std": [0.3, 0.4]}"#);
        let expected = ((vec![0.1, 0.2], vec![0.3, 0.4]), "preprocessor_config.json");
        assert_eq!(find(&weights), Some(expected));
        write("config.json", r#"{"pretrained_cfg": {"mean": [0.5], "std": [0.25], "crop_pct": 0.9}}"#);
        assert_eq!(find(&weights), Some(((vec![0.5], vec![0.25]), "config.json")));
        write("config.json", r#"{"mean": [0.5], "std": [0]}"#);
        assert_eq!(find(&weights).unwrap().1, "preprocessor_config.json", "a deviation of 0 is unusable");
    }

    #[test]
    fn statistics_for_other_channel_counts() {
        let rgb = [0.3, 0.6, 0.9];
        assert_eq!(for_channels(&rgb, 3), rgb);
        assert!((for_channels(&rgb, 1)[0] - 0.6).abs() < 1e-12);
        assert_eq!(for_channels(&rgb, 5), [0.3, 0.6, 0.9, 0.3, 0.6]);
        assert_eq!(for_channels(&[], 5), [0.0; 0]);
    }
}
