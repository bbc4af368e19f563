"""What the hub decides: pure functions over protobuf messages and the standard library.

Nothing here knows a clock, a network, a database or randomness; all of these come in as values.
"""
