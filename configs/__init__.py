"""Config files: each returns one ml_collections.ConfigDict; its docstring says its command.

A file gives what differs from the dataclasses (`StudyFile` in qkv_jax/study/config.py, `TrainFile`
in experiments/train.py); every field of theirs can be set on the command line.
"""
