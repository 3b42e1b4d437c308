"""Wan image-to-video models: specification, replica, prompts, experts, low-rank weights, VAE."""
