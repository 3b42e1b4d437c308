"""A distributed multi-GPU tile scheduler that animates images at 4K (FrescoDiffusion, arXiv 2603.17555)."""

__version__ = "0.1.0"
