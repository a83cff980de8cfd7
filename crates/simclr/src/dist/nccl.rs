//! Collectives on GPU tensors by NCCL; its unique ids are gathered over the host's transport.

use std::{
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use simclr_shim::{
    ShimError,
    nccl::{Functions, LIBRARY, Nccl, UniqueId},
    stream::{CudaEvent, SideStream},
};
use tch::{Device, Kind, Tensor};

use super::{ProcessGroup, RankError};

/// The communicators of this rank.
#[derive(Debug)]
pub(super) struct GpuCommunicators {
    device: Device,
    /// [`Communicator::Step`] and [`Communicator::Statistics`], on the current stream: all of their collectives are issued in the order of
    /// the step.
    step: Mutex<Nccl>,
    /// [`Communicator::Gradients`], on a stream of its own. Hooks issue its collectives between those of `step`, in the same order on
    /// every rank.
    gradients: Mutex<(Nccl, SideStream)>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessGroup {
    /// Uses NCCL for f32 tensors on GPUs if every rank has a GPU, else host memory. Collective. Returns a description of the
    /// choice, if there are GPUs and several processes.
    pub fn connect_gpus(&self, device: Device) -> Option<String> {
        self.transport.as_ref()?;
        let with_gpu = self.all_gather_usize(&[usize::from(device.is_cuda())]).concat().iter().sum::<usize>();
        if with_gpu == 0 {
            return None;
        }
        let all = self.count();
        let joined = if with_gpu == all {
            self.join_nccl(Path::new(LIBRARY), device)
        } else {
            Err(format!("{with_gpu} of {all} processes have a GPU"))
        };
        Some(match joined {
            Ok(()) => "NCCL, from GPU to GPU".to_owned(),
            Err(reason) => format!("through host memory, which is slower ({reason})"),
        })
    }

    /// Whether NCCL is used for tensors on GPUs. The same on all ranks.
    pub fn has_nccl(&self) -> bool {
        self.gpus.get().is_some()
    }

    pub(super) fn join_nccl(&self, library: &Path, device: Device) -> Result<(), String> {
        let functions = self.on_all(Functions::load(library))?;
        let like = Tensor::zeros([1], (Kind::Float, device));
        let step = Mutex::new(self.join_communicator(functions, &like)?);
        let gradients = self.join_communicator(functions, &like)?;
        let side = self.on_all(SideStream::new(&like))?;
        let gradients = Mutex::new((gradients, side));
        let _ = self.gpus.set(GpuCommunicators { device, step, gradients });
        Ok(())
    }

    fn join_communicator(&self, functions: Functions, like: &Tensor) -> Result<Nccl, String> {
        let id = self.on_all(if self.is_first() { functions.unique_id().map(Some) } else { Ok(None) })?;
        let ids = self.all_gather_bytes(id.as_ref().map_or(&[], UniqueId::bytes));
        let id = UniqueId::from_bytes(&ids[0]).ok_or("rank 0 sent no id")?;
        self.on_all(functions.join(id, (self.rank(), self.count()), like))
    }

    /// `own`, if every rank has succeeded.
    fn on_all<T>(&self, own: Result<T, ShimError>) -> Result<T, String> {
        match self.all_ok(own, |_| String::new()) {
            Ok((value, _)) => Ok(value),
            Err(RankError::Local(error)) => Err(error.to_string()),
            Err(RankError::Remote { rank, message }) => Err(format!("rank {rank}: {message}")),
        }
    }

    fn nccl(&self, values: &Tensor) -> Option<&GpuCommunicators> {
        self.gpus.get().filter(|gpus| gpus.device == values.device())
    }

    /// Sums `values` over all ranks by NCCL, on the current stream; returns false without NCCL.
    pub(super) fn nccl_all_reduce(&self, values: &Tensor) -> bool {
        let Some(gpus) = self.nccl(values) else { return false };
        let whole = values.contiguous();
        self.or_abort(locked(&gpus.step).all_reduce(&whole));
        if whole.data_ptr() != values.data_ptr() {
            tch::no_grad(|| values.shallow_clone().copy_(&whole));
        }
        true
    }

    /// Starts the sum of the contiguous `values` over all ranks by NCCL, concurrently with later work of the current stream, which waits
    /// for the event before it reads them; `None` without NCCL.
    pub(super) fn nccl_start_all_reduce(&self, values: &Tensor) -> Option<CudaEvent> {
        let gpus = self.nccl(values)?;
        let (nccl, side) = &mut *locked(&gpus.gradients);
        self.or_abort(side.launch(values, || nccl.all_reduce(values)))
    }

    /// [`ProcessGroup::all_gather_rows`] by NCCL; `None` without NCCL. `counts` are the rows by rank.
    pub(super) fn nccl_all_gather_rows(&self, own: &Tensor, counts: &[usize]) -> Option<Tensor> {
        let gpus = self.nccl(own)?;
        let own = own.detach().to_kind(Kind::Float).contiguous();
        if counts.iter().all(|count| *count == counts[0]) {
            return self.or_abort(locked(&gpus.step).all_gather(&own, counts.len()));
        }
        // NCCL gathers equal shapes only.
        let before = counts[..self.rank()].iter().sum::<usize>() as i64;
        let all = counts.iter().sum::<usize>() as i64;
        let gathered = Tensor::zeros([all, own.size()[1]], (Kind::Float, own.device()));
        tch::no_grad(|| gathered.narrow(0, before, own.size()[0]).copy_(&own));
        self.nccl_all_reduce(&gathered);
        Some(gathered)
    }

    /// The other ranks wait in the collective that failed here.
    fn or_abort<T>(&self, done: Result<T, ShimError>) -> Option<T> {
        done.map_err(|error| self.abort(&error.to_string())).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dist::{
            BatchShards, DistConfig, GradientBuckets,
            threads::{on_ranks, on_ranks_with_nccl},
        },
        losses::AllGather as _,
        params::{Params, Role},
    };

    /// Distinct values on every rank.
    fn rows(group: &ProcessGroup, rows: i64) -> Tensor {
        let first = 100 * group.rank() as i64;
        Tensor::arange_start(first, first + 3 * rows, (Kind::Float, Device::Cpu)).view([rows, 3])
    }

    #[test]
    fn collectives_equal_those_of_the_host() {
        let work = |group: &ProcessGroup| {
            let unequal = rows(group, 2 + 2 * group.rank() as i64);
            let shards = BatchShards::new(group, (0..group.count()).map(|rank| rank + 1).collect());
            vec![
                group.all_reduce(&rows(group, 4)),
                group.all_reduce(&rows(group, 4).tr()),
                group.all_gather_rows(&rows(group, 4)),
                group.all_gather_rows(&unequal),
                shards.all_gather(&unequal),
            ]
        };
        let (found, expected) = (on_ranks_with_nccl(3, work), on_ranks(3, work));
        assert_eq!(found, expected);
        assert_eq!(found[0], found[2], "the same on all ranks");
        assert_eq!(found[0][2].size(), [12, 3]);
        assert_eq!(found[0][3].size(), [12, 3]);
    }

    /// Gradients of parameters that fill several buckets, while batch-norm statistics are summed within the same pass.
    #[test]
    fn gradients_are_reduced_during_the_backward_pass() {
        let work = |overlap: bool| {
            move |group: &ProcessGroup| {
                let mut params = Params::new(Device::Cpu, 0);
                let zeros = || Tensor::zeros([1024, 800], (Kind::Float, Device::Cpu));
                let weights = ["a", "b", "c"].map(|name| params.add(name, Role::Weight, zeros()));
                let config = DistConfig { overlap, ..DistConfig::default() };
                let gradients = GradientBuckets::configured(&config, &params, group);
                let own = 1.0 + group.rank() as f64;
                let sum = group.all_reduce(&Tensor::from(own).to_kind(Kind::Float));
                gradients.arm();
                let loss = |at: usize| weights[at].sum(Kind::Float) * (own * (at + 1) as f64) * &sum;
                (loss(0) + loss(1) + loss(2)).backward();
                gradients.finish();
                let sent = gradients.last_step();
                (weights.map(|weight| weight.grad().double_value(&[1023, 799])), sent.len())
            }
        };
        for overlap in [true, false] {
            let found = on_ranks_with_nccl(2, work(overlap));
            // (1 + 2) x (1 + 2) x the parameter's factor.
            assert_eq!(found, vec![([9.0, 18.0, 27.0], 3); 2]);
            assert_eq!(found, on_ranks(2, work(overlap)));
        }
    }

    /// As after a failed capture.
    #[test]
    fn buckets_of_an_abandoned_pass_are_left_out() {
        let work = |group: &ProcessGroup| {
            let mut params = Params::new(Device::Cpu, 0);
            let zeros = || Tensor::zeros([1024, 800], (Kind::Float, Device::Cpu));
            let weights = ["a", "b"].map(|name| params.add(name, Role::Weight, zeros()));
            let gradients = GradientBuckets::new(&params, group);
            let backward = |factor: f64| {
                gradients.arm();
                ((&weights[0] + &weights[1] * 2.0).sum(Kind::Float) * factor).backward();
            };
            backward(100.0);
            for weight in &weights {
                simclr_shim::drop_gradient(weight).unwrap();
            }
            backward(1.0);
            gradients.finish();
            weights.map(|weight| weight.grad().double_value(&[0, 0]))
        };
        assert_eq!(on_ranks(2, work), [[2.0, 4.0]; 2]);
        assert_eq!(on_ranks_with_nccl(2, work), [[2.0, 4.0]; 2]);
    }
}
