"use strict";
// Draws the runs in #data. Text reaches the page through textContent alone; Plotly reads a few tags
// in its texts, so what it is given is escaped.

const COLORS = ["#3388cc", "#dd6611", "#22a076", "#cc79a7", "#c99700", "#56b4e9", "#8a6fd1", "#999999"];
const LIMIT_COLOR = "#d0344a";
const COLUMNS = [
  { key: "name", title: "run", text: true, get: (run) => run.name },
  { key: "env", title: "environment", text: true, get: (run) => run.env },
  { key: "group", title: "group", text: true, get: (run) => run.group },
  { key: "seed", title: "seed", digits: 0, get: (run) => run.seed },
  { key: "progress", title: "done", percent: true, get: (run) => Math.min(1, run.last / run.total) },
  { key: "return", title: "return", digits: 2, get: (run) => summary(run, "final_return") },
  { key: "cost", title: "cost", digits: 2, get: (run) => summary(run, "final_cost"), verdict: true },
  { key: "limit", title: "limit", digits: 2, get: (run) => run.limit },
  { key: "episodes", title: "episodes in limit", percent: true, get: (run) => summary(run, "episodes_within_limit") },
  { key: "violations", title: "training violations", percent: true, get: (run) => summary(run, "training_violations") },
  { key: "safe", title: "first safe step", digits: 0, get: (run) => summary(run, "first_safe_step") },
  { key: "area", title: "return area", digits: 2, get: (run) => summary(run, "return_area") },
];
const COMPARISONS = {
  "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
};

let data = JSON.parse(document.getElementById("data").textContent);
let plotly = null;
const state = { sort: "name", descending: false, hidden: new Set(), filter: "", environment: "", mode: "runs", metric: "" };

const byId = (id) => document.getElementById(id);
const summary = (run, key) => (run.summary === null ? null : run.summary[key]);
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function shown(column, value) {
  if (value === null || value === undefined) return "–";
  if (column.text) return value;
  if (value === "never") return value;
  if (column.percent) return `${(100 * value).toFixed(0)} %`;
  return value.toFixed(column.digits);
}

// ---- which runs are shown ----

function matches(run, word) {
  const parts = word.match(/^([^<>=]+)(<=|>=|<|>|=)(.+)$/);
  if (parts === null) return haystack(run).includes(word.toLowerCase());
  const [, key, sign, wanted] = parts;
  const column = COLUMNS.find((one) => one.key === key || one.title === key);
  if (column === undefined && !Object.hasOwn(run.config, key)) {
    return haystack(run).includes(word.toLowerCase()); // the last part of a key, or of its value
  }
  const value = column === undefined ? run.config[key] : column.get(run);
  if (value === null) return false;
  if (sign === "=") return String(value).toLowerCase() === wanted.toLowerCase();
  const number = value === "never" ? Infinity : Number(value);
  return COMPARISONS[sign](number, Number(wanted));
}

function haystack(run) {
  const values = Object.entries(run.config).map(([key, value]) => `${key}=${value}`);
  return [run.name, run.env, run.group, ...values].join("\n").toLowerCase();
}

function listed() {
  const words = state.filter.split(/\s+/).filter((word) => word !== "");
  return data.runs.filter((run) =>
    (state.environment === "" || run.env === state.environment) && words.every((word) => matches(run, word)));
}

const drawn = () => listed().filter((run) => !state.hidden.has(run.name));

function groupKeys() {
  return [...new Set(data.runs.map((run) => `${run.env}\n${run.group}`))];
}

// By group where an environment has several, else run by run.
function colorOf(run) {
  const several = groupKeys().length > new Set(data.runs.map((one) => one.env)).size;
  const place = several ? groupKeys().indexOf(`${run.env}\n${run.group}`) : data.runs.indexOf(run);
  return COLORS[place % COLORS.length];
}

// ---- tables ----

function compareRuns(a, b) {
  const column = COLUMNS.find((one) => one.key === state.sort);
  const order = (value) => (value === "never" ? Infinity : value);
  const [x, y] = [order(column.get(a)), order(column.get(b))];
  const absent = (x === null || x === undefined) - (y === null || y === undefined);
  if (absent !== 0) return absent; // at the end, whichever way the table is sorted
  const sign = state.descending ? -1 : 1;
  if (column.text) return sign * x.localeCompare(y, "en", { numeric: true });
  return x === y ? 0 : sign * (x < y ? -1 : 1);
}

