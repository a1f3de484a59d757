// Making elements, showing numbers, and the one tooltip. Text from the data only ever becomes text: nothing here parses HTML.

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) element.style.setProperty(key, text);
    else element.setAttribute(name, value === true ? "" : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

// An HTML element; an SVG one.
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const missing = (value) => value === null || value === undefined;
const or = (value, show, otherwise = "–") => (missing(value) ? otherwise : show(value));

function number(value) {
  const size = Math.abs(value);
  const text = size.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 4);
  return value < 0 && Number(text) !== 0 ? "−" + text : text;
}

function signed(value) {
  const text = number(Math.abs(value));
  return (Number(text) === 0 ? "±" : value < 0 ? "−" : "+") + text;
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1000 && unit + 1 < units.length) { value /= 1024; unit += 1; }
  return value.toFixed(unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2) + " " + units[unit];
}

function duration(seconds) {
  if (seconds < 0.00005) return seconds > 0 ? "< 0.1 ms" : "0 s";
  if (seconds < 0.9995) return (1000 * seconds).toFixed(seconds < 0.01 ? 1 : 0) + " ms";
  if (seconds < 59.95) return seconds.toFixed(1) + " s";
  const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
  return whole < 3600 ? `${Math.floor(whole / 60)} min ${two(whole % 60)} s` : `${Math.floor(whole / 3600)} h ${two(Math.floor(whole / 60) % 60)} min`;
}

const grouped = (value) => Math.round(value).toLocaleString("en-US");
const range = (interval) => `${number(interval.low)} to ${number(interval.high)}`;
// A learning rate as people write it: 0.001 is 1e-3.
const rate = (value) => value.toExponential().replace("e+0", "").replace("e+", "e");

function compact(value) {
  for (const [size, unit] of [[1e9, " B"], [1e6, " M"], [1e3, " k"]]) {
    if (value >= size) return (value / size).toPrecision(3).replace(/\.0+$/, "") + unit;
  }
  return String(value);
}

// A score as people write it.
const SCORES = { macro_f1: "macro-F1", ece: "calibration error", rouge_1: "ROUGE-1", rouge_2: "ROUGE-2", rouge_l: "ROUGE-L" };
const titled = (score) => SCORES[score] ?? score;

// Every method has its colour; a random control has that of its method, hollow or dashed.
const METHODS = DATA.methods.map((row, i) => ({ row, i }));
const PLAIN = METHODS.filter(({ row }) => row.control_of === null).map(({ row }) => row.name);
const colour = (row) => `var(--s${Math.max(0, PLAIN.indexOf(row.control_of ?? row.name)) % 8})`;
const isControl = (row) => row.control_of !== null;
const swatch = (row) => h("span", { class: "swatch" + (isControl(row) ? " hollow" : ""), style: { "--c": colour(row) }, "aria-hidden": "true" });

const TIP = document.getElementById("tip");

function place(x, y) {
  const box = TIP.getBoundingClientRect(), gap = 14;
  const left = x + gap + box.width > innerWidth ? x - gap - box.width : x + gap;
  const top = y + gap + box.height > innerHeight ? y - gap - box.height : y + gap;
  TIP.style.left = Math.max(4, left) + "px";
  TIP.style.top = Math.max(4, top) + "px";
}

function showTip(text, x, y) {
  TIP.textContent = text;
  TIP.hidden = false;
  place(x, y);
}

function hideTip() { TIP.hidden = true; }

// Shows `text` while the pointer is over the element or the keyboard is on it.
function tip(element, text) {
  element.setAttribute("tabindex", "0");
  element.setAttribute("role", "img");
  element.setAttribute("aria-label", text.replaceAll("\n", ", "));
  return hover(element, text);
}

// The same without a stop for the keyboard, for what is told elsewhere too.
function hover(element, text) {
  element.addEventListener("pointermove", (event) => showTip(text, event.clientX, event.clientY));
  element.addEventListener("pointerleave", hideTip);
  element.addEventListener("focus", () => {
    const box = element.getBoundingClientRect();
    showTip(text, box.right, box.top);
  });
  element.addEventListener("blur", hideTip);
  return element;
}

document.addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
