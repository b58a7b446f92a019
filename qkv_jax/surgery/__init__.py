"""Ties imposed on trained models, which `experiments.surgery` does and measures.

impose     a layer under a tie by keeping, averaging or fitting; the model with that tie
fit        the least-squares shared projection after the best change of basis within each head
rotary     the same where rotary positions stand between queries and keys
damage     what a run or a pretrained model loses, layer by layer, and what training gives back
distillation  a tied model taught to give back the original's hidden states
store      tied models on disk
page       tables, a figure and a page of it
"""
