"""The control plane: gather → decide → render → apply → status.

Events only say that something changed; what is done depends on how things are. `wiring` and
`watches` put keys on a queue, `controller` works on one root budget at a time.
"""
