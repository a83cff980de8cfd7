//! `simclr study`.

use std::{
    path::Path,
    process::{Child, Command, ExitCode},
};

use serde_json::json;
use simclr::study::{
    Job, Plan, Report, Scale, Study, Workspace, catalogue, collect, conduct, overview, write,
};

use super::{data_path, pretrain::watch_signals};
use crate::{args, failure::Failure, report::Terminal, terminal};

/// Hours that all studies with three seeds are planned to.
const MOST_HOURS: f64 = 6.0;

/// Plans the studies, runs their jobs, writes their pages and the overview.
pub fn run(arguments: &args::Study) -> Result<ExitCode, Failure> {
    let studies = chosen(&arguments.names)?;
    if arguments.seeds() == 0 || arguments.jobs == 0 {
        return Err(Failure::user("--seeds and --jobs: expected at least 1", None));
    }
    let scale = Scale::of(arguments.budget(), &arguments.set);
    let data = data_path(&arguments.data)?;
    let mut workspace = Workspace::open(data.as_deref(), &arguments.out, &scale)?;
    workspace.threads = processors().div_ceil(arguments.jobs);
    let plan = Plan::of(&workspace, &studies, arguments.seeds())?;
    if arguments.plan {
        terminal::result(&if arguments.json { plan_facts(&plan) } else { plan_text(&plan) });
        return Ok(ExitCode::SUCCESS);
    }
    let (stop, _) = watch_signals()?;
    if arguments.worker {
        conduct(&workspace, &plan.jobs, &mut simclr::train::Silent, &stop)?;
        return Ok(ExitCode::SUCCESS);
    }
    terminal::message(&plan_text(&plan));
    let workers = Workers::start(arguments.jobs - 1)?;
    let mut reports = Vec::new();
    for study in &studies {
        let jobs: Vec<Job> = plan.jobs.iter().filter(|job| job.study == study.name).cloned().collect();
        conduct(&workspace, &jobs, &mut Terminal::new(), &stop)?;
        reports.push(report(&workspace, study, arguments)?);
        write_overview(workspace.out())?;
    }
    drop(workers);
    if arguments.json {
        terminal::result(&json!(reports).to_string());
    }
    Ok(ExitCode::SUCCESS)
}

/// The studies of these names, each once.
fn chosen(names: &[String]) -> Result<Vec<&'static Study>, Failure> {
    if names.iter().any(|name| name == "all") {
        return Ok(catalogue::ALL.to_vec());
    }
    let mut found: Vec<&Study> = Vec::new();
    for name in names {
        let study = catalogue::find(name).ok_or_else(|| {
            let known: Vec<&str> = catalogue::ALL.iter().map(|study| study.name).collect();
            Failure::user(format!("no study `{name}`"), Some(format!("expected all, {}", known.join(", "))))
        })?;
        if found.iter().all(|other| other.name != study.name) {
            found.push(study);
        }
    }
    Ok(found)
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn plan_text(plan: &Plan) -> String {
    let hours = plan.hours();
    let warning = format!(
        "\nnote: more than the {MOST_HOURS} hours that all studies are planned to on two cores; --jobs, fewer --seeds"
    );
    let warning = if hours > MOST_HOURS { warning } else { String::new() };
    format!("{}about {hours:.2} h, estimated from steps timed on this machine{warning}", plan.text())
}

fn plan_facts(plan: &Plan) -> String {
    let job = |job: &Job| json!({ "study": job.study, "arm": job.arm.name, "seed": job.seed, "seconds": job.seconds, "done": job.is_done });
    json!({ "hours": plan.hours(), "jobs": plan.jobs.iter().map(job).collect::<Vec<_>>() }).to_string()
}

/// Writes the page of a study and prints its verdict.
fn report(workspace: &Workspace, study: &Study, arguments: &args::Study) -> Result<Report, Failure> {
    let table = collect(workspace, study, arguments.seeds())?;
    let report = Report::of(workspace, study, table, arguments.seeds(), &arguments.command(study.name));
    let page = write(workspace, study, &report)?;
    let line = format!("{:<26} {:<30} {}", study.name, report.verdict.text(), page.display());
    if arguments.json {
        terminal::message(&line)
    } else {
        terminal::result(&line)
    }
    Ok(report)
}

/// `README.md`: all studies, with their results where they have been run.
fn write_overview(out: &Path) -> Result<(), Failure> {
    let stored = catalogue::ALL.iter().map(|study| (*study, Report::stored(out, study)));
    let text = overview(&stored.collect::<Vec<_>>());
    Ok(simclr::data::atomic_file::write(&out.join("README.md"), text.as_bytes())?)
}

/// Processes that run the same command as workers; they end when no job is left, and with the value.
struct Workers(Vec<Child>);

impl Workers {
    fn start(count: usize) -> Result<Self, Failure> {
        let program = std::env::current_exe()?;
        let start = || {
            let words = std::env::args_os().skip(1);
            Command::new(&program).args(words).arg("--worker").stdout(std::process::Stdio::null()).spawn()
        };
        Ok(Self((0..count).map(|_| start()).collect::<Result<_, _>>()?))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            // A worker that is still at work when all figures are stored, or after a failure, has nothing left to do.
            let _ = worker.kill();
            let _ = worker.wait();
        }
    }
}
