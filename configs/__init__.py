"""Config files: each returns one ml_collections.ConfigDict; its docstring says its command."""
