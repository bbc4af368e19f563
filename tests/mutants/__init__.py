"""The tests of the conformance cases: products and a hub with one thing broken, each of which a case must catch."""
