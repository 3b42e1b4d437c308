"""From what people give, on a command line or in a call, to a `Config`: schema, composing, errors in words.

With the commands, the only ones that see Hydra and OmegaConf. Reads configuration files, no picture and no model.
"""
