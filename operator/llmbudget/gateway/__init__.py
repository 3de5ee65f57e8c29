"""The data plane: identify → route → hold → inject the key → send → meter → settle → answer."""
