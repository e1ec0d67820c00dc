"""What `trueline diffusion` and its demo do."""
