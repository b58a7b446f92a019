"""The command line: flags and config in, one clear line and an exit code out."""
