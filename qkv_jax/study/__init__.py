"""Studies: plan, engine, statistics, results, report."""
