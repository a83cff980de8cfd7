//! The installed program: versions, known vulnerabilities of its dependencies, container files, permissions of files that it writes, files
//! and sockets that it opens.
//! `setup/dist.sh` checks the archive itself, which takes a build of its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

#[path = "support/source_files.rs"]
mod source_files;

use fs_err as fs;
use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use source_files::{files_below, root};
use support::{execute, image_folder, pretrain, simclr};

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// The version of the workspace.
fn version() -> String {
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    manifest["workspace"]["package"]["version"].as_str().unwrap().to_owned()
}

#[test]
fn versions_agree() {
    let version = version();
    assert_eq!(execute(&mut simclr(&["--version"])).out.trim(), format!("simclr {version}"));
    assert!(
        text("CHANGELOG.md").lines().any(|line| line == format!("## {version}")),
        "no entry for {version}"
    );
    let lock: toml::Table = text("Cargo.lock").parse().unwrap();
    let packages = lock["package"].as_array().unwrap().iter();
    let own = packages.filter(|package| package["name"].as_str().unwrap().starts_with("simclr"));
    let own: Vec<&str> = own.map(|package| package["version"].as_str().unwrap()).collect();
    assert_eq!(own, [version.as_str(); 4]);
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    assert!(text("README.md").contains(&format!("tar -xJf {}", archive().trim_start_matches("dist/"))));
    for name in ["simclr", "simclr-data", "simclr-shim"] {
        let wanted = manifest["workspace"]["dependencies"][name]["version"].as_str().unwrap();
        assert_eq!(wanted, version, "{name}");
    }
}

/// Whether an advisory that was patched in, or never concerned, these versions holds for `version`.
fn affects(version: &semver::Version, patched: &[&str], unaffected: &[&str]) -> bool {
    let matches = |range: &&str| semver::VersionReq::parse(range).unwrap().matches(version);
    !patched.iter().chain(unaffected).any(matches)
}

#[test]
fn advisories_hold_outside_the_patched_and_unaffected_versions() {
    let of = |version: &str| affects(&version.parse().unwrap(), &[">= 0.4.16", "^0.3.9"], &["< 0.2.0"]);
    assert_eq!(
        ["0.1.9", "0.2.0", "0.3.8", "0.3.9", "0.4.15", "0.4.16"].map(of),
        [false, true, true, false, true, false]
    );
    assert!(affects(&"1.0.0".parse().unwrap(), &[], &[]), "an advisory without a patched version");
}

