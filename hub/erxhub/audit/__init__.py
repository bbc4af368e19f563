"""What an auditor is told of one prescription: its chain, the gaps in it, the light, the three flows.

Owns pure functions over entries that somebody else fetched, so that the hub and whoever holds a copy of the entries
come to the same verdict. It does no I/O, writes nothing, and trusts no state that it can fold again. A damaged entry is
a finding here and never an exception.
"""
