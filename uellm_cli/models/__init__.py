"""What a model is without its weights: shape, bytes of weights and KV cache, tokens."""
