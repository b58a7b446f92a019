"""qkv_jax: experiments on equating the queries, keys, values and input of attention.

The layers, each importing only from those before it: `config`, `arrays`, `tie` (the lattice of 15
schemes), `positions`, `adapters`, `projections`, `attention`, `model_config`, `transformer`,
`tasks`, `training`, `interop`, `analysis`, `study`.
"""

__version__ = "0.1.0"
