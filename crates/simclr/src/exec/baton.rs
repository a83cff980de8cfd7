//! Cooperative scheduling of the chunks of a batch for SyncBN. Every chunk has a thread, and one thread runs at a time. In an
//! all-reduce a chunk adds its summand and yields to the next chunk; when it is resumed, the sum is complete. The order is fixed, so
//! sums are deterministic.

use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tch::Tensor;

use crate::encoder::AllReduce;

/// As large as the stack of a main thread, which libtorch's kernel generators need.
const STACK_BYTES: usize = 8 << 20;

#[derive(Debug)]
struct Scheduler {
    turn: Mutex<Turn>,
    passed: Condvar,
    /// All-reduce over other processes, after the sum over the chunks of this one.
    outer: Option<Arc<dyn AllReduce>>,
}

#[derive(Debug)]
struct Turn {
    /// The task that may run.
    task: usize,
    ended: Vec<bool>,
    /// Sums of the current round and of the one before, which some tasks may not have read yet.
    totals: [Option<Tensor>; 2],
}

/// The thread of one chunk.
#[derive(Debug)]
struct Task {
    index: usize,
    /// Number of all-reduces so far.
    rounds: AtomicUsize,
    scheduler: Arc<Scheduler>,
}

/// Runs `work` for every item, with an all-reduce over all items. Every call of `work` must use it equally often.
///
/// # Errors
/// Threads that cannot be created.
///
/// # Panics
/// If `work` does.
pub fn run_in_turns<I: Send, O: Send>(
    items: Vec<I>,
    outer: Option<Arc<dyn AllReduce>>,
    work: impl Fn(usize, I, Arc<dyn AllReduce>) -> O + Sync,
) -> Result<Vec<O>, std::io::Error> {
    let turn = Turn { task: 0, ended: vec![false; items.len()], totals: [None, None] };
    let scheduler = Arc::new(Scheduler { turn: Mutex::new(turn), passed: Condvar::new(), outer });
    let work = &work;
    let threads = tch::get_num_threads();
    std::thread::scope(|scope| {
        let mut started = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let task = Task { index, rounds: AtomicUsize::new(0), scheduler: Arc::clone(&scheduler) };
            let run = move || {
                let task = Arc::new(task);
                let _release = ReleaseOnDrop(&task);
                drop(task.wait());
                tch::set_num_threads(threads); // OpenMP has this setting per calling thread
                work(index, item, Arc::clone(&task) as Arc<dyn AllReduce>)
            };
            let thread = std::thread::Builder::new().name(format!("chunk-{index}")).stack_size(STACK_BYTES);
            match thread.spawn_scoped(scope, run) {
                Ok(thread) => started.push(thread),
                Err(error) => {
                    // Running tasks must not wait for those that were not started.
                    scheduler.lock().ended[index..].fill(true);
                    scheduler.passed.notify_all();
                    return Err(error);
                }
            }
        }
        let mut results: Vec<_> = started.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        // The first panic is the cause; others follow from its missing summand.
        match results.iter().position(Result::is_err) {
            Some(cause) => std::panic::resume_unwind(results.swap_remove(cause).err().expect("an error")),
            None => Ok(results.into_iter().flatten().collect()),
        }
    })
}

impl Scheduler {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        // A panic of a task leaves no invalid state.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the turn to the next task that has not ended.
    fn pass(&self, turn: &mut Turn) {
        let count = turn.ended.len();
        let next = (1..=count).map(|step| (turn.task + step) % count).find(|&task| !turn.ended[task]);
        turn.task = next.unwrap_or(turn.task);
        self.passed.notify_all();
    }
}

impl Task {
    /// Blocks until it is this task's turn.
    fn wait(&self) -> MutexGuard<'_, Turn> {
        let turn = self.scheduler.lock();
        let others = |turn: &mut Turn| turn.task != self.index;
        self.scheduler.passed.wait_while(turn, others).unwrap_or_else(PoisonError::into_inner)
    }
}

impl AllReduce for Task {
    /// # Panics
    /// If another chunk has ended without this sum.
    fn all_reduce_sum(&self, values: &Tensor) {
        let round = self.rounds.fetch_add(1, Ordering::Relaxed) % 2;
        let mut turn = self.scheduler.lock();
        assert!(!turn.ended.contains(&true), "another chunk of the batch has ended early");
        let last = self.index + 1 == turn.ended.len();
        let total = match turn.totals[round].take() {
            Some(total) if self.index > 0 => total + values,
            _ => values.copy(),
        };
        if let Some(outer) = self.scheduler.outer.as_ref().filter(|_| last) {
            outer.all_reduce_sum(&total);
        }
        turn.totals[round] = Some(total);
        self.scheduler.pass(&mut turn);
        drop(turn);
        let turn = self.wait();
        let total = turn.totals[round].as_ref().expect("this task added its summand");
        values.shallow_clone().copy_(total);
    }
}

/// Marks a task as ended, also on panic.
struct ReleaseOnDrop<'a>(&'a Task);

impl Drop for ReleaseOnDrop<'_> {
    fn drop(&mut self) {
        let mut turn = self.0.scheduler.lock();
        turn.ended[self.0.index] = true;
        if turn.task == self.0.index {
            self.0.scheduler.pass(&mut turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(all_reduce: &Arc<dyn AllReduce>, value: f32) -> f64 {
        let values = Tensor::from_slice(&[value]);
        all_reduce.all_reduce_sum(&values);
        values.double_value(&[0])
    }

    /// In several rounds, with one chunk running at a time.
    #[test]
    fn all_chunks_receive_the_same_sum() {
        let running = AtomicUsize::new(0);
        let alone = || assert_eq!(running.load(Ordering::SeqCst), 0, "two at a time");
        let sums = run_in_turns((0..5).collect(), None, |index, item: usize, all_reduce| {
            assert_eq!(index, item);
            let mut found = Vec::new();
            for round in 0..4 {
                alone();
                running.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                found.push(sum_of(&all_reduce, (item + 10 * round) as f32));
            }
            found
        });
        assert_eq!(sums.unwrap(), vec![vec![10.0, 60.0, 110.0, 160.0]; 5]);
    }

    #[test]
    fn the_outer_all_reduce_runs_once_per_round() {
        #[derive(Debug, Default)]
        struct Doubles(AtomicUsize);
        impl AllReduce for Doubles {
            fn all_reduce_sum(&self, values: &Tensor) {
                self.0.fetch_add(1, Ordering::SeqCst);
                let _ = values.shallow_clone().g_mul_scalar_(2.0);
            }
        }
        let counter = Arc::new(Doubles::default());
        let outer: Arc<dyn AllReduce> = counter.clone();
        let sums = run_in_turns(vec![1.0f32, 2.0, 4.0], Some(outer), |_, item, all_reduce| {
            [sum_of(&all_reduce, item), sum_of(&all_reduce, 1.0)]
        });
        assert_eq!(sums.unwrap(), [[14.0, 6.0]; 3]);
        assert_eq!(counter.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_chunk_that_ends_early_fails_the_others_without_a_deadlock() {
        for early in 0..3 {
            let run = std::panic::catch_unwind(|| {
                run_in_turns(vec![0, 1, 2], None, |index, _: i32, all_reduce| {
                    sum_of(&all_reduce, 1.0);
                    assert_ne!(index, early, "the cause");
                    sum_of(&all_reduce, 1.0);
                })
            });
            assert!(run.is_err(), "{early}");
        }
    }
}
