"""Training on images: the step, the loop around it, and what is kept of a run."""
