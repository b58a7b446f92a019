"""Image classification: two sets that install with packages, and folders of one's own."""
