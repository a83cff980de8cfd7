//! One file per command: arguments to library calls to output.

pub mod compare;
pub mod doctor;
pub mod embed;
pub mod evaluate;
pub mod export;
pub mod inspect;
pub mod pack;
pub mod pretrain;
pub mod views;
