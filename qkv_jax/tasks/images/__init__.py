"""Image classification: two sets that install with packages, and sets of one's own."""
