"""`halfmask bench RECIPE`: images per second, memory, and where a training step waits."""
