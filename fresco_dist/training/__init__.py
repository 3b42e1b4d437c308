"""The embedded model: procedural data, model construction, training stages and evaluation.

Nothing here is imported by the denoising program; it only writes `fresco_dist/assets/`.
"""
