// The page: its sections from top to bottom, made of the data that the page carries.

const { setup, base } = DATA;
const rows = DATA.methods;
const gpus = (setup.devices ?? []).filter((device) => device !== "cpu");
const scored = rows.filter((row) => row.score !== null && row.status === "ok");
const plural = (n, what) => (n === 1 ? `one ${what}` : `${n} ${what}s`);
const fact = (name, value) => h("div", {}, h("dt", {}, name), h("dd", {}, value));

function head() {
  const rates = setup.learning_rates > 1 ? `, ${setup.learning_rates} learning rates a method` : "";
  return h("header", {},
    h("h1", {}, DATA.title),
    h("p", { class: "lede" }, `${plural(rows.filter((row) => !isControl(row)).length, "method")} on the same data, in the same order, with the same budget. ${setup.learning_rates > 1 ? "Learning rates were chosen on validation data, scores" : "Scores were"} measured on ${grouped(setup.test_examples)} test examples.`),
    h("dl", { class: "facts" },
      fact("model", setup.model.split("/").slice(-2).join("/")), fact("parameters", compact(setup.parameters)), fact("task", setup.task),
      fact("score", `${titled(setup.score)}, ${setup.better} is better`), fact("training", setup.budget + (setup.memory_budget_bytes ? `, at most ${bytes(setup.memory_budget_bytes)}` : "")),
      fact("search", plural(setup.seeds.length, "seed") + rates), fact("machine", gpus.length ? gpus.join("; ") : setup.machine.cpu ?? setup.machine.platform), fact("made", DATA.made.slice(0, 10))));
}

function said() {
  const groups = [["supported", "What the numbers support"], ["open", "What they leave open"], ["caution", "Before you draw conclusions"]];
  return h("div", { class: "said" }, groups.map(([kind, title]) => {
    const statements = DATA.summary.filter((statement) => statement.kind === kind);
    return statements.length > 0 && h("section", { class: kind }, h("h3", {}, title), h("ul", {}, statements.map((statement) => h("li", {}, statement.text))));
  }));
}

const FINDINGS = {
  better: ["better", "good"], worse: ["worse", "bad"], identical: ["no difference", ""], undecided: ["not told apart", "open"], one_seed: ["one seed", "open"],
};

function finding(paired, against) {
  if (!paired) return "–";
  const [words, kind] = FINDINGS[paired.finding];
  const told = [`against ${against ?? paired.with}: ${signed(paired.difference)}`];
  if (paired.interval) told.push(`over seeds ${signed(paired.interval.low)} to ${signed(paired.interval.high)}`);
  if (paired.example_interval) told.push(`over test examples ${signed(paired.example_interval.low)} to ${signed(paired.example_interval.high)}`);
  if (!missing(paired.p_corrected)) told.push(`p = ${paired.p_corrected.toPrecision(2)}, corrected for several methods`);
  return tip(h("span", {}, signed(paired.difference), h("span", { class: `tag ${kind}` }, words)), told.join("\n"));
}

// The scores of all rows on one scale, as a dot with its interval.
function whiskers() {
  const ends = scored.flatMap((row) => [row.score.mean, row.score.interval?.low ?? row.score.mean, row.score.interval?.high ?? row.score.mean]);
  const baseScore = base.scores[setup.score];
  // A model that is far below would press everything else into a corner.
  const seen = !missing(baseScore) && isNear(baseScore, ends);
  const [low, high] = extent([...ends, ...(seen ? [baseScore] : [])], 0.04);
  const px = scale(low, high, 6, 134);
  return (row) => {
    const { mean, interval } = row.score;
    const mark = s("svg", { viewBox: "0 0 140 26", style: { width: "140px" } },
      seen && s("line", { class: "zero", x1: px(baseScore), x2: px(baseScore), y1: 2, y2: 24 }),
      interval && s("line", { x1: px(interval.low), x2: px(interval.high), y1: 13, y2: 13, stroke: colour(row), "stroke-width": 2 }),
      s("circle", { cx: px(mean), cy: 13, r: 4.5, fill: isControl(row) ? "var(--paper)" : colour(row), stroke: colour(row), "stroke-width": 2 }));
    const each = row.seeds.map((seed) => `seed ${seed.seed}: ${or(seed.scores[setup.score], number)}`);
    return tip(mark, [`${row.name}: ${number(mean)}`, ...(interval ? [`95 % interval ${range(interval)}`] : []), ...each].join("\n"));
  };
}

