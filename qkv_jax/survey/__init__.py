"""The survey of a trained model, which `experiments.analyze` writes.

subjects   what is surveyed: a run and its past, a model of a study, a pretrained one
texts      sentences for pretrained models
flow       clouds of tokens of X, Q, K and V, and attention weights, gathered over batches
quantities what is measured, with what it means and which null stands beside it
measures   every quantity of every layer and head, nulls, spectra, movement
core       `survey`: all of it
remarks    what is to be seen in the numbers, in sentences computed from them
terminal, page, plots    a survey as text, as a page, and its figures
"""
