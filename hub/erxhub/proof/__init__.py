"""Proofs: the tree, the map, notes and checkpoints, as pure functions over bytes.

Owns the formats. It must never touch a store, a network, a clock or randomness: clients verify with it, offline.
"""
