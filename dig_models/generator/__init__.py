"""A generator of semantic IDs: an encoder-decoder reads the SIDs of a history and writes that of the next item, as two-stage systems do.

Needs the extra ``generator`` (transformers).
"""
