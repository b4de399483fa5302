"""Compute FP8 weights (`blocks`), write a checkpoint with them (`write`), and run one on a CPU (`cpu`, `config`)."""
