"""Wan image-to-video models: specification, replica, encoders, experts, low-rank weights, VAE."""
