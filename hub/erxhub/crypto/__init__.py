"""Signatures, envelopes, certificates and the trust domain.

Owns: what a signature suite is, what bytes are signed, who a TLS peer is, and how demonstration
certificates are made.
Must never: decide whether a key is registered, revoked or allowed to sign something. That changes over time
and is decided from the ledger; everything here is a function of the bytes it is given.
"""
