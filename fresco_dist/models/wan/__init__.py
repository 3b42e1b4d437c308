"""Wan image-to-video models: specification, replica, experts, low-rank weights, VAE."""
