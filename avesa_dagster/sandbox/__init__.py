"""Simulated business systems, run as processes of their own, for the demo and the tests.

`avesa_dagster.sandbox.connectwise` is a ConnectWise PSA service that knows the truth about its own
records and can be told to misbehave. Nothing here imports a connector, or anything outside the
standard library: a service that shared code with its client could share its mistakes.
"""
