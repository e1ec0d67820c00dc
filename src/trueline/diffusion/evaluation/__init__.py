"""What models paint, side by side, and who scores it."""
