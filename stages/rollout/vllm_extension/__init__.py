"""Folder that the vLLM server finds on its path; its module imports nothing of ours."""