function drawOverview() {
  const head = element("tr");
  head.append(element("th", "show", { class: "text" }));
  for (const column of COLUMNS) {
    const cell = element("th", undefined, column.text ? { class: "text" } : {});
    const button = element("button", column.title, { type: "button", "data-sort": column.key });
    if (state.sort === column.key) cell.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    cell.append(button);
    head.append(cell);
  }
  byId("overview").tHead.replaceChildren(head);
  byId("overview").tBodies[0].replaceChildren(...listed().sort(compareRuns).map(overviewRow));
  byId("count").textContent = `${listed().length} of ${data.runs.length} runs`;
  byId("skipped").replaceChildren(...data.skipped.map((line) => element("li", line)));
}

function overviewRow(run) {
  const row = element("tr");
  const box = element("input", undefined, { type: "checkbox", "aria-label": `show ${run.name}` });
  box.checked = !state.hidden.has(run.name);
  box.addEventListener("change", () => {
    if (box.checked) state.hidden.delete(run.name); else state.hidden.add(run.name);
    drawBelow();
  });
  const first = element("td", undefined, { class: "text" });
  first.append(box);
  row.append(first);
  for (const column of COLUMNS) {
    const cell = element("td", undefined, column.text ? { class: "text", title: column.get(run) } : {});
    if (column.key === "name") cell.append(swatch(colorOf(run)));
    cell.append(shown(column, column.get(run)));
    if (column.verdict && run.summary !== null) cell.className = run.summary.safe ? "within" : "over";
    if (column.key === "return" && run.problem !== "") cell.title = run.problem;
    row.append(cell);
  }
  return row;
}

function fillTable(id, headings, rows, textColumns, colors = []) {
  const attributes = (k) => (k < textColumns ? { class: "text" } : {});
  const head = element("tr");
  head.append(...headings.map((title, k) => element("th", title, attributes(k))));
  byId(id).tHead.replaceChildren(head);
  byId(id).tBodies[0].replaceChildren(...rows.map((cells, place) => {
    const row = element("tr");
    row.append(...cells.map((text, k) => element("td", text, { ...attributes(k), title: text })));
    if (colors.length > 0) row.firstChild.prepend(swatch(colors[place]));
    return row;
  }));
}

function swatch(color) {
  const made = element("span", undefined, { class: "swatch" });
  made.style.background = color;
  return made;
}

function drawGroups() {
  const rows = data.groups.filter((group) => state.environment === "" || group.env === state.environment);
  byId("groups-section").hidden = rows.length === 0;
  fillTable("groups", ["group", "environment", ...data.group_headings],
    rows.map((group) => [group.label, group.env, ...group.cells]), 2,
    rows.map((group) => colorOf(data.runs.find((run) => run.env === group.env && run.group === group.label))));
}

function drawDifferences() {
  byId("differences-section").hidden = data.differing.length === 0;
  fillTable("differences", ["run", ...data.differing],
    drawn().map((run) => [run.name, ...data.differing.map((key) => run.config[key] ?? "–")]), Infinity);
}

// ---- pictures and videos ----

function drawMedia(id, kind, make) {
  const items = drawn().flatMap((run) => run[kind].map((item) => {
    const figure = element("figure");
    figure.append(make(item, run), element("figcaption", `${run.name}: ${item.name}`));
    return figure;
  }));
  byId(`${id}-section`).hidden = items.length === 0;
  byId(id).replaceChildren(...items);
}

function picture(item, run) {
  const button = element("button", undefined, { type: "button" });
  button.append(element("img", undefined, { src: item.src, alt: item.name, loading: "lazy" }));
  button.addEventListener("click", () => {
    const dialog = byId("enlarged");
    dialog.querySelector("p").textContent = `${run.name}: ${item.name}`;
    dialog.querySelector("img").src = item.src;
    dialog.showModal();
  });
  return button;
}

const video = (item) => element("video", undefined, { src: item.src, controls: "", preload: "metadata", muted: "" });

// ---- plots ----

function points(run, metric) {
  const series = run.series[metric];
  return series === undefined ? null : { x: run.steps[series[0]], y: series[1] };
}

