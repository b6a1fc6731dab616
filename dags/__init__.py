"""When things run and what follows what; no torch, no pyspark, no model code."""
