"""Preference data on images: read, decoded, encoded, kept by content, and drawn in batches."""
