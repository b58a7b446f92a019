"""Benchmarks: the same training by this project and by others, side by side in one run.

`sides.py` says what a side is and times them in turns; `ours.py`, `plain_flax.py` and `peer.py`
are the sides, `floor.py` what no side can be faster than; `population.py`, `train.py`,
`attention.py` and `study.py` are the benchmarks, and `publish.py` writes what they found. `gpu.py`
is made of `agreement.py`, `packing.py` and `utilisation.py`, within a `budget.py` of time.
"""
