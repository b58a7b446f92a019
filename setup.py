"""What setup.cfg cannot say: commands and configs are packages of their own in a clone, and within
`qkv_jax` once installed, so that nobody's `experiments` or `configs` is hidden by ours."""

from setuptools import find_namespace_packages, find_packages, setup

MOVED = ("experiments", "configs")
moved = find_namespace_packages(include=[*MOVED, *(f"{name}.*" for name in MOVED)])

setup(
    packages=find_packages(include=["qkv_jax*"]) + [f"qkv_jax.{name}" for name in moved],
    package_dir={f"qkv_jax.{name}": name for name in MOVED},
)
