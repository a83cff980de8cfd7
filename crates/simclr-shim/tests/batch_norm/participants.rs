//! A batch split over several participants of an all-reduce, each on a thread.

use std::sync::{Arc, Condvar, Mutex};

use simclr_shim::Sum;
use tch::{Kind, Tensor};

use crate::case::{Case, Found, MOMENTUM, Way};

/// An all-reduce over threads.
#[derive(Default)]
struct ThreadAllReduce {
    state: Mutex<State>,
    change: Condvar,
}

#[derive(Default)]
struct State {
    sum: Option<Tensor>,
    arrived: usize,
    left: usize,
    calls: usize,
}

impl ThreadAllReduce {
    fn sum(&self, count: usize, values: &Tensor) {
        let mut state = self.change.wait_while(self.state.lock().unwrap(), |state| state.left > 0).unwrap();
        state.sum = Some(state.sum.as_ref().map_or_else(|| values.copy(), |sum| sum + values));
        state.arrived += 1;
        state.calls += 1;
        self.change.notify_all();
        let mut state = self.change.wait_while(state, |state| state.arrived < count).unwrap();
        values.shallow_clone().copy_(state.sum.as_ref().unwrap());
        state.left += 1;
        if state.left == count {
            (state.sum, state.arrived, state.left) = (None, 0, 0);
        }
        self.change.notify_all();
    }
}

/// Runs `parts` (rows each) of a case as participants of one all-reduce, each on a thread of its own.
pub fn run_parts(case: &Case, way: Way, parts: &[i64]) -> (Vec<Found>, usize) {
    let shared = Arc::new(ThreadAllReduce::default());
    let participants = parts.len();
    let mut from = 0;
    let threads: Vec<_> = parts
        .iter()
        .map(|&count| {
            let shared = Arc::clone(&shared);
            let sum: Sum = Arc::new(move |values: &Tensor| shared.sum(participants, values));
            let copy = Case {
                x: case.x.copy(),
                residual: case.residual.as_ref().map(Tensor::copy),
                scale: case.scale.copy(),
                shift: case.shift.copy(),
                weights: case.weights.copy(),
                of_branch: case.of_branch.as_ref().map(Tensor::copy),
                ..*case
            };
            from += count;
            let rows = (from - count, count);
            std::thread::spawn(move || copy.run(way, rows, MOMENTUM, Some(sum)))
        })
        .collect();
    let found = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    let calls = shared.state.lock().unwrap().calls;
    (found, calls)
}

/// Concatenates the outputs of the parts of a batch.
pub fn joined(found: &[Found]) -> Found {
    let all = |part: fn(&Found) -> &Tensor| found.iter().map(|found| part(found).copy()).collect::<Vec<_>>();
    let cat = |part| Tensor::cat(&all(part), 0);
    let sum = |part| Tensor::stack(&all(part), 0).sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
    for other in found {
        assert_eq!(other.running_mean, found[0].running_mean, "bit-identical for all participants");
        assert_eq!(other.running_var, found[0].running_var, "bit-identical for all participants");
    }
    Found {
        y: cat(|found| &found.y),
        dx: cat(|found| &found.dx),
        d_residual: found[0].d_residual.as_ref().map(|_| cat(|found| found.d_residual.as_ref().unwrap())),
        d_scale: sum(|found| &found.d_scale),
        d_shift: sum(|found| &found.d_shift),
        running_mean: found[0].running_mean.copy(),
        running_var: found[0].running_var.copy(),
    }
}
