"""Pairs chosen by how alike their responses are: candidates, vectors and exact cuts."""
