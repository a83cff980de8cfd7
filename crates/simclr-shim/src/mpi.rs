//! A safe interface to MPI: initialisation, communicators, and the collectives in use, with their return codes checked, which
//! the `mpi` crate's own methods discard.

use std::{
    ffi::{c_int, c_void},
    sync::Arc,
};

use mpi::{Threading, environment::Universe, ffi, traits::AsRaw};

use crate::{Channel, ShimError, exit_now};

/// Maximum number of elements per call: MPI counts in C ints.
const MAX_COUNT: usize = 1 << 28;

/// The initialised MPI library, finalised when this and the last [`MpiChannel`] have been dropped.
pub struct Mpi {
    universe: Universe,
    rank: usize,
    count: usize,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.count)
    }
}

// SAFETY: `start` checks for MPI_THREAD_MULTIPLE, under which any thread may call MPI at any time.
unsafe impl Send for Mpi {}
// SAFETY: as above.
unsafe impl Sync for Mpi {}

fn check(code: c_int) -> Result<(), ShimError> {
    if code == 0 {
        return Ok(());
    }
    let mut text = [0u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length: c_int = 0;
    // SAFETY: the buffer has the required length.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &mut length) };
    let length = usize::try_from(length).unwrap_or_default().min(text.len());
    Err(ShimError(format!("MPI: {}", String::from_utf8_lossy(&text[..length]))))
}

fn int(value: usize) -> c_int {
    c_int::try_from(value).expect("messages are split into pieces of at most MAX_COUNT")
}

impl Mpi {
    /// Initialises MPI; at most once per process.
    ///
    /// # Errors
    /// A second call, or an MPI without MPI_THREAD_MULTIPLE.
    pub fn start() -> Result<Arc<Self>, ShimError> {
        let joined = mpi::initialize_with_threading(Threading::Multiple);
        let (universe, level) = joined.ok_or_else(|| ShimError("MPI: already initialised".into()))?;
        if level < Threading::Multiple {
            return Err(ShimError(format!(
                "MPI: it provides thread level {level:?}, MPI_THREAD_MULTIPLE is required"
            )));
        }
        use mpi::traits::Communicator;
        let world = universe.world();
        let (rank, count) = (world.rank() as usize, world.size() as usize);
        // SAFETY: the world is live, the handler a constant of MPI: errors become return codes.
        check(unsafe { ffi::MPI_Comm_set_errhandler(world.as_raw(), ffi::RSMPI_ERRORS_RETURN) })?;
        Ok(Arc::new(Self { universe, rank, count }))
    }

    /// Rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Host name.
    pub fn host() -> String {
        mpi::environment::processor_name().unwrap_or_default()
    }

    /// A new communicator over all ranks, independent of the others. Collective.
    ///
    /// # Errors
    /// MPI errors.
    pub fn channel(self: &Arc<Self>) -> Result<MpiChannel, ShimError> {
        // SAFETY: the world is live; `raw` is written on success, and owned by the channel.
        unsafe {
            let mut raw = ffi::RSMPI_COMM_NULL;
            check(ffi::MPI_Comm_dup(self.universe.world().as_raw(), &mut raw))?;
            check(ffi::MPI_Comm_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN))?;
            Ok(MpiChannel { raw, mpi: Arc::clone(self) })
        }
    }

    /// Aborts all ranks with this exit code; this process exits even if the launcher is unreachable.
    pub fn abort_all(&self, code: i32) -> ! {
        /// Time for `MPI_Abort` to reach the launcher.
        const GRACE_PERIOD: std::time::Duration = std::time::Duration::from_secs(3);
        std::thread::spawn(move || {
            std::thread::sleep(GRACE_PERIOD);
            exit_now(code)
        });
        // SAFETY: may be called from any thread; it returns only if the launcher is gone.
        unsafe { ffi::MPI_Abort(self.universe.world().as_raw(), code) };
        exit_now(code)
    }
}

/// A communicator over all ranks. All methods but [`MpiChannel::send`] and [`MpiChannel::receive`] are collective: every rank calls
/// them in the same order.
pub struct MpiChannel {
    raw: ffi::MPI_Comm,
    mpi: Arc<Mpi>,
}

impl std::fmt::Debug for MpiChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "channel of {:?}", self.mpi)
    }
}

// SAFETY: a communicator is a handle; MPI_THREAD_MULTIPLE holds (see `Mpi::start`).
unsafe impl Send for MpiChannel {}
// SAFETY: as above.
unsafe impl Sync for MpiChannel {}

impl Drop for MpiChannel {
    fn drop(&mut self) {
        // SAFETY: ours, freed once, before MPI is finalised: `mpi` is dropped after this.
        unsafe { ffi::MPI_Comm_free(&mut self.raw) };
    }
}

impl MpiChannel {
    fn all_reduce_as<T: Copy>(&self, values: &mut [T], kind: ffi::MPI_Datatype) -> Result<(), ShimError> {
        for piece in values.chunks_mut(MAX_COUNT) {
            let own = piece.to_vec();
            // SAFETY: both buffers hold `len` values of `kind` and do not overlap.
            check(unsafe {
                ffi::MPI_Allreduce(
                    own.as_ptr().cast(),
                    piece.as_mut_ptr().cast(),
                    int(own.len()),
                    kind,
                    ffi::RSMPI_SUM,
                    self.raw,
                )
            })?;
        }
        Ok(())
    }

