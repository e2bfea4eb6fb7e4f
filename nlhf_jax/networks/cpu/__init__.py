"""What XLA for CPUs is too slow at, in C: compiled where it runs, and each beside the plain path that it equals."""
