"""The conformance suite: cases, the runner that plays them, and the reports (互操作一致性测试).

docs/harness.md is its manual and docs/driver-protocol.md the contract of a driver.
"""