function layout(title, xTitle, yTitle, shapes) {
  const style = getComputedStyle(document.documentElement);
  const [text, line] = ["--text", "--line"].map((name) => style.getPropertyValue(name).trim());
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  return {
    title: { text: escaped(title), font: { size: 13 } },
    font: { color: text, size: 11 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 56, r: 12, t: 36, b: 44 }, showlegend: false, hovermode: "closest", shapes,
    xaxis: { ...axis, title: { text: xTitle } }, yaxis: { ...axis, title: { text: escaped(yTitle) } },
    uirevision: `${title}${state.environment}`,
  };
}

function limitLines(vertical) {
  const limits = [...new Set(drawn().map((run) => run.limit))];
  const [along, across] = vertical ? ["y", "x"] : ["x", "y"];
  return limits.map((limit) => ({
    type: "line", [`${along}0`]: 0, [`${along}1`]: 1, [`${along}ref`]: "paper",
    [`${across}0`]: limit, [`${across}1`]: limit, line: { color: LIMIT_COLOR, dash: "dash", width: 2 },
    label: { text: `limit ${limit}`, font: { color: LIMIT_COLOR, size: 10 }, textposition: "end", xanchor: "right",
      yanchor: vertical ? "top" : "bottom", textangle: 0 },
  }));
}

function line(name, color, curve, extra = {}) {
  return {
    type: "scatter", mode: curve.x.length > 1 ? "lines" : "markers", name: escaped(name), x: curve.x, y: curve.y,
    line: { color, width: 1.6 }, marker: { color }, hovertemplate: "%{x}: %{y:.4g}<extra>%{fullData.name}</extra>", ...extra,
  };
}

function runTraces(metric) {
  return drawn().flatMap((run) => {
    const curve = points(run, metric);
    return curve === null ? [] : [line(run.name, colorOf(run), curve)];
  });
}

function valueAt(curve, x) {
  const right = curve.x.findIndex((step) => step >= x);
  if (right <= 0 || curve.x[right] === x) return curve.y[Math.max(right, 0)];
  const share = (x - curve.x[right - 1]) / (curve.x[right] - curve.x[right - 1]);
  return curve.y[right - 1] + share * (curve.y[right] - curve.y[right - 1]);
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[half] : 0.5 * (sorted[half - 1] + sorted[half]);
}

function groupTraces(metric) {
  const members = new Map();
  for (const run of drawn()) {
    const curve = points(run, metric);
    if (curve === null || curve.y.some((value) => value === null)) continue;
    const key = `${run.env}\n${run.group}`;
    members.set(key, [...(members.get(key) ?? []), { run, curve }]);
  }
  return [...members.values()].flatMap((group) => {
    const first = Math.max(...group.map(({ curve }) => curve.x[0]));
    const last = Math.min(...group.map(({ curve }) => curve.x.at(-1)));
    const longest = group.map(({ curve }) => curve.x).sort((a, b) => b.length - a.length)[0];
    const x = longest.filter((step) => step >= first && step <= last);
    const columns = x.map((step) => group.map(({ curve }) => valueAt(curve, step)));
    const color = colorOf(group[0].run);
    const name = `${group[0].run.group} (n = ${group.length})`;
    const edge = { line: { width: 0 }, hoverinfo: "skip", hovertemplate: undefined, mode: "lines" };
    return [
      line(name, color, { x, y: columns.map((values) => Math.min(...values)) }, edge),
      line(name, color, { x, y: columns.map((values) => Math.max(...values)) },
        { ...edge, fill: "tonexty", fillcolor: `${color}30` }),
      line(name, color, { x, y: columns.map(median) }),
    ];
  });
}

