"""Semantic IDs made beforehand, from items alone: what a two-stage system gives to the model that comes after."""