const percent = (value) => `${value >= 10 ? value.toFixed(0) : value.toPrecision(2)} %`;
const share = (row) => `${compact(row.trainable_parameters)} (${percent(100 * row.trainable_parameters / setup.parameters)})`;
const timing = (row, key) => { const best = row.latency[row.latency.length - 1]; return best ? best[key] : null; };

// With whom a method shares what was measured of its planning.
const sharing = (selection) => selection.shared_with?.length > 0 ? `the same work, measured once, as for ${selection.shared_with.join(", ")}` : null;

// Of each column: its title, the value it sorts by, what it shows, what it shows of the untouched model, and what it means.
function columns() {
  const whisker = whiskers();
  const others = Object.keys(scored[0]?.scores ?? {}).filter((name) => name !== setup.score && ["accuracy", "macro_f1", "ece", "rouge_1", "rouge_2", "rouge_l", "loss"].includes(name));
  const list = [
    [titled(setup.score), (r) => r.score?.mean, (r) => h("strong", {}, number(r.score.mean)), () => or(base.scores[setup.score], number), `mean over ${plural(setup.seeds.length, "seed")}`],
    ["95 % interval", (r) => r.score?.mean, whisker, () => "", "over seeds; the dashed line, where it is near, is the untouched model", "whisker"],
    ["against the baseline", (r) => r.vs_baseline?.difference, (r) => finding(r.vs_baseline), () => "–", `against ${setup.baseline}: paired over seeds and test examples`, "left"],
    ["memory", (r) => r.memory.measured_bytes, (r) => bytes(r.memory.measured_bytes), () => "–", "the most that training held"],
    ["predicted", (r) => r.memory.predicted_bytes, (r) => bytes(r.memory.predicted_bytes), () => "–", "the memory that was predicted before training", "extra"],
    ["tokens/s", (r) => r.tokens_per_s, (r) => grouped(r.tokens_per_s), () => "–", "while training"],
    ["training", (r) => r.train_s, (r) => duration(r.train_s), () => "–", "seconds of training steps, mean over seeds"],
    ["choosing", (r) => r.selection?.seconds, (r) => h("span", { title: sharing(r.selection) }, duration(r.selection.seconds) + or(r.selection.memory_bytes, (held) => `, ${bytes(held)}`, "")), () => "–", "time to make the plan, statistics of the weights included, and memory beside the opened model; measured once for methods whose planning is the same work"],
    ["trained", (r) => r.trainable_parameters, share, () => "0", "parameters that train, and their share of the model"],
    ["deployed", (r) => r.deployed?.bytes, (r) => `${bytes(r.deployed.bytes)} ${r.deployed.what}`, () => "–", "an adapter goes beside the base model"],
    ["first token", (r) => timing(r, "first_token_s"), (r) => duration(timing(r, "first_token_s")), () => or(base.latency[0]?.first_token_s, duration), "latency of the deployed result, adapters merged", "extra"],
    ["a token", (r) => timing(r, "next_token_s"), (r) => duration(timing(r, "next_token_s")), () => or(base.latency[0]?.next_token_s, duration), "each token after the first", "extra"],
    ["forgetting", (r) => r.forgetting?.mean, (r) => signed(r.forgetting.mean), () => "", "rise of the loss on general text, nats a token"],
    ...others.map((name) => [titled(name), (r) => r.scores[name]?.mean, (r) => number(r.scores[name].mean), () => or(base.scores[name], number), "on the test data", "extra"]),
  ];
  // The score stays where no method has one: the untouched model does.
  return list.filter(([, key], i) => i === 0 || rows.some((row) => !missing(key(row))));
}

