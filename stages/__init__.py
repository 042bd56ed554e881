"""What is computed: typed frames and a config in, typed frames out.

Nothing here knows Prefect, paths or storage. A stage is a module or a folder named as in the
configuration; see docs/stages.md for the contract that all of them keep.
"""
