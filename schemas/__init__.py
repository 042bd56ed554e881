"""Ground floor: what a row is, what a configuration is, and how tables are named.

Nothing here reads a file, runs a model or knows Prefect.
"""
