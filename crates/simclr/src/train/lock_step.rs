//! The chunks of a batch on threads of their own, of which one runs at a time, so that each can wait in the middle of a pass
//! for the batch-norm statistics of all.
//!
//! A chunk runs until it needs a sum, hands over to the next, and goes on when its turn comes again: by then all have
//! added their share. The order is fixed, so the sums are the same bits in every run.

use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

use tch::Tensor;

use crate::encoder::AllReduce;

/// Stack of a chunk's thread: what a process's first thread has, for libtorch's kernel generators.
const STACK: usize = 8 << 20;

#[derive(Debug)]
struct LockStep {
    turn: Mutex<Turn>,
    passed: Condvar,
    /// Those who share the batch besides these chunks.
    beyond: Option<Arc<dyn AllReduce>>,
}

#[derive(Debug)]
struct Turn {
    /// Whose it is.
    member: usize,
    /// Who has ended.
    ended: Vec<bool>,
    /// The sum of this round, and that of the one before, which some members may not have taken yet.
    totals: [Option<Tensor>; 2],
}

/// One of the chunks.
#[derive(Debug)]
struct Member {
    index: usize,
    /// Sums taken so far.
    rounds: AtomicUsize,
    shared: Arc<LockStep>,
}

/// Runs `work` for every item, with the exchange through which it meets the others. All take the same number of sums.
///
/// # Errors
/// Threads that the system does not give.
///
/// # Panics
/// If `work` does for one of them.
pub fn in_lock_step<I: Send, O: Send>(
    items: Vec<I>,
    beyond: Option<Arc<dyn AllReduce>>,
    work: impl Fn(usize, I, Arc<dyn AllReduce>) -> O + Sync,
) -> Result<Vec<O>, std::io::Error> {
    let turn = Turn { member: 0, ended: vec![false; items.len()], totals: [None, None] };
    let shared = Arc::new(LockStep { turn: Mutex::new(turn), passed: Condvar::new(), beyond });
    let (work, threads) = (&work, tch::get_num_threads());
    std::thread::scope(|scope| {
        let mut started = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let member = Member { index, rounds: AtomicUsize::new(0), shared: Arc::clone(&shared) };
            let run = move || {
                let member = Arc::new(member);
                let _ending = Ending(&member);
                drop(member.wait());
                tch::set_num_threads(threads); // OpenMP's number is one per thread that starts parallel work
                work(index, item, Arc::clone(&member) as Arc<dyn AllReduce>)
            };
            let thread = std::thread::Builder::new().name(format!("chunk-{index}")).stack_size(STACK);
            match thread.spawn_scoped(scope, run) {
                Ok(thread) => started.push(thread),
                Err(error) => {
                    // Those that wait for the missing ones must not.
                    shared.lock().ended[index..].fill(true);
                    shared.passed.notify_all();
                    return Err(error);
                }
            }
        }
        let ends: Vec<_> = started.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        // The first to panic is the cause, the others only missed it.
        let cause = ends.iter().position(Result::is_err);
        let mut ends: Vec<_> = ends.into_iter().collect();
        match cause {
            Some(cause) => std::panic::resume_unwind(ends.swap_remove(cause).err().expect("it is an error")),
            None => Ok(ends.into_iter().flatten().collect()),
        }
    })
}

impl LockStep {
    fn lock(&self) -> MutexGuard<'_, Turn> {
        // A panic of a member leaves nothing half done here.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands over to the next member that has not ended.
    fn pass(&self, turn: &mut Turn) {
        let count = turn.ended.len();
        let next = (1..=count).map(|step| (turn.member + step) % count).find(|&member| !turn.ended[member]);
        turn.member = next.unwrap_or(turn.member);
        self.passed.notify_all();
    }
}

impl Member {
    /// Until it is this member's turn.
    fn wait(&self) -> MutexGuard<'_, Turn> {
        let turn = self.shared.lock();
        let others = |turn: &mut Turn| turn.member != self.index;
        self.shared.passed.wait_while(turn, others).unwrap_or_else(PoisonError::into_inner)
    }
}

impl AllReduce for Member {
    /// # Panics
    /// If another chunk has ended without this sum.
    fn all_reduce_sum(&self, values: &Tensor) {
        let round = self.rounds.fetch_add(1, Ordering::Relaxed) % 2;
        let mut turn = self.shared.lock();
        assert!(!turn.ended.contains(&true), "another chunk of the batch has ended early");
        let last = self.index + 1 == turn.ended.len();
        let total = match turn.totals[round].take() {
            Some(total) if self.index > 0 => total + values,
            _ => values.copy(),
        };
        if let Some(beyond) = self.shared.beyond.as_ref().filter(|_| last) {
            beyond.all_reduce_sum(&total);
        }
        turn.totals[round] = Some(total);
        self.shared.pass(&mut turn);
        drop(turn);
        let turn = self.wait();
        let total = turn.totals[round].as_ref().expect("this member put its share there");
        values.shallow_clone().copy_(total);
    }
}

/// Ends a member's part, also by a panic.
struct Ending<'a>(&'a Member);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let mut turn = self.0.shared.lock();
        turn.ended[self.0.index] = true;
        if turn.member == self.0.index {
            self.0.shared.pass(&mut turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(exchange: &Arc<dyn AllReduce>, value: f32) -> f64 {
        let values = Tensor::from_slice(&[value]);
        exchange.all_reduce_sum(&values);
        values.double_value(&[0])
    }

    /// Several rounds, each with the sum of what all gave; and never two at a time.
    #[test]
    fn everybody_gets_every_sum_and_runs_alone() {
        let running = AtomicUsize::new(0);
        let alone = || assert_eq!(running.load(Ordering::SeqCst), 0, "two at a time");
        let sums = in_lock_step((0..5).collect(), None, |index, item: usize, exchange| {
            assert_eq!(index, item);
            let mut found = Vec::new();
            for round in 0..4 {
                alone();
                running.fetch_add(1, Ordering::SeqCst);
                std::thread::yield_now();
                running.fetch_sub(1, Ordering::SeqCst);
                found.push(sum_of(&exchange, (item + 10 * round) as f32));
            }
            found
        });
        assert_eq!(sums.unwrap(), vec![vec![10.0, 60.0, 110.0, 160.0]; 5]);
    }

    /// The last chunk takes the sum on to whoever is beyond, once a round.
    #[test]
    fn a_sum_goes_beyond_once() {
        #[derive(Debug, Default)]
        struct Doubles(AtomicUsize);
        impl AllReduce for Doubles {
            fn all_reduce_sum(&self, values: &Tensor) {
                self.0.fetch_add(1, Ordering::SeqCst);
                let _ = values.shallow_clone().g_mul_scalar_(2.0);
            }
        }
        let beyond = Arc::new(Doubles::default());
        let outer: Arc<dyn AllReduce> = beyond.clone();
        let sums = in_lock_step(vec![1.0f32, 2.0, 4.0], Some(outer), |_, item, exchange| {
            [sum_of(&exchange, item), sum_of(&exchange, 1.0)]
        });
        assert_eq!(sums.unwrap(), [[14.0, 6.0]; 3]);
        assert_eq!(beyond.0.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn one_that_ends_early_ends_the_others_and_hangs_nobody() {
        for early in 0..3 {
            let run = std::panic::catch_unwind(|| {
                in_lock_step(vec![0, 1, 2], None, |index, _: i32, exchange| {
                    sum_of(&exchange, 1.0);
                    assert_ne!(index, early, "the cause");
                    sum_of(&exchange, 1.0);
                })
            });
            assert!(run.is_err(), "{early}");
        }
    }
}
