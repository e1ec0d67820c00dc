"""How every curation verb runs: a decorated step, in chunks, over ranks, resumable."""
