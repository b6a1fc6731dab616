"""Training runtime of DIG: batches from Parquet, the loop, checkpoints, distribution."""