function results() {
  const all = columns();
  const name = (row) => h("th", { scope: "row" }, swatch(row), row.name, row.name === setup.baseline && h("span", { class: "tag" }, "baseline"));
  const line = (row) => row.status === "ok"
    ? h("tr", {}, name(row), all.map(([, key, show, , , kind]) => h("td", { class: kind }, missing(key(row)) ? "–" : show(row))))
    : h("tr", {}, name(row), h("td", { class: "reason", colspan: all.length }, h("span", { class: "tag bad" }, row.status === "failed" ? "failed" : "out of memory"), " ", row.reason));
  const body = h("tbody", {}, h("tr", { class: "base" }, h("th", { scope: "row" }, "untouched model"), base.failure
    ? h("td", { class: "reason", colspan: all.length }, base.failure) : all.map(([, , , show, , kind]) => h("td", { class: kind }, show()))), rows.map(line));
  let sorted = null, up = false;
  const sort = (i) => {
    up = sorted === i ? !up : i < 0;
    sorted = i;
    const value = (row) => (i < 0 ? row.name.toLowerCase() : all[i][1](row));
    const order = rows.map((row, j) => ({ row, element: lines[j] })).sort((a, b) => {
      const [x, y] = [value(a.row), value(b.row)];
      if (missing(x) || missing(y) || a.row.status !== "ok" || b.row.status !== "ok") return (missing(x) || a.row.status !== "ok") - (missing(y) || b.row.status !== "ok");
      return (x < y ? -1 : x > y ? 1 : 0) * (up ? 1 : -1);
    });
    body.append(...order.map(({ element }) => element));
    heads.forEach((head, j) => head.setAttribute("aria-sort", j - 1 === i ? (up ? "ascending" : "descending") : "none"));
  };
  const lines = [...body.children].slice(1);
  const heads = [["method", null, null, null, "sort by name"], ...all].map(([title, , , , about, kind], j) =>
    h("th", { scope: "col", "aria-sort": "none", class: kind === "whisker" ? null : kind }, h("button", { type: "button", title: about, onclick: () => sort(j - 1) }, title)));
  return h("div", { class: "wide breakout" }, h("table", { id: "results" }, h("caption", { style: { display: "none" } }, "results"), h("thead", {}, h("tr", {}, heads)), body));
}

function costs() {
  const points = (cost, frontier) => scored.filter((row) => !missing(cost(row))).map((row) => ({ row, cost: cost(row), score: row.score.mean, interval: row.score.interval, frontier: row[frontier] }));
  const baseScore = base.scores[setup.score];
  const memory = points((row) => row.memory.measured_bytes, "on_memory_frontier"), time = points((row) => row.train_s, "on_time_frontier");
  if (memory.length === 0 && time.length === 0) return [];
  return [h("h2", {}, "Score against cost"),
    h("p", { class: "note" }, "The dashed line joins the methods that no other beats at their cost. Vertical lines are 95 % intervals over seeds."),
    h("div", { class: "two" }, memory.length > 0 && scatter(`${titled(setup.score)} against peak memory`, memory, "peak memory", bytes, titled(setup.score), baseScore, { binary: true }),
      time.length > 0 && scatter(`${titled(setup.score)} against training time`, time, "training time", duration, titled(setup.score), baseScore, { clock: true }))];
}

function layers() {
  const controls = rows.filter((row) => row.vs_control);
  return [h("h2", {}, "Which layers train"),
    h("p", { class: "note" }, "One column a block, one row a kind of layer. Full colour: trained whole. Half: an adapter beside it. Grey: frozen. Random layers are those of the first seed."),
    layerMaps(rows),
    controls.length > 0 && h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "selection"), h("th", { scope: "col", class: "left" }, "against as many layers at random"), h("th", { scope: "col" }, "time to choose"), h("th", { scope: "col" }, "memory to choose"))),
      h("tbody", {}, controls.map((row) => h("tr", {}, h("th", { scope: "row" }, swatch(row), row.name), h("td", { class: "left" }, finding(row.vs_control)), h("td", {}, or(row.selection?.seconds, duration)), h("td", {}, or(row.selection?.memory_bytes, bytes))))))),
    agreement() && h("p", { class: "note", style: { margin: "20px 0 0" } }, "How far the choices agree: of the layers that either method trains or adapts, the share that both do, mean over seeds."), agreement()];
}

