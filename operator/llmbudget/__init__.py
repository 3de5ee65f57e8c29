"""LLM spending as a quota that cannot be overrun, for Kubernetes."""
