"""qkv_jax: experiments on equating the queries, keys, values and input of attention.

The layers, each importing only from those before it: `tie` (the lattice of 15 schemes),
`positions`, `projections`, `attention`, `transformer`, `tasks`, `training`, `study`.
"""

__version__ = "0.1.0"
