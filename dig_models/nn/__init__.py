"""Layers of the DIG network: field embeddings, history attention, normalisation, crosses, experts, and the Mixer of them."""
