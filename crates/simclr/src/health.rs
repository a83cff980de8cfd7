//! Is it learning? Figures that need no labels, and what they mean in plain words.
