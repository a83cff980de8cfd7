//! Process groups with threads of this process as ranks, for tests.

use std::{net::TcpListener, path::Path, process::Command, thread};

use tch::Device;

use super::{ProcessFailure, ProcessGroup, Rendezvous, gloo};

/// Collectives between threads by the names and arguments of NCCL, on CPU tensors.
const MOCK_NCCL: &str = include_str!("mock_nccl.c");

/// Runs `work` on `count` ranks connected by Gloo and returns their results by rank.
pub fn on_ranks<T: Send>(count: usize, work: impl Fn(&ProcessGroup) -> T + Sync) -> Vec<T> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let run = |rank| {
        let address = "127.0.0.1".to_owned();
        let place = Rendezvous { rank, count, address, port, launcher_hosts_store: false, attempt: 0 };
        let fail = |failure: &ProcessFailure<'_>| panic!("{}", failure.message);
        let group = ProcessGroup::connected(gloo::connect(&place).unwrap(), Box::new(fail)).unwrap();
        let result = work(&group);
        group.finish();
        result
    };
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..count).map(|rank| scope.spawn(move || run(rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// [`on_ranks`] with tensors on the CPU reduced as if by NCCL.
pub fn on_ranks_with_nccl<T: Send>(count: usize, work: impl Fn(&ProcessGroup) -> T + Sync) -> Vec<T> {
    let folder = tempfile::tempdir().unwrap();
    let library = compile(folder.path());
    on_ranks(count, |group| {
        group.join_nccl(&library, Device::Cpu).unwrap();
        work(group)
    })
}

fn compile(folder: &Path) -> std::path::PathBuf {
    let (source, library) = (folder.join("nccl.c"), folder.join("libnccl.so"));
    fs_err::write(&source, MOCK_NCCL).unwrap();
    let compiled =
        Command::new("cc").args(["-shared", "-fPIC", "-pthread", "-o"]).arg(&library).arg(&source).status();
    assert!(compiled.unwrap().success());
    library
}
