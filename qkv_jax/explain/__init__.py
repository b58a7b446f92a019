"""A worked example of attention with every number, which `experiments.explain` prints.

`sources` says what is walked: words through a random layer, steps of a run, a pretrained model;
`examples` makes texts and examples of tasks into tokens with labels. `walk.walk_through` computes
every array on the way through one attention layer. `facts` and `remarks` find what is to be seen in
the arrays, `steps` (with `views` and `panels`) tells them one after the other, `explanation` holds
all of it for `terminal` and `page`, whose maps are drawn by `heat`.
"""
