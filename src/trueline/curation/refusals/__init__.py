"""Compliance-refusal data and its counterpart: answers, refusals, and who writes them."""
