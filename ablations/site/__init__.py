"""The documentation site: `make docs` builds it into `build/site`.

A page is Markdown, or reStructuredText for the reference, and a Jinja template: `include` puts in what the
rooms' own pages say, `settings` and `help` what the code says of itself (`weaving.py`). No text stands twice.
"""
