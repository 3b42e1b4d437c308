"""The evaluation command: data sets and the comparisons that are made on them."""
