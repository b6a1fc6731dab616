"""The steps of the pipeline, one file each, every one runnable alone: ``python -m jobs.<step> --date D``."""
