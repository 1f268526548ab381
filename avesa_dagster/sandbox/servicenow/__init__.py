"""A simulated ServiceNow: the Table API, the Aggregate API and OAuth of one or more instances.

Written from `facts/servicenow.md` and `servicenow_fields.json` alone. What the page marks as
inference, and what it leaves open, is decided in the module that it concerns, with a word there.
Each company is an instance on a port of its own, as instances have host names of their own.
"""
