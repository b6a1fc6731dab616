"""The services around the pipeline, on one machine: PostgreSQL, Redis, MLflow and a real Airflow, all on loopback.

``python -m ops up`` starts them, ``down`` stops them, ``status`` says how they are, ``env`` prints what a shell needs to talk to
them. ``compose.yaml`` at the root starts the same in containers; ``secrets`` prints what it needs.
"""
