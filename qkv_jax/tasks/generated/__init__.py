"""Tasks whose examples are drawn inside jit."""
