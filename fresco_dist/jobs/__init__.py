"""From a request to a run folder: inputs, planning, pool, job, folder, progress. Knows neither Hydra nor kernels."""