    /// Sends without blocking; `None` on error, which the receiver's heartbeat timeout detects as well.
    pub fn send(&self, to: usize, words: [u64; 2]) -> Option<Sending> {
        let words = Box::new(words);
        // SAFETY: `words` lives on the heap until the request is done: `Sending` owns both.
        unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let start: *const c_void = (&raw const *words).cast();
            let code = ffi::MPI_Isend(start, 2, ffi::RSMPI_UINT64_T, int(to), 0, self.raw, &mut request);
            (code == 0).then_some(Sending { request, words: Some(words) })
        }
    }

    /// The next received message, if any, and its sender.
    pub fn receive(&self) -> Option<(usize, [u64; 2])> {
        // SAFETY: what is probed is two words, the only message that `send` makes on this channel.
        unsafe {
            let mut status: ffi::MPI_Status = std::mem::zeroed();
            let mut there: c_int = 0;
            let any = (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_ANY_TAG);
            if ffi::MPI_Iprobe(any.0, any.1, self.raw, &mut there, &mut status) != 0 || there == 0 {
                return None;
            }
            let mut words = [0u64; 2];
            let (from, start) = (status.MPI_SOURCE, (&raw mut words).cast());
            let kind = ffi::RSMPI_UINT64_T;
            let code = ffi::MPI_Recv(start, 2, kind, from, any.1, self.raw, &mut status);
            (code == 0).then_some((from as usize, words))
        }
    }
}

impl Channel for MpiChannel {
    fn all_reduce(&self, values: &mut [f32]) -> Result<(), ShimError> {
        // SAFETY: the type is MPI's for f32.
        self.all_reduce_as(values, unsafe { ffi::RSMPI_FLOAT })
    }

    fn all_reduce_f64(&self, values: &mut [f64]) -> Result<(), ShimError> {
        // SAFETY: the type is MPI's for f64.
        self.all_reduce_as(values, unsafe { ffi::RSMPI_DOUBLE })
    }

    /// # Panics
    /// If the total is 2 GiB or more.
    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ShimError> {
        let count = self.mpi.count;
        let mut lengths = vec![0 as c_int; count];
        let length = int(own.len());
        // SAFETY: one value is sent, `count` are received.
        check(unsafe {
            let kind = ffi::RSMPI_INT32_T;
            ffi::MPI_Allgather(
                (&raw const length).cast(),
                1,
                kind,
                lengths.as_mut_ptr().cast(),
                1,
                kind,
                self.raw,
            )
        })?;
        let sizes: Vec<usize> = lengths.iter().map(|&length| length as usize).collect();
        let places: Vec<c_int> =
            sizes.iter().scan(0, |at, size| Some(int(std::mem::replace(at, *at + size)))).collect();
        // The address of an empty Rust slice is 1, which Open MPI interprets as MPI_IN_PLACE.
        let own = if own.is_empty() { &[0u8][..] } else { own };
        let mut all = vec![0u8; sizes.iter().sum::<usize>().max(1)];
        // SAFETY: `all` has room for every piece at its place; `own` holds at least `length` bytes.
        check(unsafe {
            ffi::MPI_Allgatherv(
                own.as_ptr().cast(),
                length,
                ffi::RSMPI_UINT8_T,
                all.as_mut_ptr().cast(),
                lengths.as_ptr(),
                places.as_ptr(),
                ffi::RSMPI_UINT8_T,
                self.raw,
            )
        })?;
        let mut rest = &all[..];
        Ok(sizes.iter().map(|&size| rest.split_off(..size).unwrap_or_default().to_vec()).collect())
    }

    fn broadcast(&self, from: usize, bytes: &mut [u8]) -> Result<(), ShimError> {
        for piece in bytes.chunks_mut(MAX_COUNT) {
            let length = int(piece.len());
            let start: *mut c_void = piece.as_mut_ptr().cast();
            // SAFETY: the buffer holds `length` bytes.
            check(unsafe { ffi::MPI_Bcast(start, length, ffi::RSMPI_UINT8_T, int(from), self.raw) })?;
        }
        Ok(())
    }

    fn barrier(&self) -> Result<(), ShimError> {
        // SAFETY: the communicator is live.
        check(unsafe { ffi::MPI_Barrier(self.raw) })
    }
}

/// A send in progress.
pub struct Sending {
    request: ffi::MPI_Request,
    words: Option<Box<[u64; 2]>>,
}

// SAFETY: a request is a handle; MPI_THREAD_MULTIPLE holds.
unsafe impl Send for Sending {}

impl Sending {
    /// Whether the buffer may be reused.
    pub fn is_done(&mut self) -> bool {
        let mut done: c_int = 0;
        // SAFETY: the request is live, or null, which counts as done.
        let code = unsafe { ffi::MPI_Test(&mut self.request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
        code != 0 || done != 0
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.is_done() {
            // MPI still reads the buffer, so it is leaked: sixteen bytes of a process that is about to exit.
            self.words.take().map(Box::leak);
        }
    }
}
