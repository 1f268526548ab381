"""A simulated Salesforce: REST queries, Bulk API 2.0, OAuth and the org's other quirks.

Written from `facts/salesforce.md` alone, whose source tags the docstrings repeat ([DOC], [SS],
[AB], [GK], [INF] …). `service` is the HTTP face, `control` the back door for tests; a "company" of
the control protocol is one org here, and a table is an object by its API name (`Case`).
"""