/// `setup/advisories.toml` is RustSec's database of the date that it states, cut down to the packages of `Cargo.lock`.
#[test]
fn dependencies_have_no_known_vulnerability() {
    let lock: toml::Table = text("Cargo.lock").parse().unwrap();
    let known: toml::Table = text("setup/advisories.toml").parse().unwrap();
    let field = |entry: &toml::Value, name: &str| entry[name].as_str().unwrap().to_owned();
    let locked = lock["package"].as_array().unwrap().iter().filter(|package| package.get("source").is_some());
    let locked: Vec<(String, semver::Version)> =
        locked.map(|package| (field(package, "name"), field(package, "version").parse().unwrap())).collect();
    let covered = known["packages"].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
    let names: BTreeSet<&str> = locked.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        covered.collect(),
        "run setup/advisories.py with a clone of github.com/rustsec/advisory-db"
    );
    let mut found = Vec::new();
    for advisory in known["advisory"].as_array().unwrap() {
        let ranges = |name: &str| -> Vec<&str> {
            advisory[name].as_array().unwrap().iter().map(|range| range.as_str().unwrap()).collect()
        };
        let package = field(advisory, "package");
        let versions = locked.iter().filter(|(name, _)| *name == package);
        for (name, version) in
            versions.filter(|(_, version)| affects(version, &ranges("patched"), &ranges("unaffected")))
        {
            found.push(format!("{name} {version}: {} ({})", field(advisory, "id"), field(advisory, "kind")));
        }
    }
    let deny: toml::Table = text("deny.toml").parse().unwrap();
    for ignored in deny["advisories"]["ignore"].as_array().unwrap() {
        let (id, before) = (field(ignored, "id"), found.len());
        found.retain(|advisory| !advisory.contains(&id));
        assert!(found.len() < before, "deny.toml ignores {id}, which does not hold any more");
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The bill of materials stops at a wheel without a licence.
#[test]
fn every_pinned_wheel_has_a_licence_in_the_bill_of_materials() {
    let bill = text("setup/sbom.py");
    let pinned = text("setup/libtorch.txt");
    let names: Vec<&str> = pinned.lines().filter_map(|line| Some(line.split_once("==")?.0)).collect();
    assert!(names.contains(&"torch"), "{names:?}");
    for name in names {
        assert!(bill.contains(&format!("\"{name}\": {{\"license\"")), "{name}");
    }
}

/// Path of the release archive in the repository, as `setup/dist.sh` names it.
fn archive() -> String {
    let script = text("setup/dist.sh");
    let name = script.lines().find_map(|line| line.strip_prefix("name=")).unwrap();
    let out = script.lines().find_map(|line| line.strip_prefix("out=$root/")).unwrap();
    out.replace("$name", name).replace("$version", &version())
}

/// Instructions of a Containerfile with continued lines joined, the version's argument replaced.
fn instructions(file: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(file).unwrap().replace("\\\n", " ");
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let words =
        |line: &str| line.split_whitespace().map(|word| word.replace("${VERSION}", &version())).collect();
    lines.map(words).collect()
}

/// Asserts that a file of the context exists and is not excluded by `.dockerignore`; the archive is made by `make dist`.
fn is_in_context(path: &str, file: &Path) {
    let ignore = text(".dockerignore");
    let first = path.split('/').next().unwrap();
    assert!(ignore.lines().any(|line| line == format!("!{first}")), "{}: {path} is ignored", file.display());
    let found = path == archive() || root().join(path).exists();
    assert!(found, "{}: copies {path}, which does not exist", file.display());
}

#[test]
fn container_files_copy_what_exists() {
    let files = files_below(&root().join("containers"), &["Containerfile"]);
    assert_eq!(files.len(), 2);
    for file in &files {
        let all = instructions(file);
        let stages: Vec<&String> =
            all.iter().filter(|words| words[0] == "FROM").filter_map(|words| words.get(3)).collect();
        let mut copied = BTreeSet::new();
        for words in all.iter().filter(|words| ["COPY", "ADD"].contains(&words[0].as_str())) {
            match words[1].strip_prefix("--from=") {
                Some(stage) => {
                    assert!(stages.iter().any(|name| *name == stage), "{}: {words:?}", file.display())
                }
                None => copied.extend(words[1..words.len() - 1].iter().cloned()),
            }
        }
        assert!(!copied.is_empty(), "{}", file.display());
        copied.iter().for_each(|path| is_in_context(path, file));
        let arguments = all.iter().filter(|words| words[0] == "ARG" && words[1].starts_with("VERSION="));
        let arguments: BTreeSet<&str> = arguments.map(|words| &words[1]["VERSION=".len()..]).collect();
        assert_eq!(arguments.into_iter().collect::<Vec<_>>(), [version()], "{}", file.display());
        if copied.contains("crates") {
            builds_from(&copied, &all, file);
        } else {
            assert_eq!(copied.into_iter().collect::<Vec<_>>(), [archive()]);
        }
    }
}

/// A stage that builds has the files that the sources include, and the oldest Rust that Cargo.toml declares.
fn builds_from(copied: &BTreeSet<String>, all: &[Vec<String>], file: &Path) {
    for folder in ["docs", "configs", "Cargo.toml", "Cargo.lock"] {
        assert!(copied.contains(folder), "{}: lacks {folder}", file.display());
    }
    for source in files_below(&root().join("crates"), &["rs"]) {
        if source.iter().any(|part| part == "src") {
            let outside = fs::read_to_string(&source).unwrap();
            let outside =
                outside.split("../../../../").skip(1).filter_map(|rest| rest.split(['/', '"']).next());
            outside.for_each(|folder| assert!(copied.contains(folder), "{}: {folder}", source.display()));
        }
    }
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let rust = manifest["workspace"]["package"]["rust-version"].as_str().unwrap();
    let bases: Vec<&str> =
        all.iter().filter(|words| words[0] == "FROM").map(|words| words[1].as_str()).collect();
    assert!(bases.iter().any(|base| base.starts_with(&format!("rust:{rust}-"))), "{bases:?}");
}

#[test]
fn the_apptainer_file_unpacks_the_archive() {
    let file = root().join("containers/apptainer.def");
    let text = fs::read_to_string(&file).unwrap();
    let section = |name: &str| {
        let body = text.split(&format!("\n%{name}\n")).nth(1).unwrap_or_else(|| panic!("no section {name}"));
        body.split("\n%").next().unwrap().trim().to_owned()
    };
    let files = section("files");
    let copied: Vec<&str> = files.split_whitespace().collect();
    assert_eq!(copied[0], archive());
    assert!(section("post").contains(&format!("tar -xJf {}", copied[1])), "{text}");
    assert!(section("labels").contains(&format!("image.version {}", version())), "{text}");
    assert!(text.starts_with("Bootstrap: docker\nFrom: debian:bookworm"), "built for the glibc of Debian 12");
}

/// `command` with the mask `mask` for permissions.
fn masked(mask: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "umask \"$1\"; shift; exec \"$@\"", "sh", mask]).env("NO_COLOR", "1");
    shell.arg(command.get_program()).args(command.get_args());
    shell
}

