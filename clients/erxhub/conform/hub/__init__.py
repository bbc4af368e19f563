"""The hub role: our robots play every other party against a hub under test.

`target` opens it, `places` says what it offers (a sandbox, or nothing but the data port), `journey` brings a
prescription to any state, `raw` makes calls that no client library would make, `proxy` disturbs the line to a hub that
cannot disturb itself.
"""
