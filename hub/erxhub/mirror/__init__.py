"""A mirror: a second ledger made from what a hub streams, which believes nothing that it can work out itself.

Owns the replay and the verdict on it. It keeps its copy in a store of its own, with a log and a map that it builds from
the entries alone, and cosigns only what these agree with. It speaks to no network; whoever runs it brings the source.
"""
