//! `pretrain --log json`: events of a run on stderr, one JSON object per line, for collectors of logs.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};
use simclr::{
    health::Health,
    train::{Observer, StepReport},
};

use crate::{report::LINE_SECONDS, terminal};

/// Every object has `time` (seconds since 1970) and `event`: `start`, `step`, `health` or `message`.
#[derive(Debug, Default)]
pub struct JsonLog {
    last_step: Option<Instant>,
}

fn line(event: &str, fields: Value) {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let mut object = Map::from_iter([("time".into(), json!(time)), ("event".into(), json!(event))]);
    object.extend(fields.as_object().cloned().unwrap_or_default());
    terminal::message(&Value::Object(object).to_string());
}

impl Observer for JsonLog {
    fn start(&mut self, facts: &[(String, String)]) {
        let facts: Map<String, Value> =
            facts.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        line("start", json!({ "facts": facts }));
    }

    fn step(&mut self, report: &StepReport) {
        let due = self.last_step.is_none_or(|last| last.elapsed().as_secs() >= LINE_SECONDS);
        if due || report.step + 1 == report.total_steps {
            self.last_step = Some(Instant::now());
            line("step", json!(report));
        }
    }

    fn health(&mut self, health: &Health) {
        line("health", json!({ "verdict": health.verdict(), "health": health }));
    }

    fn message(&mut self, text: &str) {
        line("message", json!({ "text": text }));
    }
}
