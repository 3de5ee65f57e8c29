"""What callers and providers say to each other: one module a protocol, and the refusals of all.

Pure: bytes in, bytes out. The gateway moves them.
"""
