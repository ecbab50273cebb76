"""Somebody's training script, run as ``python`` would run it, and met between two batches."""
