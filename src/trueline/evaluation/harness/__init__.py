"""One evaluation: benchmark x attack x judge on one model, from its cases to its findings."""
