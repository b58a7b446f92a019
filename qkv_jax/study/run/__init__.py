"""Running a study in one process: the engine and the work directory."""
