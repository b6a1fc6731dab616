"""Retrieval: the prefix trie of the catalogue, beam search over it, exact prefix means, re-ranking."""
