// Which layers each method trains, as maps of roles and blocks, and how far two choices agree.

const WORDS = { T: "trained whole", A: "adapted", ".": "frozen" };

function layerMap(row) {
  const { roles, rows, others } = row.layers;
  const blocks = rows[0]?.length ?? 0, size = blocks > 48 ? 8 : 13, left = 8 + 6.4 * Math.max(...roles.map((r) => r.length)), top = 4;
  const width = left + blocks * size + 4, height = top + roles.length * 16 + 20;
  const count = (letter) => rows.reduce((sum, text) => sum + [...text].filter((c) => c === letter).length, 0);
  const parts = [["T", "trained whole"], ["A", "adapted"]].map(([letter, words]) => [count(letter), words]).filter(([n]) => n > 0);
  const all = rows.reduce((sum, text) => sum + [...text].filter((c) => c !== " ").length, 0);
  const told = parts.map(([n, words]) => `${n} of ${all} layers ${words}`).join(", ") || "nothing in the blocks trains";
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: "0", "aria-label": `${row.name}: ${told}`, style: { "max-width": `${width * 1.35}px` } });
  roles.forEach((role, i) => {
    svg.append(s("text", { x: left - 7, y: top + i * 16 + 11, "text-anchor": "end" }, role));
    [...rows[i]].forEach((letter, block) => {
      if (letter === " ") return;
      const cell = s("rect", { class: `cell ${letter === "." ? "" : letter}`, x: left + block * size, y: top + i * 16, width: size - 2, height: 14, rx: 2, style: { "--c": colour(row) } });
      svg.append(hover(cell, `${row.name}\n${role}, block ${block}: ${WORDS[letter] ?? letter}`));
    });
  });
  const every = blocks > 24 ? 8 : blocks > 12 ? 4 : blocks > 6 ? 2 : 1;
  for (let block = 0; block < blocks; block += every) {
    svg.append(s("text", { x: left + block * size + (size - 2) / 2, y: height - 4, "text-anchor": "middle" }, String(block)));
  }
  const beside = others.length ? `Also ${others.map(([role, n]) => (n > 1 ? `${n} × ${role}` : role)).join(", ")}.` : "";
  return h("figure", {}, h("figcaption", {}, h("span", {}, swatch(row), row.name)), svg, h("p", {}, `${told}. ${beside}${row.picks ? ` At first: others are chosen ${row.picks === 1 ? "once" : `${row.picks} times`} while it trains.` : ""}`));
}

// Methods whose choices differ in nothing share a map's worth of attention: all are shown, each with its name.
function layerMaps(rows) {
  const shown = rows.filter((row) => row.layers !== null && row.layers.rows.length > 0);
  const blocks = Math.max(0, ...shown.map((row) => row.layers.rows[0].length));
  return h("div", { class: "maps", style: { "--map": blocks > 20 ? "480px" : "300px" } }, shown.map(layerMap));
}

function agreement() {
  const { methods, overlap } = DATA.agreement;
  if (methods.length < 2) return null;
  const row = (name) => DATA.methods.find((row) => row.name === name);
  const head = h("tr", {}, h("td", {}), methods.map((name, i) => h("th", { scope: "col", title: name }, String(i + 1))));
  const body = methods.map((name, i) => h("tr", {}, h("th", { scope: "row" }, `${i + 1} `, swatch(row(name)), name),
    overlap[i].map((value, j) => {
      const words = `${methods[i]} and ${methods[j]}\n${Math.round(100 * value)} % of what either chose, both chose`;
      return hover(h("td", { class: "heat", style: { background: i === j ? "transparent" : `rgb(var(--heat) / ${(0.45 * value).toFixed(3)})` } },
        i === j ? "" : `${Math.round(100 * value)} %`), words);
    })));
  return h("div", { class: "wide" }, h("table", {}, h("thead", {}, head), h("tbody", {}, body)));
}
