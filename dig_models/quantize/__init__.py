"""Residual quantization of item embeddings and the balanced tree that starts it."""
