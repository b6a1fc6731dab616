"""Answers over the network from index generations: the core that answers, the follower of ``CURRENT``, the HTTP server."""
