// The runs on this page, and how changes are taken in. Text from a run only ever becomes textContent.
const FATES = ["open", "best", "pruned", "speculative"];
const SPENT = { input: 0, cached: 1, output: 2, calls: 3, tools: 4, cost: 5, joules: 6 };

const page = {
  runs: [],
  items: [],
  roots: [],
  merged: null,
  live: false,
  selected: null,
  selectedCall: null, // one of them, or neither
};

function newRun() {
  return {
    run: {},
    nodes: [],
    calls: [],
    texts: [],
    resamplings: [],
    notes: [],
    stops: [],
    visits: [],
    end: null,
    t: 0,
  };
}

function take(run, change) {
  for (const name of ["texts", "resamplings", "notes", "stops"]) run[name].push(...(change[name] || []));
  for (const call of change.calls || []) {
    run.calls.push(Object.assign(call, { i: run.calls.length, run, nodes: [], wasted: false }));
  }
  for (const [parent, depth, text, logp, terminal, t, call, sample, visit] of change.nodes || []) {
    const node = {
      i: run.nodes.length,
      run,
      parent: run.nodes[parent] || null,
      depth,
      text,
      logp,
      terminal,
      t,
      call: run.calls[call] || null,
      sample,
      visit,
      score: null,
      fate: 0,
      scored: null,
      scorers: [],
    };
    if (node.call) node.call.nodes.push(node);
    run.nodes.push(node);
  }
  for (const [i, score, fate, scored] of change.marks || []) Object.assign(run.nodes[i], { score, fate, scored });
  for (const [i, used, scores, wasted] of change.links || []) {
    const call = run.calls[i];
    used.forEach((u, k) => {
      call.samples[k].used = u;
    });
    call.wasted = wasted;
    call.scores = scores;
    for (const n of scores) if (!run.nodes[n].scorers.includes(call)) run.nodes[n].scorers.push(call);
  }
  for (const name of ["run", "visits", "end"]) if (change[name]) run[name] = change[name];
  run.t = Math.max(run.t, change.t || 0);
  run.sums = null;
}

// Items are what the tree shows: a node of one run, a pair of nodes of two, or a visit to a node of the graph.
function addItem(fields, parent) {
  const item = {
    a: null,
    b: null,
    visit: null,
    parent,
    children: [],
    open: false,
    level: parent ? parent.level + 1 : 1,
    n: page.items.length,
    match: true,
    below: false,
    row: -1,
    x: 0,
    y: 0,
    ...fields,
  };
  page.items.push(item);
  (parent ? parent.children : page.roots).push(item);
  for (const node of [item.a, item.b]) if (node) node.item = item;
  return item;
}

function syncItems() {
  const first = page.runs[0];
  const nested = first.visits.length > 0;
  page.visitItems = page.visitItems || new Map();
  const rootOf = (number) => {
    if (!nested) return null;
    if (!page.visitItems.has(number)) {
      const visit = first.visits.find((v) => v.visit === number) || { visit: number, node: "?", step: "" };
      page.visitItems.set(number, addItem({ visit, open: true }, null));
    }
    const item = page.visitItems.get(number);
    return item;
  };
  for (const visit of first.visits) rootOf(visit.visit).visit = visit;
  if (page.merged) {
    for (const [a, b, parent] of page.merged.splice(0)) {
      const pair = { a: page.runs[0].nodes[a] || null, b: page.runs[1].nodes[b] || null };
      addItem(pair, parent >= 0 ? page.pairs[parent] : rootOf((pair.a || pair.b).visit));
      page.pairs.push(page.items[page.items.length - 1]);
    }
    return;
  }
  for (let i = page.taken || 0; i < first.nodes.length; i++) {
    const node = first.nodes[i];
    addItem({ a: node }, node.parent ? node.parent.item : rootOf(node.visit));
  }
  page.taken = first.nodes.length;
}

const nodeOf = (item) => item.a || item.b;
const side = (item) => (!page.runs[1] || item.visit ? "" : item.a && item.b ? "both" : item.a ? "only-a" : "only-b");
const fateOf = (item) => (item.visit ? "visit" : FATES[nodeOf(item).fate]);
const scoreOf = (item) => {
  const node = nodeOf(item);
  return node ? node.score : null;
};

function* pathTo(node) {
  const found = [];
  for (let here = node; here; here = here.parent) found.push(here);
  yield* found.reverse();
}

// ---------------------------------------------------------------- words and numbers

