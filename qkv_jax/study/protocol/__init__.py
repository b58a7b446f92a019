"""The protocol of a study: what follows what, and how runs become verdicts."""
