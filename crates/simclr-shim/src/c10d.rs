//! Rendezvous and collectives of libtorch (c10d's TCPStore and Gloo), without MPI.

use std::{
    ffi::{c_char, c_int, c_void},
    time::Duration,
};

use crate::{Channel, ShimError, check, text};

#[repr(C)]
struct CStore {
    _opaque: [u8; 0],
}

#[repr(C)]
struct CGroup {
    _opaque: [u8; 0],
}

type Receive = extern "C" fn(*mut c_void, *const u8, usize);

unsafe extern "C" {
    fn simclr_store_new(
        host: *const c_char,
        port: u16,
        serve: c_int,
        timeout: f64,
        out: *mut *mut CStore,
    ) -> *mut c_char;
    fn simclr_store_free(store: *mut CStore);
    fn simclr_store_port(store: *const CStore) -> u16;
    fn simclr_store_set(
        store: *mut CStore,
        key: *const c_char,
        bytes: *const u8,
        length: usize,
    ) -> *mut c_char;
    fn simclr_store_get(
        store: *mut CStore,
        key: *const c_char,
        context: *mut c_void,
        receive: Receive,
    ) -> *mut c_char;
    fn simclr_store_add(store: *mut CStore, key: *const c_char, by: i64, sum: *mut i64) -> *mut c_char;
    fn simclr_gloo_new(
        store: *const CStore,
        prefix: *const c_char,
        rank: c_int,
        count: c_int,
        address: *const c_char,
        timeout: f64,
        out: *mut *mut CGroup,
    ) -> *mut c_char;
    fn simclr_gloo_free(group: *mut CGroup);
    fn simclr_gloo_all_reduce(
        group: *const CGroup,
        values: *mut c_void,
        length: i64,
        wide: c_int,
    ) -> *mut c_char;
    fn simclr_gloo_all_gather(group: *const CGroup, own: *const u8, length: i64, all: *mut u8)
    -> *mut c_char;
    fn simclr_gloo_broadcast(group: *const CGroup, from: c_int, bytes: *mut u8, length: i64) -> *mut c_char;
}

/// A client of a TCPStore: keys and values shared by all processes, held by the process that hosts it.
///
/// Every call is a round trip that blocks, without time limit, while the server does not answer.
#[derive(Debug)]
pub struct Store {
    store: *mut CStore,
}

// SAFETY: TCPStore locks its connection in every call.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects to `host:port` within `timeout`; with `serve`, listens there first (port 0: any free one).
    ///
    /// # Errors
    /// The port is taken, or nothing answers there in time.
    pub fn new(host: &str, port: u16, serve: bool, timeout: Duration) -> Result<Self, ShimError> {
        let host = text(host.as_bytes())?;
        let mut store = std::ptr::null_mut();
        let (serve, seconds) = (c_int::from(serve), timeout.as_secs_f64());
        // SAFETY: `host` outlives the call; `store` is written on success.
        check(unsafe { simclr_store_new(host.as_ptr(), port, serve, seconds, &raw mut store) })?;
        Ok(Self { store })
    }

    /// Port of the server.
    pub fn port(&self) -> u16 {
        // SAFETY: the store is live.
        unsafe { simclr_store_port(self.store) }
    }

    /// Sets the value of `key`. Does not wait for the server: another connection may still read the former value.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), ShimError> {
        let key = text(key.as_bytes())?;
        // SAFETY: all pointers are live for the call.
        check(unsafe { simclr_store_set(self.store, key.as_ptr(), value.as_ptr(), value.len()) })
    }

    /// The value of `key`, if it was set.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, ShimError> {
        extern "C" fn receive(context: *mut c_void, bytes: *const u8, length: usize) {
            // SAFETY: `context` is the option below, alive during the call; `bytes` are `length` bytes unless it is 0.
            unsafe {
                let value = if length == 0 { &[] } else { std::slice::from_raw_parts(bytes, length) };
                *context.cast::<Option<Vec<u8>>>() = Some(value.to_vec());
            }
        }
        let key = text(key.as_bytes())?;
        let mut value: Option<Vec<u8>> = None;
        // SAFETY: the callback and its context fit each other and are used during the call only.
        check(unsafe { simclr_store_get(self.store, key.as_ptr(), (&raw mut value).cast(), receive) })?;
        Ok(value)
    }

    /// Adds to a counter that starts at 0, and returns its new value.
    ///
    /// # Errors
    /// The connection is lost.
    pub fn add(&self, key: &str, by: i64) -> Result<i64, ShimError> {
        let key = text(key.as_bytes())?;
        let mut sum = 0;
        // SAFETY: all pointers are live for the call.
        check(unsafe { simclr_store_add(self.store, key.as_ptr(), by, &raw mut sum) })?;
        Ok(sum)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once.
        unsafe { simclr_store_free(self.store) }
    }
}

