"""Several studies of the same tasks in one table and one figure."""
