//! What leaves: the encoder as safetensors with torchvision's names, features as parquet or .npy.
