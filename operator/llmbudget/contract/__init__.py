"""What the planes say to each other: the gateway's configuration and the ledger's event stream.

The operator writes the first and reads the second, the gateway the other way round. Both sides
parse with these models, so a change here is a change of the protocol between versions.
"""
