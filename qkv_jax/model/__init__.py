"""The Transformer encoder, from positions and projections to the whole of it."""
