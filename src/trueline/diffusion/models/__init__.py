"""Text-to-image models: families, adapters, noise schedules and what they predict."""
