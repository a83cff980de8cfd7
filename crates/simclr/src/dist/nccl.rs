//! Collectives on GPU tensors by NCCL; its unique id is gathered over the host's transport.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use simclr_shim::nccl::{Functions, LIBRARY, Nccl, UniqueId};
use tch::{Device, Kind, Tensor};

use super::{ProcessGroup, RankError};

impl ProcessGroup {
    /// Uses NCCL for f32 tensors on GPUs if every rank has a GPU, else host memory. Collective. Returns a description of the
    /// choice, if there are GPUs and several processes.
    ///
    /// NCCL collectives are enqueued on libtorch's stream, so every rank must issue them in the same order on all threads.
    pub fn connect_gpus(&self, device: Device) -> Option<String> {
        self.transport.as_ref()?;
        let with_gpu = self.all_gather_usize(&[usize::from(device.is_cuda())]).concat().iter().sum::<usize>();
        if with_gpu == 0 {
            return None;
        }
        let all = self.count();
        let joined = if with_gpu == all {
            self.join_nccl(device)
        } else {
            Err(format!("{with_gpu} of {all} processes have a GPU"))
        };
        Some(match joined {
            Ok(nccl) => {
                let _ = self.gpus.set(Mutex::new(nccl));
                "NCCL, from GPU to GPU".to_owned()
            }
            Err(reason) => format!("through host memory, which is slower ({reason})"),
        })
    }

    fn join_nccl(&self, device: Device) -> Result<Nccl, String> {
        let reason = |error| match error {
            RankError::Local(error) => format!("{error}"),
            RankError::Remote { rank, message } => format!("rank {rank}: {message}"),
        };
        let loaded = Functions::load(Path::new(LIBRARY)).and_then(|functions| {
            let id = if self.is_first() { Some(functions.unique_id()?) } else { None };
            Ok((functions, id))
        });
        let ((functions, id), _) = self.all_ok(loaded, |_| String::new()).map_err(reason)?;
        let ids = self.all_gather_bytes(id.as_ref().map_or(&[], UniqueId::bytes));
        let id = UniqueId::from_bytes(&ids[0]).ok_or("rank 0 sent no id")?;
        let like = Tensor::zeros([1], (Kind::Float, device));
        let joined = functions.join(id, (self.rank(), self.count()), &like);
        let (nccl, _) = self.all_ok(joined, |_| String::new()).map_err(reason)?;
        Ok(nccl)
    }

    /// Sums `values` over all ranks by NCCL; returns false without NCCL.
    pub(super) fn nccl_all_reduce(&self, values: &Tensor) -> bool {
        let Some(nccl) = self.gpus.get().filter(|_| values.device().is_cuda()) else { return false };
        let whole = values.contiguous();
        let done = nccl.lock().unwrap_or_else(PoisonError::into_inner).all_reduce(&whole);
        if let Err(error) = done {
            // The other ranks wait in the same collective.
            self.abort(&error.to_string());
        }
        if whole.data_ptr() != values.data_ptr() {
            tch::no_grad(|| values.shallow_clone().copy_(&whole));
        }
        true
    }

    /// [`ProcessGroup::all_gather_rows`] by NCCL, as an all-reduce of zero-padded rows; `None` without NCCL.
    pub(super) fn nccl_all_gather_rows(&self, own: &Tensor) -> Option<Tensor> {
        self.gpus.get().filter(|_| own.device().is_cuda())?;
        let rows = own.size()[0];
        let counts = self.all_gather_usize(&[rows as usize]).concat();
        let before: usize = counts[..self.rank()].iter().sum();
        let all = counts.iter().sum::<usize>() as i64;
        let gathered = Tensor::zeros([all, own.size()[1]], (Kind::Float, own.device()));
        tch::no_grad(|| gathered.narrow(0, before as i64, rows).copy_(&own.detach()));
        self.nccl_all_reduce(&gathered);
        Some(gathered)
    }
}
