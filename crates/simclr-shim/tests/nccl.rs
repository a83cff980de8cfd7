//! The arguments of NCCL calls, checked by a mock library; NCCL itself needs a GPU.

#![allow(clippy::unwrap_used, reason = "a test that cannot be set up must fail")]

use std::{path::Path, process::Command};

use simclr_shim::nccl::{Functions, LIBRARY, UniqueId};
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

/// One rank with the real library; run by `bench/gpu.sh`.
#[test]
#[ignore = "needs a GPU and NCCL"]
fn one_rank_on_a_gpu() {
    assert_eq!(simclr_shim::load_cuda(), simclr_shim::Cuda::Loaded);
    assert!(Cuda::is_available(), "no GPU available");
    let values = Tensor::arange(1 << 20, (Kind::Float, Device::Cuda(0)));
    let functions = Functions::load(Path::new(LIBRARY)).unwrap();
    let id = functions.unique_id().unwrap();
    let mut nccl = functions.join(id, (0, 1), &values).unwrap();
    let doubled = &values * 2.0;
    nccl.all_reduce(&doubled).unwrap();
    assert_eq!(doubled / 2.0, values);
}
