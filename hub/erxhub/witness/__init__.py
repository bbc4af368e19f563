"""The witness: a process of its own that cosigns the checkpoints of logs, and the client that asks it to.

Owns the tlog-witness protocol of docs/formats.md, both sides. It must never read a ledger: what a witness knows of a
log is the newest checkpoint that it cosigned.
"""
