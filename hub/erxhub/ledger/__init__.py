"""The ledger: the entry format, the stores that keep entries, and their verification.

Owns what is written and how it is proven. It must never decide a command, read the clock, or draw randomness:
salts, instants and ids come in with every entry.
"""
