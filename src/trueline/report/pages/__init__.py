"""The pages of runs: what is read of a run directory, and the sections made of it."""
