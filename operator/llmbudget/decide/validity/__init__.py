"""What is wrong with a root budget, its children and its providers, beyond what the CRDs refuse.

A chain of pure functions over one World, each looking for one kind of fault. A finding says what
is wrong and what to do; what it is about is left out of the gateway's configuration, and the rest
goes on.
"""
