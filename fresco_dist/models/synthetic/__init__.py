"""No weights: every forward waits."""
