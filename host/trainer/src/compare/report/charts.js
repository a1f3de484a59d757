// Charts as SVG: a scatter plot with its frontier, curves, and stacked bars. Each draws itself again when its width changes.

// A figure whose drawing depends on its width.
function chart(caption, draw, extra, below) {
  const stage = h("div", {});
  const figure = h("figure", {}, h("figcaption", {}, caption, extra), stage, below);
  let width = 0;
  const redraw = () => { if (width > 0) stage.replaceChildren(draw(width)); };
  new ResizeObserver((entries) => {
    const now = Math.floor(entries[0].contentRect.width);
    if (now > 0 && now !== width) { width = now; redraw(); }
  }).observe(stage);
  return { figure, redraw };
}

// About `count` round values that cover the range. Bytes are round in powers of two, time in minutes and hours; `least` is
// the smallest step.
function ticks(low, high, count, { binary = false, clock = false, least = 0 } = {}) {
  if (!(high > low)) return [low];
  let rough = Math.max((high - low) / count, least);
  if (clock && rough > 5) rough = [10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 18000, 36000].find((step) => step >= rough * 0.8) ?? rough;
  // In the unit in which the largest value is shown.
  let unit = 1;
  for (let value = high; binary && value >= 1000; value /= 1024) unit *= 1024;
  const power = unit * 10 ** Math.floor(Math.log10(rough / unit));
  const step = clock && rough >= 10 && rough % 5 === 0 ? rough : power * ([1, 2, 5, 10].find((m) => m * power >= rough * 0.999999) || 10);
  const values = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) values.push(Number(value.toPrecision(12)));
  return values;
}

function scale(low, high, from, to) {
  const span = high > low ? high - low : 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

function extent(values, pad, floor = -Infinity) {
  const low = Math.min(...values), high = Math.max(...values), room = (high - low || Math.abs(high) || 1) * pad;
  return [Math.max(floor, low - room), high + room];
}

// Whether a value lies within three times the range of the others, so that it can be drawn beside them.
function isNear(value, others) {
  const low = Math.min(...others), high = Math.max(...others), span = high - low || 0.05 * Math.abs(low) || 1;
  return value >= low - span && value <= high + span;
}

// Round values of a logarithmic scale: 1, 2 and 5 of each power of ten, or the powers alone where those are many.
function logTicks(low, high) {
  const values = [];
  for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) values.push(...[1, 2, 5].map((m) => Number((m * 10 ** power).toPrecision(12))));
  const inside = values.filter((value) => value >= low && value <= high);
  return inside.length > 7 ? inside.filter((value) => /^0*\.?0*1/.test(String(value))) : inside;
}

// The axes with their labels: `x` and `y` are {low, high, title, show}, `y` logarithmic where it says so.
function frame(width, height, x, y) {
  const levels = y.log ? logTicks(y.low, y.high) : ticks(y.low, y.high, 5);
  const show = levels.map(y.show);
  const left = 12 + 7 * Math.max(...show.map((text) => text.length)), bottom = height - 38;
  const px = scale(x.low, x.high, left, width - 14), along = y.log ? Math.log : (value) => value;
  const linear = scale(along(y.low), along(y.high), bottom, 22), py = (value) => linear(along(value));
  const group = s("g", { "aria-hidden": "true" });
  for (const value of levels) {
    group.append(s("line", { class: "axis", x1: left, x2: width - 10, y1: py(value), y2: py(value) }),
      s("text", { x: left - 7, y: py(value) + 4, "text-anchor": "end" }, y.show(value)));
  }
  for (const value of ticks(x.low, x.high, Math.max(2, Math.floor(width / 110)), x.ticks)) {
    group.append(s("text", { x: px(value), y: bottom + 17, "text-anchor": "middle" }, x.show(value)));
  }
  group.append(s("text", { x: (left + width - 10) / 2, y: height - 4, "text-anchor": "middle" }, x.title),
    s("text", { x: 0, y: 10 }, y.title));
  return { group, px, py, left, bottom };
}

// Puts each point's name beside it where nothing else stands, if there is such a place.
function label(points, width, taken) {
  const texts = [];
  for (const { x, y, name } of points) {
    const length = 6.6 * name.length;
    const places = [[x + 10, y + 4, "start"], [x - 10, y + 4, "end"], [x, y - 12, "middle"], [x, y + 21, "middle"]];
    for (const [tx, ty, anchor] of places) {
      const from = anchor === "start" ? tx : anchor === "end" ? tx - length : tx - length / 2;
      const box = [from, ty - 11, from + length, ty + 3];
      const free = box[0] > 30 && box[2] < width && taken.every((o) => box[2] < o[0] || box[0] > o[2] || box[3] < o[1] || box[1] > o[3]);
      if (free) {
        taken.push(box);
        texts.push(s("text", { class: "name", x: tx, y: ty, "text-anchor": anchor, "aria-hidden": "true" }, name));
        break;
      }
    }
  }
  return texts;
}

