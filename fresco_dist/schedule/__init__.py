"""What to do where and when: plan, graph, dispatch, simulation. Data in, data out; no torch, diffusers or ray."""
