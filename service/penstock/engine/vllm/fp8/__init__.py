"""FP8 weights: the arithmetic (`blocks`), writing a checkpoint (`write`), and running one on a CPU (`cpu`)."""
