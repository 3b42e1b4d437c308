"""Stable Diffusion: one frame from text."""
