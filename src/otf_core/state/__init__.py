"""What is kept: RNG, plain values, checkpoints on disk."""
