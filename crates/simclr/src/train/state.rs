//! Everything that a resumed run needs: weights, batch-norm buffers, optimizer, step.
