"""Trains the linear layers' weights with the largest norm. `METADATA` is the text of plugin.json; the build puts it in."""

import json

from metadata import METADATA
from wit_world import exports


class Policy(exports.Policy):
    def describe(self):
        return METADATA

    def make_plan(self, settings, view, builder):
        percent = json.loads(settings)["percent"]
        scored = []
        for id in range(view.tensor_count()):
            tensor = view.tensor(id)
            if tensor.kind() != "linear":
                continue
            norm = tensor.norm("l2")
            builder.score(id, norm)
            scored.append((-norm, id))
        # Of equal norms the earlier tensor's comes first, so that the plan is the same on every machine.
        scored.sort()
        for _, id in scored[: max(1, int(len(scored) * percent / 100))]:
            builder.train(id)

    def revise(self, settings, view, moment, builder):
        pass
