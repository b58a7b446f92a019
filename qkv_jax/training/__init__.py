"""One pure train step, and the ways to run it: alone, or as a population of replicas."""
