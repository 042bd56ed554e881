"""Web pages and a file for looking at runs: rendered on this side, without any script.

A request becomes a few lazy queries (`reading`), these a small typed view (`overview`, `groups`,
`conversation`, `comparison`, `timing`), and that a page by a template. Nothing is kept between
requests, nothing is written, and no more of a run is read than a page shows or counts.
"""
