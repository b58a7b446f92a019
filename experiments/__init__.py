"""Commands: thin mains over the library. Each runs as `python -m experiments.NAME`."""
