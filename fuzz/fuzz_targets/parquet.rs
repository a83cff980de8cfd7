#![no_main]

use simclr_fuzz::{allow_guarded_panics, targets};

libfuzzer_sys::fuzz_target!(init: allow_guarded_panics(), |bytes: &[u8]| targets::parquet(bytes));
