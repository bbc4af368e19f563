"""The cases of the hub role, in code: one module for each area of the list of cases.

Each is an async function under `erxhub.conform.registry.case` whose docstring names the rule. It looks at the answer,
at the ledger (the auditor's trace, the copy of the log) and at the wire; what is checked of every case stands in
`erxhub.conform.hub.run`.
"""