const number = (x, digits = 2) => (x === null || x === undefined || Number.isNaN(x) ? "–" : Number(x).toFixed(digits));
const whole = (x) => Math.round(x).toLocaleString("en");
function seconds(s) {
  if (s === 0) return "0 s";
  if (s < 0.001) return `${whole(s * 1e6)} µs`;
  if (s < 1) return `${Number((s * 1000).toPrecision(3))} ms`;
  return s < 120 ? `${Number(s.toPrecision(3))} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
}
// One line, without control and formatting characters; the details show the text as it is.
const oneLine = (text) => text.replace(/[\p{C}\s]+/gu, " ").trim();
const shortened = (text, n) => (text.length > n ? `${text.slice(0, n - 1)}…` : text);
const counted = (noun, n) => `${whole(n)} ${noun}${n === 1 ? "" : "s"}`;
const wordless = (node) => (node.terminal ? "(ended)" : "(no words)");
// What a run was started with; of a recipe, its keys.
const settingsOf = (run) => ({
  ...(run.run.settings || {}),
  ...((run.run.settings || {}).recipe || {}),
  recipe: undefined,
});
const tokensOf = (call) => call.spent[SPENT.input] - call.spent[SPENT.cached] + call.spent[SPENT.output];

// Calls in the order of their ends, with what was spent up to each.
function sums(run) {
  if (run.sums) return run.sums;
  const ends = run.calls.map((call) => ({ t: call.t + call.s, call })).sort((p, q) => p.t - q.t);
  const total = { tokens: 0, output_tokens: 0, calls: 0, tool_calls: 0, cost_usd: 0, joules: 0 };
  run.sums = ends.map(({ t, call }) => {
    total.tokens += tokensOf(call);
    total.output_tokens += call.spent[SPENT.output];
    total.calls += call.spent[SPENT.calls];
    total.tool_calls += call.spent[SPENT.tools];
    total.cost_usd += call.spent[SPENT.cost];
    total.joules += call.spent[SPENT.joules];
    return { t, ...total };
  });
  return run.sums;
}

function spentAt(run, t, name) {
  const rows = sums(run);
  let low = 0,
    high = rows.length;
  while (low < high) {
    const mid = (low + high) >> 1;
    if (rows[mid].t <= t) low = mid + 1;
    else high = mid;
  }
  return low ? rows[low - 1][name] : 0;
}

// ---------------------------------------------------------------- elements

function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") element.className = value;
    else if (key === "vars") for (const [name, v] of Object.entries(value)) element.style.setProperty(name, v);
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}
const $ = (id) => document.getElementById(id);
const say = (text) => {
  $("said").textContent = text;
};

const colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of [
    "paper",
    "panel",
    "raised",
    "line",
    "strong-line",
    "ink",
    "soft",
    "quiet",
    "accent",
    "wash",
    "best",
    "bad",
    "low",
    "mid",
    "high",
    "only-a",
    "only-b",
    "sans",
  ]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
  const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  const stops = [rgb(colours.low), rgb(colours.mid), rgb(colours.high)];
  colours.ramp = Array.from({ length: 101 }, (_, i) => {
    const x = (i / 100) * 2,
      k = Math.min(1, Math.floor(x));
    return `rgb(${stops[k].map((c, j) => Math.round(c + (stops[k + 1][j] - c) * (x - k))).join(" ")})`;
  });
}
const scoreColour = (score) =>
  score === null ? colours["strong-line"] : colours.ramp[Math.round(Math.min(1, Math.max(0, score)) * 100)];

function tip(text, x, y) {
  const box = $("tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const width = box.offsetWidth,
    height = box.offsetHeight;
  box.style.left = `${Math.min(x + 14, innerWidth - width - 8)}px`;
  box.style.top = `${y + 18 + height > innerHeight ? y - height - 10 : y + 18}px`;
}

// A canvas that is as sharp as the screen; draws at most once a frame.
function canvasIn(box, draw) {
  const canvas = box.querySelector("canvas");
  const context = canvas.getContext("2d");
  const view = { canvas, context, width: 0, height: 0, wanted: false };
  view.redraw = () => {
    if (view.wanted) return;
    view.wanted = true;
    requestAnimationFrame(() => {
      view.wanted = false;
      if (!box.clientWidth) return;
      const ratio = devicePixelRatio || 1;
      view.width = box.clientWidth;
      view.height = box.clientHeight;
      if (canvas.width !== Math.round(view.width * ratio) || canvas.height !== Math.round(view.height * ratio)) {
        canvas.width = Math.round(view.width * ratio);
        canvas.height = Math.round(view.height * ratio);
      }
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, view.width, view.height);
      draw(view);
    });
  };
  new ResizeObserver(view.redraw).observe(box);
  return view;
}