/// Modes of everything below `folder`, which is included.
fn modes(folder: &Path) -> Vec<(PathBuf, bool, u32)> {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let mut found = vec![(folder.to_owned(), true, mode(folder))];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(modes(&path));
        } else {
            let mode = mode(&path);
            found.push((path, false, mode));
        }
    }
    found
}

#[test]
fn files_and_folders_obey_the_umask() {
    let temp = tempfile::tempdir().unwrap();
    let data = image_folder(&temp.path().join("images"), 80);
    for (mask, file_mode, folder_mode) in [("027", 0o640, 0o750), ("022", 0o644, 0o755)] {
        let place = temp.path().join(mask);
        let (run, out) = (place.join("run"), |name: &str| place.join("out").join(name));
        let run_by = |command: &Command| {
            execute(&mut masked(mask, command)).succeeds();
        };
        run_by(&pretrain(&data, &run, &["--epochs", "1"]));
        run_by(simclr(&["evaluate", "--set", "eval.draws=1", "eval.random_inits=1"]).arg(&run));
        run_by(simclr(&["classify", "--only", "linear", "--labels"]).arg(&data).arg(&run));
        run_by(simclr(&["man"]).arg(out("man")));
        run_by(simclr(&["export"]).arg(&run));
        run_by(simclr(&["export", "--format", "onnx"]).arg(&run).arg("--out").arg(out("encoder.onnx")));
        run_by(simclr(&["compare"]).arg(&run).arg("--out").arg(out("compare.svg")));
        for (command, name) in [
            (&["embed"][..], "h.parquet"),
            (&["embed"], "h.npy"),
            (&["report"], "report.html"),
            (&["predict"], "p.parquet"),
            (&["predict"], "p.csv"),
            (&["views", "--image-size", "16"], "views.png"),
            (&["pack"], "set.pack"),
        ] {
            let mut built = simclr(command);
            match command[0] {
                "embed" | "report" => drop(built.arg(&run)),
                "predict" => drop(built.arg(run.join("classifier.safetensors"))),
                _ => {}
            }
            run_by(built.arg("--data").arg(&data).arg("--out").arg(out(name)));
        }
        let found = modes(&place);
        assert!(found.len() > 40, "only {} files and folders", found.len());
        for (path, is_folder, mode) in found {
            let wanted = if is_folder { folder_mode } else { file_mode };
            assert_eq!(mode, wanted, "umask {mask}, {}: mode {mode:o}, expected {wanted:o}", path.display());
        }
    }
}

/// What a process did to files, and whether it made a socket.
#[derive(Default)]
struct Trace {
    read: BTreeSet<PathBuf>,
    written: BTreeSet<PathBuf>,
    sockets: BTreeSet<String>,
    executed: BTreeSet<PathBuf>,
}

fn can_trace() -> bool {
    Command::new("strace").args(["-o", "/dev/null", "true"]).status().is_ok_and(|status| status.success())
}

