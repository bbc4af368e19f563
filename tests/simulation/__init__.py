"""The hub's core, its lane and a store in memory, with robots of every role and faults, in one process.

What it checks and what it cannot: docs/simulation.md. Must never import a client: the robots are written against the
protos and the core's words alone, so that a slip of a client cannot hide one of the hub.
"""
