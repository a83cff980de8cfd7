//! Every study: names, configurations, claims, cost, pages.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    super::{
        arm::{Arm, H, How, KNN, OWN, PRETEXT, Probe, Run, Z, has_second_network},
        criterion::{Quantity, Verdict},
        design::{RANDOM_INIT, SUPERVISED},
        page,
        report::Report,
        scale::{Budget, Scale},
        table::{Figures, Table},
    },
    *,
};

const BUDGETS: [Budget; 3] = [Budget::Cpu, Budget::Gpu, Budget::Quick];

fn scale(budget: Budget) -> Scale {
    Scale::of(budget, &[])
}

/// Names of the figures of a probe.
fn figures(probe: &Probe) -> Vec<String> {
    let names: &[&str] = match probe {
        Probe::Frozen => &[H, Z, KNN, PRETEXT],
        Probe::Classifier => &[OWN],
        Probe::Transformations => {
            &["rotation h", "rotation z", "gray h", "gray z", "noise h", "noise z", "Sobel h", "Sobel z"]
        }
        Probe::Spectrum => &["leading share"],
        Probe::Entropy => &["entropy"],
        Probe::Histograms => &["retrieval"],
        Probe::Pixels => &[H],
        Probe::Projection => &[],
        Probe::FewLabels(shares) => {
            return shares.iter().map(|share| format!("linear {} %", 100.0 * share)).collect();
        }
        Probe::Transfer(name, _) => return vec![format!("transfer {name}")],
    };
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Figures that a quantity refers to.
fn references(quantity: &Quantity) -> Vec<(String, &'static str)> {
    match quantity {
        Quantity::Of(arm, figure) => vec![(arm.clone(), figure)],
        Quantity::Best(arms, figure) | Quantity::Mean(arms, figure) | Quantity::Range(arms, figure) => {
            arms.iter().map(|arm| (arm.clone(), *figure)).collect()
        }
        Quantity::Constant(_) => Vec::new(),
        Quantity::Times(_, of) => references(of),
        Quantity::Minus(a, b) => [references(a), references(b)].concat(),
    }
}

#[test]
fn names_are_unique_and_found() {
    let names: BTreeSet<&str> = ALL.iter().map(|study| study.name).collect();
    assert_eq!(names.len(), 22);
    assert!(names.iter().all(|name| find(name).is_some_and(|study| study.name == *name)));
    assert!(find("all").is_none());
}

/// The run and all that it starts from.
fn chain(run: &Run) -> Vec<&Run> {
    let rest = run.source().map(chain).unwrap_or_default();
    std::iter::once(run).chain(rest).collect()
}

#[test]
fn every_run_of_every_study_has_a_valid_configuration() {
    for (budget, study) in BUDGETS.into_iter().flat_map(|budget| ALL.map(|study| (budget, study))) {
        for arm in study.rows(&scale(budget)) {
            for run in chain(&arm.run) {
                let config = run.config(&scale(budget), 3);
                let config = config.unwrap_or_else(|error| panic!("{}, {}: {error}", study.name, arm.name));
                let batch = config.train.batch;
                assert!(batch <= run.images.count, "{}, {}: {batch} images", study.name, arm.name);
                assert_eq!(config.train.seed, 3);
            }
        }
    }
}

#[test]
fn arms_have_names_of_their_own_and_claims_refer_to_them() {
    for study in ALL {
        let scale = scale(Budget::Cpu);
        let rows = study.rows(&scale);
        let arms: BTreeMap<&str, &Arm> = rows.iter().map(|arm| (arm.name.as_str(), arm)).collect();
        assert_eq!(arms.len(), rows.len(), "{}", study.name);
        let parts = (study.parts)(&scale);
        assert!(parts.iter().any(|part| part.decides), "{}", study.name);
        for part in &parts {
            for (arm, figure) in references(&part.quantity) {
                let found = arms.get(arm.as_str());
                let measured =
                    found.is_some_and(|arm| arm.probes.iter().flat_map(figures).any(|name| name == figure));
                assert!(measured, "{}: `{}` refers to {figure} of {arm}", study.name, part.claim);
            }
        }
        for (arm, _) in study.published {
            assert!(arms.contains_key(arm), "{}: {arm}", study.name);
        }
    }
}

/// Seconds on two cores of a machine on which the recipe trains 4,700 images/s: images passed, relative to the recipe's.
fn nominal_seconds(scale: &Scale, run: &Run) -> f64 {
    let config = run.config(scale, 1).unwrap();
    let images = run.images.count as f64;
    let views = if config.task.objective.is_contrastive() { 1.0 } else { 0.5 };
    let second = if has_second_network(&config) { 4.0 / 3.0 } else { 1.0 };
    // Convolutions cost the square of the width; half of the time is not theirs.
    let width = 0.5 + 0.5 * config.encoder.width.powi(2);
    // A step has a fixed cost of about 5 images.
    let steps = 1.0 + 5.0 / config.train.batch as f64;
    let passes = match &run.how {
        How::Fresh => 0.0,
        How::Fit => images * config.train.epochs * views,
        How::Distill { .. } => images * config.train.epochs * 0.75,
        How::Finetune { labels, .. } => images * labels * if *labels < 0.05 { 60.0 } else { 30.0 },
    };
    passes * second * width * steps / 4700.0
}

#[test]
fn all_studies_with_three_seeds_fit_into_six_hours() {
    let scale = scale(Budget::Cpu);
    let (mut runs, mut probes, mut seconds) = (BTreeSet::new(), BTreeSet::new(), 0.0);
    for arm in ALL.iter().flat_map(|study| study.rows(&scale)) {
        for run in chain(&arm.run) {
            if runs.insert(run.identity(&scale, 1).unwrap().to_string()) {
                seconds += nominal_seconds(&scale, run);
            }
        }
        for probe in &arm.probes {
            let key = format!("{} {probe:?}", arm.run.identity(&scale, 1).unwrap());
            // Measured: 1.7 s (median of 69) for frozen features, on one of two busy cores; others take at most 6 s.
            let measurement = if *probe == Probe::Frozen { 2.0 } else { 6.0 };
            seconds += if probes.insert(key) { measurement } else { 0.0 };
        }
    }
    let hours = 3.0 * seconds / 3600.0;
    assert!((3.0..6.0).contains(&hours), "{hours:.2} h, {} runs, {} probes", runs.len(), probes.len());
}

#[test]
fn runs_are_shared_between_studies() {
    let scale = scale(Budget::Cpu);
    let identity = |study: &str, arm: &str| {
        let rows = find(study).unwrap().rows(&scale);
        let arm = rows.iter().find(|found| found.name == arm).unwrap();
        arm.run.identity(&scale, 2).unwrap()
    };
    let recipe = identity("parts", "recipe");
    for (study, arm) in [
        ("head", "nonlinear, 64 dimensions"),
        ("temperature", "temperature 0.5"),
        ("color-strength", "SimCLR, s = 1/2"),
        ("few-labels", "SimCLR, linear on h"),
        ("linear-against-finetuning", "SimCLR, 1 x epochs"),
    ] {
        assert_eq!(identity(study, arm), recipe, "{study}");
    }
    assert_eq!(identity("model-size", "supervised, width 1"), identity("parts", SUPERVISED));
    assert_ne!(identity("parts", "without flips"), recipe);
    assert_ne!(identity("parts", RANDOM_INIT), recipe);
}

/// Some value for every figure and series of an arm.
fn some_figures(arm: &Arm, seed: u32) -> Figures {
    let mut all = Figures::default();
    for (at, name) in arm.probes.iter().flat_map(figures).enumerate() {
        all.set(name, 40.0 + at as f64 + 0.1 * f64::from(seed));
    }
    for name in ["h", "z", "histogram", "eigenvalues"] {
        all.series.insert(name.into(), vec![vec![0.0, 1.0, 2.0, 0.5]; 3]);
    }
    all
}

fn filled(study: &Study) -> Table {
    let seeds = |arm: &Arm| (0..3).map(|seed| some_figures(arm, seed)).collect();
    let rows = study.rows(&scale(Budget::Cpu));
    Table { arms: rows.iter().map(|arm| (arm.name.clone(), seeds(arm))).collect() }
}

#[test]
fn every_page_has_its_picture_table_and_verdict_and_needs_no_other_file() {
    for study in ALL {
        let (scale, table) = (scale(Budget::Cpu), filled(study));
        let parts: Vec<_> = (study.parts)(&scale).iter().map(|part| part.judge(&table)).collect();
        let report = Report {
            study: study.name.into(),
            simclr: "0".into(),
            verdict: Verdict::of(&parts),
            parts,
            table,
            seeds: 3,
            scale: serde_json::json!(scale),
            images: (10_000, 10_000, 10),
            command: format!("simclr study {}", study.name),
        };
        let pictures: Vec<String> =
            (study.pictures)(&scale, &report.table).iter().map(|picture| picture.svg().unwrap()).collect();
        let page = page::html(study, &report, &pictures);
        assert!(!pictures.is_empty() && page.matches("<svg").count() == pictures.len(), "{}", study.name);
        assert!(page.contains(&format!("Verdict: {}", report.verdict.text())), "{}", study.name);
        assert!(page.matches("<table>").count() == 2 && page.contains(RANDOM_INIT), "{}", study.name);
        for outside in ["src=", "href=", "url(", "<script", "<link"] {
            assert!(!page.contains(outside), "{}: {outside}", study.name);
        }
        let text = page::markdown(study, &report);
        assert!(
            text.contains(report.verdict.text()) && text.contains("| control: raw pixels |"),
            "{}",
            study.name
        );
        let verdict = report.verdict.text();
        let overview = page::overview(&[(study, Some(report)), (study, None)]);
        assert!(overview.contains(study.question) && overview.contains(verdict), "{}", study.name);
        assert_eq!(overview.matches("| not run |").count(), 1, "{}", study.name);
    }
}
