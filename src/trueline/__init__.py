"""Align language models to be safe and preferred, and show whether and why it worked."""
