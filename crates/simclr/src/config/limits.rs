//! Upper bounds of numbers in a configuration. A value above is a slip: it would overflow, take all memory or never end. Whether a
//! run within the bounds fits this machine is decided when it starts.

use serde_json::json;

use super::RunConfig;
use crate::ConfigError;

const DAYS_30: f64 = 30.0 * 24.0 * 60.0;

const LIMITS: &[(&str, f64)] = &[
    ("data.channels", 1024.0),
    ("data.prefetch", 1024.0),
    ("data.threads", 1024.0),
    ("encoder.patch", 2048.0),
    ("encoder.width", 64.0),
    ("head.hidden", 65_536.0),
    ("head.layers", 64.0),
    ("head.out", 65_536.0),
    ("moco.queue", 1e8),
    ("optim.warmup_epochs", 1e7),
    ("train.batch", 1e7),
    ("train.checkpoint_minutes", DAYS_30),
    ("train.chunk", 1e7),
    ("train.epochs", 1e7),
    ("train.keep_checkpoints", 1e6),
    ("train.knn_every", 1e7),
    ("train.memory_gib", 1e6),
    ("train.minutes", DAYS_30),
    ("train.threads", 1024.0),
    ("dist.heartbeat_timeout_s", 60.0 * DAYS_30),
    ("dist.straggler_timeout_min", DAYS_30),
];

/// # Errors
/// [`ConfigError::Value`] for the first key above its bound.
pub(super) fn check(config: &RunConfig) -> Result<(), ConfigError> {
    let values = json!(config);
    for (key, most) in LIMITS {
        let (section, name) = key.split_once('.').unwrap_or_default();
        let value = &values[section][name];
        if value.as_f64().is_some_and(|value| value > *most) {
            return Err(ConfigError::Value {
                key: (*key).to_owned(),
                value: value.to_string(),
                expected: format!("at most {most}"),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every key exists, its default is within the bound, and a value above is refused.
    #[test]
    fn every_limit_is_enforced() {
        let defaults = json!(RunConfig::default());
        for (key, most) in LIMITS {
            let (section, name) = key.split_once('.').unwrap();
            let default = defaults[section][name].as_f64().unwrap_or_else(|| panic!("{key} is a number"));
            assert!(default <= *most, "{key}");
            let whole = defaults[section][name].is_u64() || defaults[section][name].is_i64();
            for value in if whole { ["100000001", "9223372036854775807"] } else { ["1e9", "1e300"] } {
                let error = RunConfig::load(None, &[format!("{key}={value}")]).unwrap_err().to_string();
                assert!(error.contains(key) && error.contains("at most"), "{key} = {value}: {error}");
            }
        }
    }
}