/// Every file that `command` opens, renames or deletes, by strace.
fn traced(command: &Command, place: &Path) -> Trace {
    let calls = "trace=open,openat,openat2,creat,execve,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,link,linkat,\
                 symlink,symlinkat,chmod,fchmodat,truncate,%network";
    let logs = place.join("trace");
    fs::create_dir(&logs).unwrap();
    // One file for each thread, so that no call is split into two lines; -y: the path of every descriptor.
    let mut strace = Command::new("strace");
    strace.args(["-ff", "-qq", "-y", "-e", calls, "-o"]).arg(logs.join("thread")).env("NO_COLOR", "1");
    execute(strace.arg(command.get_program()).args(command.get_args())).succeeds();
    let mut trace = Trace::default();
    for log in fs::read_dir(&logs).unwrap() {
        for line in fs::read_to_string(log.unwrap().path()).unwrap().lines() {
            trace.add(line);
        }
    }
    trace
}

impl Trace {
    /// `openat(AT_FDCWD</tmp>, "a", O_RDONLY) = 3</tmp/a>`, `rename("a", "b") = 0`.
    fn add(&mut self, line: &str) {
        let Some((call, result)) = line.rsplit_once(" = ") else { return };
        if result.starts_with('-') {
            return;
        }
        let name = call.split('(').next().unwrap_or_default();
        let quoted = || call.split('"').skip(1).step_by(2).map(PathBuf::from);
        let opened = || result.split_once('<').map(|(_, path)| PathBuf::from(path.trim_end_matches('>')));
        let writes = ["O_WRONLY", "O_RDWR", "O_CREAT"].iter().any(|flag| call.contains(flag));
        match name {
            "open" | "openat" | "openat2" | "creat" if writes => self.written.extend(opened()),
            "open" | "openat" | "openat2" => self.read.extend(opened()),
            "execve" => self.executed.extend(quoted().next()),
            _ if call.contains("sock") || call.contains("connect(") => self.sockets.extend([line.to_owned()]),
            _ => self.written.extend(quoted()),
        }
    }
}

/// Files open at some of many moments, where strace cannot be run: short-lived ones are missed.
fn sampled(command: &mut Command) -> Trace {
    let mut child =
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut trace = Trace::default();
    while child.try_wait().unwrap().is_none() {
        let Ok(open) = std::fs::read_dir(format!("/proc/{}/fd", child.id())) else { continue };
        for target in open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok()) {
            match target.to_string_lossy() {
                name if name.starts_with("socket:") => trace.sockets.extend([name.into_owned()]),
                name if name.starts_with('/') => trace.read.extend([target]),
                _ => {}
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert!(child.wait().unwrap().success());
    trace
}

#[test]
fn a_run_makes_no_socket_and_opens_no_foreign_file() {
    let temp = tempfile::tempdir().unwrap();
    let place = temp.path().canonicalize().unwrap();
    let (data, run) = (image_folder(&place.join("images"), 40), place.join("run"));
    let mut command = pretrain(&data, &run, &["--epochs", "4"]);
    let trace = if can_trace() { traced(&command, &place) } else { sampled(&mut command) };
    assert_eq!(trace.sockets, BTreeSet::new());
    let program = Path::new(env!("CARGO_BIN_EXE_simclr"));
    assert!(trace.executed.iter().all(|path| path == program), "{:?}", trace.executed);
    let libtorch = std::env::var_os("LIBTORCH").map_or_else(|| root().join("libtorch"), PathBuf::from);
    let libtorch = libtorch.canonicalize().unwrap_or(libtorch);
    let system = ["/lib", "/lib64", "/usr", "/etc", "/proc", "/sys", "/dev"].map(PathBuf::from);
    let may_read = [vec![run.clone(), data.clone(), libtorch, program.to_owned()], system.to_vec()].concat();
    for path in &trace.read {
        assert!(may_read.iter().any(|folder| path.starts_with(folder)), "reads {}", path.display());
    }
    // An anonymous file of the loader, if any, is shown as deleted.
    for path in &trace.written {
        let own = path.starts_with(&run) || path.starts_with("/dev") || path.starts_with("/proc/self");
        assert!(own, "writes {}", path.display());
    }
    let everything: BTreeSet<&PathBuf> = trace.read.union(&trace.written).collect();
    assert!(everything.iter().any(|path| path.starts_with(&run)), "the trace is empty");
}
