"""A worked example of attention with every number, which `experiments.explain` prints.

sources    what is walked: words through a random layer, a run at some steps, a pretrained model
examples   texts and examples of tasks as the model reads them, with a label a token
core       `walk_through`: every array on the way through one attention layer
remarks    what is to be seen in the arrays, in sentences computed from them
steps      the telling: formula, sentence and (`views`, `panels`) arrays of each step
terminal, page, heat    a telling as text, as a page, and its heat maps
"""
