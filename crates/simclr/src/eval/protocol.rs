//! helper eval
