//! The arguments of NCCL calls, checked by a mock library; NCCL itself needs a GPU.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{path::Path, process::Command};

use simclr_shim::{
    ShimError,
    nccl::{Functions, LIBRARY, Nccl, UniqueId},
    stream::{CudaGraph, SideStream, StreamGuard},
};
use tch::{Cuda, Device, Kind, Tensor};

/// Reduces as if every rank held the same values.
const MOCK: &str = r#"
#include <stddef.h>
#include <stdlib.h>
typedef struct { char internal[128]; } ncclUniqueId;
typedef struct { int ranks, rank, alive; } comm_t;
int ncclGetUniqueId(ncclUniqueId* id) { for (int i = 0; i < 128; i++) id->internal[i] = (char)(i + 1); return 0; }
int ncclCommInitRank(comm_t** comm, int nranks, ncclUniqueId id, int rank) {
    for (int i = 0; i < 128; i++) if (id.internal[i] != (char)(i + 1)) return 4;
    if (rank < 0 || rank >= nranks) return 5;
    *comm = malloc(sizeof(comm_t));
    (*comm)->ranks = nranks; (*comm)->rank = rank; (*comm)->alive = 42;
    return 0;
}
int ncclAllReduce(const void* send, void* receive, size_t count, int type, int op, comm_t* comm, void* stream) {
    if (comm->alive != 42 || type != 7 || op != 0 || stream != 0) return 4;
    for (size_t i = 0; i < count; i++) ((float*)receive)[i] = ((const float*)send)[i] * (float)comm->ranks;
    return 0;
}
int ncclAllGather(const void* send, void* receive, size_t count, int type, comm_t* comm, void* stream) {
    if (comm->alive != 42 || type != 7 || stream != 0) return 4;
    for (int rank = 0; rank < comm->ranks; rank++)
        for (size_t i = 0; i < count; i++) ((float*)receive)[rank * count + i] = ((const float*)send)[i];
    return 0;
}
int ncclCommDestroy(comm_t* comm) { comm->alive = 0; free(comm); return 0; }
const char* ncclGetErrorString(int result) { return result == 4 ? "invalid argument" : "invalid usage"; }
"#;

fn mock(folder: &Path) -> Functions {
    let (source, library) = (folder.join("nccl.c"), folder.join("libnccl.so"));
    fs_err::write(&source, MOCK).unwrap();
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(compiled.unwrap().success());
    Functions::load(&library).unwrap()
}

#[test]
fn arguments_match_nccl_h() {
    let folder = tempfile::tempdir().unwrap();
    let functions = mock(folder.path());
    let id = functions.unique_id().unwrap();
    assert!(id.bytes().iter().zip(1..).all(|(&byte, expected)| byte == expected));
    assert_eq!(UniqueId::from_bytes(id.bytes()), Some(id));
    assert_eq!(UniqueId::from_bytes(&id.bytes()[1..]), None);
    let values = Tensor::from_slice(&[1.0f32, -2.0, 0.5]);
    let mut nccl = functions.join(id, (2, 3), &values).unwrap();
    nccl.all_reduce(&values).unwrap();
    assert_eq!(Vec::<f32>::try_from(&values).unwrap(), [3.0, -6.0, 1.5]);
    nccl.all_reduce(&Tensor::zeros([0], (Kind::Float, Device::Cpu))).unwrap();
    let gathered = nccl.all_gather(&values.view([1, 3]), 3).unwrap();
    assert_eq!(gathered, values.repeat([3, 1]));
}

#[test]
fn errors_contain_nccls_message() {
    let folder = tempfile::tempdir().unwrap();
    let like = Tensor::from_slice(&[1.0f32]);
    let id = mock(folder.path()).unique_id().unwrap();
    let outside = mock(folder.path()).join(id, (3, 3), &like).unwrap_err().to_string();
    assert_eq!(outside, "NCCL: invalid usage (5)");
    let wrong = UniqueId::from_bytes(&[0; 128]).unwrap();
    assert!(
        mock(folder.path()).join(wrong, (0, 1), &like).unwrap_err().to_string().contains("invalid argument")
    );
    let mut nccl = mock(folder.path()).join(id, (0, 1), &like).unwrap();
    let error = |values: Tensor, nccl: &mut simclr_shim::nccl::Nccl| {
        nccl.all_reduce(&values).unwrap_err().to_string()
    };
    assert!(
        error(Tensor::from_slice(&[1.0f64]), &mut nccl)
            .contains("expected a contiguous f32 tensor, got Double")
    );
    assert!(error(Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)).tr(), &mut nccl).contains("[3, 2]"));
    assert!(Functions::load(&folder.path().join("none.so")).unwrap_err().to_string().contains("none.so"));
}

/// The real library; needs a GPU.
fn one_rank(like: &Tensor) -> Nccl {
    let functions = Functions::load(Path::new(LIBRARY)).unwrap();
    functions.join(functions.unique_id().unwrap(), (0, 1), like).unwrap()
}

fn on_gpu() -> Tensor {
    assert_eq!(simclr_shim::load_cuda(), simclr_shim::Cuda::Loaded);
    assert!(Cuda::is_available(), "no GPU available");
    Tensor::arange(1 << 20, (Kind::Float, Device::Cuda(0)))
}

/// Run by `bench/gpu.sh`, as is the next.
#[test]
#[ignore = "needs a GPU and NCCL"]
fn one_rank_on_a_gpu() {
    let values = on_gpu();
    let mut nccl = one_rank(&values);
    let doubled = &values * 2.0;
    nccl.all_reduce(&doubled).unwrap();
    assert_eq!(&doubled / 2.0, values);
    assert_eq!(nccl.all_gather(&doubled, 1).unwrap(), doubled);
}

/// Gradients on a side stream and the rest on the current one, as in a captured step of several ranks.
#[test]
#[ignore = "needs a GPU and NCCL"]
fn collectives_are_captured_on_two_streams() {
    let values = on_gpu();
    let _stream = StreamGuard::new(&values).unwrap();
    let (mut step, mut gradients) = (one_rank(&values), one_rank(&values));
    let side = SideStream::new(&values).unwrap();
    let mut work = || {
        let doubled = &values * 2.0;
        let reduced = side.launch(&doubled, || gradients.all_reduce(&doubled))?;
        let tripled = &values * 3.0;
        step.all_reduce(&tripled)?;
        reduced.wait(&doubled)?;
        Ok::<_, ShimError>(doubled + tripled)
    };
    // NCCL connects at the first collective.
    assert_eq!(work().unwrap(), &values * 5.0);
    let (graph, sum) = CudaGraph::capture(work).unwrap();
    let _ = values.shallow_clone().fill_(7.0);
    graph.replay().unwrap();
    assert_eq!(sum, &values * 5.0);
}