function planeTraces() {
  const runs = drawn().filter((run) => run.summary !== null);
  const traces = groupKeys().flatMap((key) => {
    const mine = runs.filter((run) => `${run.env}\n${run.group}` === key);
    return mine.length === 0 ? [] : [{
      type: "scatter", mode: "markers", name: escaped(mine[0].group), x: mine.map((run) => summary(run, "final_cost")),
      y: mine.map((run) => summary(run, "final_return")), text: mine.map((run) => escaped(run.name)),
      marker: { color: mine.map(colorOf), size: 9, opacity: 0.85 },
      hovertemplate: "%{text}<br>cost %{x:.4g}, return %{y:.4g}<extra></extra>",
    }];
  });
  // Returns of different environments have no common front.
  if (new Set(runs.map((run) => run.env)).size !== 1) return traces;
  const sorted = runs.map((run) => [summary(run, "final_cost"), summary(run, "final_return")])
    .sort((a, b) => a[0] - b[0] || b[1] - a[1]);
  const front = sorted.filter(([, value], k) => sorted.slice(0, k).every((other) => other[1] < value));
  return [...traces, {
    type: "scatter", mode: "lines", name: "Pareto front", x: front.map((point) => point[0]), y: front.map((point) => point[1]),
    line: { color: "#888888", width: 1, dash: "dot", shape: "hv" }, hoverinfo: "skip",
  }];
}

function drawPlots() {
  if (plotly === null) return;
  const traces = state.mode === "runs" ? runTraces : groupTraces;
  const steps = "environment steps";
  const draw = (id, lines, shape) => plotly.react(id, lines, shape, { displaylogo: false, responsive: true });
  draw("plot-return", traces("eval/return"), layout("evaluated return", steps, "return per episode", []));
  draw("plot-cost", traces("eval/cost"), layout("evaluated cost", steps, "cost per episode", limitLines(false)));
  draw("plot-plane", planeTraces(), layout("last evaluation", "cost per episode", "return per episode", limitLines(true)));
  draw("plot-metric", traces(state.metric), layout(state.metric, steps, state.metric, []));
}

// ---- putting it together ----

function drawBelow() {
  byId("mixed").hidden = new Set(drawn().map((run) => run.env)).size < 2;
  drawDifferences();
  drawMedia("pictures", "pictures", picture);
  drawMedia("videos", "videos", video);
  drawPlots();
}

function drawAll() {
  drawOverview();
  drawGroups();
  drawBelow();
}

function fillSelect(id, values, all) {
  const options = values.map((value) => element("option", value, { value }));
  if (all !== undefined) options.unshift(element("option", all, { value: "" }));
  byId(id).replaceChildren(...options);
}

function fillControls() {
  const environments = [...new Set(data.runs.map((run) => run.env))];
  fillSelect("environment", environments, "all");
  fillSelect("metric", data.metrics);
  if (!environments.includes(state.environment)) state.environment = "";
  if (!data.metrics.includes(state.metric)) {
    state.metric = data.metrics.includes("train/multiplier") ? "train/multiplier" : data.metrics[0] ?? "";
  }
  byId("environment").value = state.environment;
  byId("metric").value = state.metric;
}

function listen() {
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["environment", "mode", "metric"]) {
    byId(id).addEventListener("change", (event) => { state[id] = event.target.value; drawAll(); });
  }
  byId("filter").addEventListener("input", (event) => { state.filter = event.target.value; drawAll(); });
  byId("overview").tHead.addEventListener("click", (event) => {
    const key = event.target.dataset.sort;
    if (key === undefined) return;
    state.descending = state.sort === key && !state.descending;
    state.sort = key;
    drawOverview();
    byId("overview").querySelector(`[data-sort="${key}"]`).focus();
  });
  byId("theme").addEventListener("click", () => setTheme(
    document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  drawPlots();
}

function loadPlotly() {
  document.head.append(element("script", byId("plotly-source").textContent));
  plotly = window.Plotly;
  drawPlots();
}

async function refresh() {
  const status = byId("live");
  try {
    const answer = await fetch(`data.json?since=${data.version}`, { cache: "no-store" });
    if (answer.status === 200) {
      data = await answer.json();
      fillControls();
      drawAll();
    }
    status.textContent = "live";
    status.classList.remove("lost");
  } catch {
    status.textContent = "connection lost";
    status.classList.add("lost");
  }
  setTimeout(refresh, data.seconds_between_reads * 1000);
}

setTheme(matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
fillControls();
listen();
drawAll();
// The tables are painted before 5 MB of plotly are parsed; this script runs before they have arrived.
document.addEventListener("DOMContentLoaded", () => requestAnimationFrame(() => setTimeout(loadPlotly)));
if (data.live) {
  byId("live").hidden = false;
  setTimeout(refresh, data.seconds_between_reads * 1000);
}
