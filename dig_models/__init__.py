"""DIG: one model that ranks items and retrieves them through semantic IDs.

The mathematics and its runtime. Nothing here imports airflow, pyspark or the ``jobs`` package.
"""
