"""Everything on one machine: a real control plane, a provider simulator, a gateway, the demo.

Nothing here runs in a cluster, and nothing here touches a cluster that was there before, unless
USE_EXISTING_CLUSTER=true asks for it.
"""
