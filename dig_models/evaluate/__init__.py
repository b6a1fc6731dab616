"""Metrics in pure NumPy: ranking, retrieval, semantic-ID quality, bootstrap over users."""
