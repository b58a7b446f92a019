"""Running a study as jobs of a cluster."""
