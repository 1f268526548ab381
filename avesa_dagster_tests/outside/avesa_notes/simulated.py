"""The simulated Notes: what its requests mean."""

from avesa_dagster.conformance import Ask, Request, Stand


class SimulatedNotes(Stand):
    tables = ("notes", "people")

    def understand(self, request: Request) -> Ask | None:
        _, version, table, *below = request.path.split("/")
        if version != "v1" or table not in self.tables:
            return None
        asked = {name: int(value) for name, value in request.query.items()}
        newest, limit = bool(asked.pop("newest", 0)), asked.pop("limit", 100)
        if below == ["count"]:
            return Ask("count", table, **asked)
        if below:
            return Ask("get", table, only=int(below[0]))
        return Ask("list", table, limit=limit, newest_first=newest, **asked)