function rates() {
  const tried = rows.filter((row) => row.tried.some((t) => !missing(t.validation)));
  if (tried.length === 0) return [];
  const most = Math.max(...tried.map((row) => row.tried.length));
  return [h("h2", {}, "Learning rates"), h("p", { class: "note" }, `Mean ${titled(setup.score)} on the validation data. The best one of each method went to the test.`),
    h("div", { class: "wide" }, h("table", {}, h("tbody", {}, tried.map((row) => h("tr", {}, h("th", { scope: "row" }, swatch(row), row.name),
      Array.from({ length: most }, (_, i) => row.tried[i]).map((t) => h("td", {}, t && [h("span", { class: "lede" }, rate(t.lr) + "  "), h(t.lr === row.lr ? "strong" : "span", {}, or(t.validation, number)), t.lr === row.lr && h("span", { class: "tag good" }, "chosen")])))))))];
}

function speed() {
  const forms = { adapter: "adapter beside the weights", merged: "adapter merged", weights: "trained weights" };
  const timed = rows.filter((row) => row.latency.length > 0);
  if (timed.length === 0) return [];
  const line = (first, what, t) => h("tr", {}, first, h("td", { class: "left" }, what), h("td", {}, duration(t.first_token_s)), h("td", {}, duration(t.next_token_s)));
  return [h("h2", {}, "Speed of the result"), h("p", { class: "note" }, `Medians; the first token comes after a prompt of ${timed[0].latency[0].prompt_tokens} tokens.`),
    h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "method"), h("th", { scope: "col", class: "left" }, "deployed as"), h("th", { scope: "col" }, "first token"), h("th", { scope: "col" }, "each after it"))),
      h("tbody", {}, base.latency.map((t) => line(h("th", { scope: "row" }, "untouched model"), "base weights", t)),
        timed.flatMap((row) => row.latency.map((t) => line(h("th", { scope: "row" }, swatch(row), row.name), forms[t.form] ?? t.form, t))))))];
}

function repeat() {
  const pair = ([name, value]) => [h("dt", {}, name), h("dd", {}, h("code", {}, value))];
  const files = Object.entries(setup.data).flatMap(([split, list]) => list.map(([file, hash]) => [split, `${file}  ${hash}`]));
  const machine = `${setup.machine.platform}, ${setup.machine.cpu ?? "processor unknown"}, ${setup.machine.threads} threads, ${or(setup.machine.memory_bytes, bytes)}`;
  const facts = [...Object.entries(setup.versions), ["program", setup.executable], ["model", setup.model], ["its weights", setup.model_hash], ...files, ["machine", machine], ...gpus.map((gpu) => ["computed on", gpu]), ["seeds", setup.seeds.join(", ")], ["runs at once", String(setup.jobs)], ["made", DATA.made]];
  const runs = rows.filter((row) => row.seeds.length > 0);
  return [h("h2", {}, "To repeat it"),
    h("details", {}, h("summary", {}, "Versions, hashes, machine"), h("div", {}, h("dl", { class: "plain" }, facts.map(pair)))),
    h("details", {}, h("summary", {}, "Runs and plans"), h("div", {}, runs.map((row) => [h("h3", {}, row.name), h("p", { class: "note" }, `policy ${row.policy}, learning rate ${or(row.lr, rate)}, settings `, h("code", {}, JSON.stringify(row.settings))),
      h("dl", { class: "plain", style: { "margin-bottom": "16px" } }, Object.entries(row.files).map(pair), row.seeds.map((seed) => pair([`seed ${seed.seed}`, `${seed.run}  plan ${seed.plan_hash}`])))]))),
    h("details", {}, h("summary", {}, "Configuration"), h("div", {}, h("pre", { tabindex: "0" }, setup.configuration)))];
}

const measured = rows.filter((row) => !missing(row.memory.measured_bytes));
document.getElementById("report").replaceChildren(...[
  head(),
  h("h2", {}, "Summary"), said(),
  h("h2", {}, "Results"), h("p", { class: "note" }, "Select a heading to sort."), results(),
  costs(),
  measured.length > 0 && [h("h2", {}, "Memory"), memoryBars(measured)],
  rows.some((row) => row.curve.length > 1) && [h("h2", {}, "Training"), curves(rows)],
  rows.some((row) => row.layers) && layers(), rates(), speed(), repeat(),
].flat(Infinity).filter(Boolean));

// What is folded on the screen is open on paper.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((element) => { element.open = true; }));
