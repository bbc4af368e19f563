"""A sandbox: several hubs in one process behind one port, each with its own ledger, clock, seed, faults and traffic.

Owns what makes a hub a place to try things in. Must never: serve a ledger that counts, or an authority that is not a
test's.
"""
