//! One update of Algorithm 1.
