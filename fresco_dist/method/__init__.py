"""The mathematics, one equation a function: windows, weights, noise, fusion. Knows no job, worker or file."""