// Score against a cost. `points` are {row, cost, score, interval, frontier}.
function scatter(caption, points, cost, show, scoreName, base, ticks) {
  const draw = (width) => {
    const height = Math.round(Math.min(360, Math.max(270, width * 0.62)));
    const scores = points.map((p) => p.score), span = Math.max(...scores) - Math.min(...scores) || 0.05 * Math.abs(scores[0]) || 1;
    const seen = (value) => Math.min(Math.max(...scores) + span, Math.max(Math.min(...scores) - span, value));
    const ends = points.flatMap((p) => (p.interval ? [seen(p.interval.low), seen(p.interval.high)] : [p.score]));
    // A model that is far below would press everything else into a corner.
    const near = !missing(base) && Math.abs(seen(base) - base) <= 2 * span;
    const [low, high] = extent([...scores, ...ends, ...(near ? [base] : [])], 0.06);
    const [least, most] = extent(points.map((p) => p.cost), 0.14, 0);
    const { group, px, py, left, bottom } = frame(width, height, { low: least, high: most, title: cost, show, ticks }, { low, high, title: scoreName, show: trimmed });
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${scoreName} against ${cost}` }, group);
    if (!missing(base) && !near) {
      svg.append(s("text", { x: left + 4, y: bottom - 6 }, `untouched model ${number(base)} ${base < low ? "↓" : "↑"}`));
    } else if (near) {
      svg.append(s("line", { class: "zero", x1: left, x2: width - 10, y1: py(base), y2: py(base) }),
        s("text", { x: width - 12, y: py(base) + 15, "text-anchor": "end" }, "untouched model"));
    }
    const front = points.filter((p) => p.frontier).sort((a, b) => a.cost - b.cost);
    if (front.length > 1) {
      svg.append(s("path", { class: "frontier", d: front.map((p, i) => `${i ? "L" : "M"}${px(p.cost)} ${py(p.score)}`).join("") }));
    }
    const clip = (value) => Math.min(high, Math.max(low, value));
    const marks = points.map((p) => {
      const [x, y] = [px(p.cost), py(p.score)];
      const mark = s("g", { class: "mark" + (isControl(p.row) ? " hollow" : "") },
        p.interval && s("line", { x1: x, x2: x, y1: py(clip(p.interval.low)), y2: py(clip(p.interval.high)), stroke: colour(p.row), "stroke-width": 2, opacity: 0.35 }),
        s("circle", { cx: x, cy: y, r: 12, style: { fill: "transparent" } }),
        s("circle", { cx: x, cy: y, r: 6, fill: colour(p.row), stroke: colour(p.row), "stroke-width": 2 }));
      const spread = p.interval ? ` (${range(p.interval)})` : "";
      return tip(mark, `${p.row.name}\n${scoreName} ${number(p.score)}${spread}\n${cost} ${show(p.cost)}${p.frontier ? "\non the frontier" : ""}`);
    });
    // A control stands beside its method in the same colour, and needs no name.
    const at = points.filter((p) => !isControl(p.row)).map((p) => ({ x: px(p.cost), y: py(p.score), name: p.row.name.length > 24 ? p.row.name.slice(0, 23) + "…" : p.row.name }));
    const dots = points.map((p) => [px(p.cost) - 8, py(p.score) - 8, px(p.cost) + 8, py(p.score) + 8]);
    if (near) dots.push([width - 110, py(base) + 2, width, py(base) + 18]);
    else if (!missing(base)) dots.push([left, bottom - 18, left + 160, bottom]);
    svg.append(...label(at, width, dots), ...marks);
    return svg;
  };
  return chart(caption, draw).figure;
}

const trimmed = (value) => String(Number(value.toPrecision(4)));

// The loss over steps or seconds, with a legend that hides and shows, and a reading where the pointer is.
function curves(rows) {
  const hidden = new Set();
  let by = "step";
  const drawn = rows.filter((row) => row.curve.length > 1);
  const draw = (width) => {
    const height = Math.round(Math.min(400, Math.max(280, width * 0.4)));
    const seen = drawn.filter((row) => !hidden.has(row.name));
    const all = (seen.length ? seen : drawn).flatMap((row) => row.curve);
    const losses = all.map((p) => p.loss), least = Math.min(...losses), most = Math.max(...losses);
    // Where losses fall far, what tells methods apart is a fraction of where they began.
    const log = least > 0 && most > 8 * least;
    const [low, high] = log ? [least / 1.15, most * 1.15] : extent(losses, 0.04, 0);
    const x = { low: 0, high: Math.max(...all.map((p) => p[by])), title: by === "step" ? "steps" : "seconds of training", show: grouped, ticks: { least: 1 } };
    const { group, px, py, left, bottom } = frame(width, height, x, { low, high, log, title: `training loss, nats a token${log ? ", logarithmic" : ""}`, show: trimmed });
    const cursor = s("line", { class: "zero", y1: 22, y2: bottom, visibility: "hidden" });
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "training loss" }, group, cursor);
    for (const row of seen) {
      const d = row.curve.map((p, i) => `${i ? "L" : "M"}${px(p[by]).toFixed(1)} ${py(p.loss).toFixed(1)}`).join("");
      const path = s("path", { class: "line" + (isControl(row) ? " dashed" : ""), d, stroke: colour(row) });
      const last = row.curve[row.curve.length - 1];
      svg.append(tip(path, `${row.name}\nlast loss ${number(last.loss)}`));
    }
    const read = (event) => {
      const box = svg.getBoundingClientRect(), at = ((event.clientX - box.left) / box.width) * width;
      if (at < left || !seen.length) return;
      const nearest = (row) => row.curve.reduce((a, b) => (Math.abs(px(b[by]) - at) < Math.abs(px(a[by]) - at) ? b : a));
      const found = seen.map((row) => [row.name, nearest(row)]).sort((a, b) => a[1].loss - b[1].loss);
      cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); cursor.setAttribute("visibility", "visible");
      const head = by === "step" ? `step ${grouped(found[0][1].step)}` : duration(found[0][1].seconds);
      showTip([head, ...found.map(([name, point]) => `${number(point.loss)}  ${name}`)].join("\n"), event.clientX, event.clientY);
    };
    svg.addEventListener("pointermove", read);
    svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); hideTip(); });
    return svg;
  };
  const choice = [["step", "by step"], ["seconds", "by time"]].map(([key, text]) =>
    h("button", { type: "button", "aria-pressed": String(key === by), onclick: () => {
      by = key;
      choice.forEach((button, i) => button.setAttribute("aria-pressed", String(["step", "seconds"][i] === by)));
      made.redraw();
    } }, text));
  const legend = h("div", { class: "legend" }, drawn.map((row) => h("button", { type: "button", "aria-pressed": "true", onclick: (event) => {
    if (!hidden.delete(row.name)) hidden.add(row.name);
    event.currentTarget.setAttribute("aria-pressed", String(!hidden.has(row.name)));
    made.redraw();
  } }, h("i", { class: isControl(row) ? "dashed" : null, style: { "--c": colour(row) } }), row.name)));
  const made = chart("Loss while training, mean over seeds", draw, h("span", { class: "switch" }, choice), legend);
  return made.figure;
}

const KINDS = [["weights", "weights", "--s0"], ["adapters", "adapters", "--s2"], ["gradients", "gradients", "--s1"], ["optimizer", "optimizer states", "--s3"],
  ["activations", "activations", "--s6"], ["process", "the program and its data", "--s4"], ["rest", "the rest", "--s7"]];

// The peak memory by what it is for, one bar a method, and a mark where it was measured.
function memoryBars(rows) {
  const shown = rows.filter((row) => !missing(row.memory.measured_bytes));
  const limit = DATA.setup.memory_budget_bytes;
  const held = (row) => Object.values(row.memory.kinds).reduce((a, b) => a + b, 0);
  const draw = (width) => {
    const line = 46, height = shown.length * line + (limit ? 20 : 0);
    const px = scale(0, Math.max(...shown.map((row) => Math.max(row.memory.measured_bytes, held(row)))), 0, width - 92);
    const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "peak memory by kind" });
    shown.forEach((row, i) => {
      const y = i * line;
      svg.append(s("text", { class: "name", x: 0, y: y + 13, "aria-hidden": "true" }, row.name));
      const told = [row.name, `measured ${bytes(row.memory.measured_bytes)}`];
      if (!missing(row.memory.predicted_bytes)) told.push(`predicted ${bytes(row.memory.predicted_bytes)}`);
      const bar = s("g", {});
      let x = 0;
      for (const [kind, name, ink] of KINDS.filter(([kind]) => row.memory.kinds[kind] > 0)) {
        const w = px(row.memory.kinds[kind]);
        told.push(`${name} ${bytes(row.memory.kinds[kind])}`);
        bar.append(s("rect", { x, y: y + 19, width: Math.max(0.5, w - 1), height: 16, fill: `var(${ink})`, opacity: isControl(row) ? 0.55 : 0.9, rx: 1.5 }));
        x += w;
      }
      const at = px(row.memory.measured_bytes);
      bar.append(s("line", { x1: at, x2: at, y1: y + 16, y2: y + 38, stroke: "var(--ink)", "stroke-width": 2 }));
      svg.append(tip(bar, told.join("\n")), s("text", { x: Math.max(x, at) + 8, y: y + 31 }, bytes(row.memory.measured_bytes)));
    });
    if (limit && px(limit) <= width - 92) {
      svg.append(s("line", { class: "zero", x1: px(limit), x2: px(limit), y1: 0, y2: height - 16 }), s("text", { x: px(limit), y: height - 2, "text-anchor": "middle" }, `budget ${bytes(limit)}`));
    }
    return svg;
  };
  const used = KINDS.filter(([kind]) => shown.some((row) => row.memory.kinds[kind] > 0));
  const legend = h("div", { class: "legend" }, used.map(([, name, ink]) => h("span", {}, h("i", { class: "box", style: { "--c": `var(${ink})`, display: "inline-block" } }), name)),
    h("span", {}, h("i", { style: { "--c": "var(--ink)", width: "2px", height: "14px", background: "var(--ink)", border: 0, display: "inline-block", "vertical-align": "-2px" } }), "measured"));
  return chart("Peak memory by what it is for", draw, null, legend).figure;
}
