"""Carries tasks out: workers, one step, cells, collectives, executors, the Ray cluster. Decides nothing."""
