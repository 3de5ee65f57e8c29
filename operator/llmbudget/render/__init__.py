"""One pure builder a child object: from the World to a manifest.

`children.py` puts them in the order in which they are applied. The same world gives the same
bytes, so that nothing is written when nothing changed.
"""
