// Trains the linear layers' weights with the largest norm. `METADATA` is the text of plugin.json; the build puts it in.

export const policy = {
  describe() {
    return METADATA;
  },

  makePlan(settings, view, builder) {
    const { percent } = JSON.parse(settings);
    const scored = [];
    for (let id = 0; id < view.tensorCount(); id++) {
      const tensor = view.tensor(id);
      if (tensor.kind() !== "linear") continue;
      const norm = tensor.norm("l2");
      builder.score(id, norm);
      scored.push({ id, norm });
    }
    // Of equal norms the earlier tensor's comes first, so that the plan is the same on every machine.
    scored.sort((a, b) => b.norm - a.norm || a.id - b.id);
    const kept = Math.max(1, Math.floor((scored.length * percent) / 100));
    for (const { id } of scored.slice(0, kept)) builder.train(id);
  },

  revise(settings, view, moment, builder) {},
};