/// A Gloo communicator. Every rank calls the same collectives in the same order, one at a time.
#[derive(Debug)]
pub struct Gloo {
    group: *mut CGroup,
    count: usize,
}

// SAFETY: the process group may be used from any thread, and queues collectives under a lock.
unsafe impl Send for Gloo {}
// SAFETY: as above.
unsafe impl Sync for Gloo {}

fn int(value: usize) -> Result<c_int, ShimError> {
    c_int::try_from(value).map_err(|error| ShimError(error.to_string()))
}

impl Gloo {
    /// Connects every pair of the `count` processes that call this with the same store and `prefix`. `address` is this process's,
    /// as the others reach it; `timeout` limits the connection. Collectives have no limit: the caller
    /// watches its peers.
    ///
    /// # Errors
    /// An address that is not of this machine, or a peer that cannot be reached.
    pub fn new(
        store: &Store,
        prefix: &str,
        (rank, count): (usize, usize),
        address: &str,
        timeout: Duration,
    ) -> Result<Self, ShimError> {
        let (prefix, address) = (text(prefix.as_bytes())?, text(address.as_bytes())?);
        let (rank, ranks, seconds) = (int(rank)?, int(count)?, timeout.as_secs_f64());
        let mut group = std::ptr::null_mut();
        // SAFETY: the store and both texts are live for the call; `group` is written on success.
        check(unsafe {
            simclr_gloo_new(
                store.store,
                prefix.as_ptr(),
                rank,
                ranks,
                address.as_ptr(),
                seconds,
                &raw mut group,
            )
        })?;
        Ok(Self { group, count })
    }

    /// # Safety
    /// `values` are `length` values of the type.
    unsafe fn all_reduce_as(&self, values: *mut c_void, length: usize, wide: bool) -> Result<(), ShimError> {
        if length == 0 {
            return Ok(());
        }
        // SAFETY: the group is live, the memory too while the call waits for the collective.
        check(unsafe { simclr_gloo_all_reduce(self.group, values, length as i64, c_int::from(wide)) })
    }

    /// The bytes of every rank in a row; lengths must be equal.
    fn all_gather_equal(&self, own: &[u8]) -> Result<Vec<u8>, ShimError> {
        let mut all = vec![0; own.len() * self.count];
        if !own.is_empty() {
            // SAFETY: `all` has room for the bytes of every rank; both are live while the call waits for the collective.
            check(unsafe {
                simclr_gloo_all_gather(self.group, own.as_ptr(), own.len() as i64, all.as_mut_ptr())
            })?;
        }
        Ok(all)
    }
}

impl Channel for Gloo {
    fn all_reduce(&self, values: &mut [f32]) -> Result<(), ShimError> {
        // SAFETY: the slice holds as many f32.
        unsafe { self.all_reduce_as(values.as_mut_ptr().cast(), values.len(), false) }
    }

    fn all_reduce_f64(&self, values: &mut [f64]) -> Result<(), ShimError> {
        // SAFETY: the slice holds as many f64.
        unsafe { self.all_reduce_as(values.as_mut_ptr().cast(), values.len(), true) }
    }

    fn all_gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, ShimError> {
        let lengths = self.all_gather_equal(&(own.len() as u64).to_le_bytes())?;
        let lengths: Vec<usize> =
            lengths.as_chunks().0.iter().map(|&bytes| u64::from_le_bytes(bytes) as usize).collect();
        // Gloo gathers equal lengths: shorter values are padded.
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut padded = own.to_vec();
        padded.resize(longest, 0);
        let all = self.all_gather_equal(&padded)?;
        let value = |(rank, &length): (usize, &usize)| all[rank * longest..][..length].to_vec();
        Ok(lengths.iter().enumerate().map(value).collect())
    }

    fn broadcast(&self, from: usize, bytes: &mut [u8]) -> Result<(), ShimError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let from = int(from)?;
        // SAFETY: the memory is live while the call waits for the collective.
        check(unsafe { simclr_gloo_broadcast(self.group, from, bytes.as_mut_ptr(), bytes.len() as i64) })
    }

    fn barrier(&self) -> Result<(), ShimError> {
        self.all_reduce(&mut [0.0])
    }
}

impl Drop for Gloo {
    fn drop(&mut self) {
        // SAFETY: made by `new`, freed once; no collective is in progress, since each call waits.
        unsafe { simclr_gloo_free(self.group) }
    }
}
