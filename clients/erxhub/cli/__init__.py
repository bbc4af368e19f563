"""The `erxhub` command. Owns what a person types and reads; every decision is the hub's."""
