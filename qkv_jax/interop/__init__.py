"""Other people's models in our own modules: pretrained weights, their tokenizers, their layouts."""
