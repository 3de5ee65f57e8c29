"""The resources of group `llmbudget.io`: what users write and what the status answers.

The pydantic models here are the source of truth; the CRDs in `crds/` are generated from them.
This is the lowest layer: it imports nothing else of the package.
"""
