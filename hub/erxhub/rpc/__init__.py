"""The edge: gRPC in, commands and queries inward, answers and refusals out. No business question is answered here."""
