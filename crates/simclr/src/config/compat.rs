//! Former names of configuration keys.

use toml::{Table, Value};

/// (former key, present key). The fields' serde aliases accept former keys, too.
const RENAMED: [(&str, &str); 10] = [
    ("data.views_on", "data.augment_on"),
    ("loss.scale", "loss.reduction"),
    ("optim.trust", "optim.lars_trust_coefficient"),
    ("ranks.silence_seconds", "dist.heartbeat_timeout_s"),
    ("ranks.stall_minutes", "dist.straggler_timeout_min"),
    ("task.images", "task.subset"),
    ("task.keep_head", "task.head_layers"),
    ("task.start", "task.init_from"),
    ("task.validation", "task.include_validation"),
    ("train.record_step", "train.cuda_graph"),
];

/// Renames former keys of `table` in place and returns a notice for each. If both names of a key are present, the former one is kept
/// and later refused as unknown.
pub(super) fn rename_former_keys(table: &mut Table) -> Vec<String> {
    RENAMED.iter().filter_map(|(former, present)| rename(table, former, present)).collect()
}

/// An override `key=value` under the present name of its key, and a notice if that is another one.
pub(super) fn rename_override(text: &str) -> (String, Option<String>) {
    let key = text.split('=').next().unwrap_or_default();
    match RENAMED.iter().find(|(former, _)| *former == key.trim()) {
        Some((former, present)) => {
            (format!("{present}{}", &text[key.len()..]), Some(notice(former, present)))
        }
        None => (text.to_owned(), None),
    }
}

fn rename(table: &mut Table, former: &str, present: &str) -> Option<String> {
    let (section, old) = former.split_once('.')?;
    let (new_section, new) = present.split_once('.')?;
    if table.get(new_section).and_then(|section| section.get(new)).is_some() {
        return None;
    }
    let value = table.get_mut(section)?.as_table_mut()?.remove(old)?;
    if table.get(section).and_then(Value::as_table).is_some_and(Table::is_empty) {
        table.remove(section);
    }
    let target = table.entry(new_section).or_insert_with(|| Value::Table(Table::new()));
    target.as_table_mut()?.insert(new.to_owned(), value);
    Some(notice(former, present))
}

fn notice(former: &str, present: &str) -> String {
    format!("`{former}` is now `{present}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RunConfig;

    #[test]
    fn former_keys_are_renamed_with_a_notice() {
        let mut table: Table = "[task]\nvalidation = true\n[train]\nbatch = 8".parse().unwrap();
        let notices = rename_former_keys(&mut table);
        assert_eq!(notices, ["`task.validation` is now `task.include_validation`"]);
        assert_eq!(table["task"]["include_validation"], Value::Boolean(true));
        assert!(rename_former_keys(&mut table).is_empty());
    }

    #[test]
    fn a_table_with_both_names_keeps_the_former_one() {
        let text = "[task]\nvalidation = true\ninclude_validation = false";
        let mut table: Table = text.parse().unwrap();
        assert!(rename_former_keys(&mut table).is_empty() && table["task"].get("validation").is_some());
    }

    #[test]
    fn overrides_of_former_keys_win_over_present_ones() {
        let overrides = ["task.include_validation=false", "task.validation=true"].map(str::to_owned);
        let (config, written) = RunConfig::load_written(None, &overrides).unwrap();
        assert!(config.task.include_validation && written.has("task.include_validation"));
        assert_eq!(written.notices(), ["`task.validation` is now `task.include_validation`"]);
    }

    /// Checkpoints and `config.toml` of older runs have former names.
    #[test]
    fn every_former_key_is_a_serde_alias() {
        for (former, present) in RENAMED {
            let default = Value::try_from(RunConfig::default()).unwrap();
            let (section, key) = present.split_once('.').unwrap();
            let value = default.get(section).and_then(|section| section.get(key)).cloned();
            let value = value.unwrap_or_else(|| Value::String("x".into()));
            let (section, key) = former.split_once('.').unwrap();
            let table = Table::from_iter([(
                section.to_owned(),
                Value::Table(Table::from_iter([(key.to_owned(), value)])),
            )]);
            assert!(Value::Table(table).try_into::<RunConfig>().is_ok(), "{former}");
        }
    }
}
