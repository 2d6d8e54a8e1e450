// Puts the parts together: header, tabs, filters, keys, and the stream of a live run.
const TABS = [
  ["tree", "Tree"],
  ["timeline", "Timeline"],
  ["curves", "Curves"],
  ["compare", "Compare"],
];
const CHIPS = [
  ["finished", "finished"],
  ["best", "best path"],
  ["pruned", "pruned"],
  ["speculative", "speculative"],
];
const SIDES = [
  ["only-a", "only A"],
  ["only-b", "only B"],
  ["both", "both"],
];

const KEYS = [
  ["↑ ↓", "the step before or after; in the timeline another lane"],
  ["← →", "close or open a step, go to its parent or first child; in the timeline the call before or after"],
  ["Home End", "first or last row"],
  ["Space", "open or close"],
  ["*", "open all siblings"],
  ["Enter", "read the details; Esc comes back"],
  ["/", "search; Enter goes to the first match"],
  ["n  p", "next or previous match"],
  ["b", "the best solution"],
  ["e  c", "open or close everything"],
  ["1 – 4", "tree, timeline, curves, compare"],
  ["+ − 0", "zoom the timeline; 0 fits timeline and map"],
  ["Esc", "leave the search, clear the filters"],
  ["?", "this list"],
];

function select(item) {
  if (!item) return;
  page.selected = item;
  page.selectedCall = null;
  reveal(item);
  paintRows();
  drawMap();
  drawDetail();
  drawTimeline();
}

function selectCall(call) {
  page.selectedCall = call;
  drawDetail();
}

function showTab(name) {
  for (const [each] of TABS) {
    const tab = $(`tab-${each}`);
    if (!tab) continue;
    tab.setAttribute("aria-selected", each === name);
    tab.tabIndex = each === name ? 0 : -1;
    $(`view-${each}`).hidden = each !== name;
  }
  $("filters").hidden = name !== "tree";
  if (name === "tree") {
    paintRows();
    drawMap();
  }
  if (name === "timeline") drawTimeline();
  if (name === "curves") drawCurves();
}

function drawHeader() {
  const [run, other] = page.runs;
  const words = (value) => (typeof value === "string" ? value : value && (value.name || value.engine || value.kind));
  const told = ["recipe", "strategy", "model", "reward", "seed"]
    .map((name) => {
      const values = page.runs.map((each) => {
        if (name === "seed") return each.run.seed;
        const value = settingsOf(each)[name === "recipe" ? "name" : name];
        return value === "run" ? null : words(value); // the name of a recipe written on a command line
      });
      const known = [...new Set(values)].filter((value) => value !== undefined && value !== null && value !== "");
      return [name, known.join(" / ")];
    })
    .filter(([, text]) => text);
  const state = page.live && !run.end ? h("span", { class: "live" }, "live") : null;
  const names = other ? `A ${run.run.name} · B ${other.run.name}` : run.run.name || "";
  $("eyebrow").replaceChildren(
    ...[state, h("span", {}, names), ...told.map(([name, text]) => h("span", {}, `${name} `, h("b", {}, text)))].filter(
      Boolean,
    ),
  );
  $("question").textContent = run.run.question || (page.live ? "Waiting for a run …" : "");
  document.title = `${shortened(oneLine(run.run.question || "run"), 60)} · abduce trace`;
  const answer = $("answer");
  if (run.end) {
    const stopped = run.end.diagnostics && run.end.diagnostics.stopped;
    answer.replaceChildren(
      "answer ",
      h("b", {}, shortened(oneLine(answerOf(run)), 200)),
      ...(other ? [" · B ", h("b", {}, shortened(oneLine(answerOf(other)), 200))] : []),
      ...(run.end.complete
        ? []
        : [h("span", { class: "warn" }, ` · incomplete: ${oneLine(String(stopped || "ended early"))}`)]),
    );
  } else answer.textContent = run.run.question ? (page.live ? "searching …" : "not finished") : "";
  const figures = (of) =>
    other ? page.runs.map((each, k) => h("span", { class: ["only-a", "only-b"][k] }, of(each))) : of(run);
  const finished = (each) => each.nodes.filter((node) => node.terminal).length;
  $("figures").replaceChildren(
    ...[
      ["steps", figures((each) => whole(each.nodes.length)), other ? "" : `${whole(finished(run))} finished`],
      ["best score", figures((each) => number(topScore(each))), ""],
      [
        "tokens",
        figures((each) => whole(spentAt(each, Infinity, "tokens"))),
        other ? "" : `${whole(spentAt(run, Infinity, "output_tokens"))} out`,
      ],
      ["calls", figures((each) => whole(each.calls.length)), ""],
      ["time", figures((each) => seconds(each.t)), ""],
    ].map(([name, value, small]) =>
      h(
        "div",
        {},
        h("dt", {}, name),
        h("dd", { class: other ? "two" : null }, value, small ? h("small", {}, small) : null),
      ),
    ),
  );
}

function drawChips() {
  const chip =
    (set, test) =>
    ([name, label]) => {
      const count = page.items.reduce((n, item) => n + (!item.visit && test(name, item)), 0);
      const button = h(
        "button",
        {
          type: "button",
          "aria-pressed": set.has(name),
          "data-chip": name,
          onclick: () => {
            if (!set.delete(name)) set.add(name);
            drawChips();
            applyFilter();
            $("chips").querySelector(`[data-chip="${name}"]`).focus();
          },
        },
        label,
        h("small", {}, whole(count)),
      );
      return button;
    };
  $("chips").replaceChildren(
    ...CHIPS.map(chip(filter.fates, (name, item) => FILTERS[name](item))),
    ...(page.runs[1] ? SIDES.map(chip(filter.sides, (name, item) => side(item) === name)) : []),
  );
}

function drawLegends() {
  const entry = (className, text, vars) => h("span", {}, h("span", { class: className, vars }), text);
  const dot = (kind, text) => entry(`dot ${kind}`, text, { "--colour": colours.mid });
  $("legend").replaceChildren(
    entry("ramp", "score 0 – 1"),
    dot("finished", "finished"),
    dot("finished best", "best path"),
    dot("pruned", "pruned"),
    dot("speculative", "speculative"),
  );
  const swatch = (name) => {
    const box = h("span", { class: "swatch" });
    box.style.background = colours[name];
    return box;
  };
  $("timeline-legend").replaceChildren(
    ...GROUPS.filter(([, , fits]) => page.runs.some((run) => run.calls.some((call) => groupOf(call)[2] === fits))).map(
      ([name, colour]) => h("span", {}, swatch(colour), name),
    ),
    h("span", {}, "pale and dashed: speculative"),
    h("span", {}, "red rim: failed"),
    h("span", {}, "wheel: zoom, drag: move"),
  );
}

// What must follow from new data, in a page that is open or just opened.
function refresh(first) {
  const before = page.items.length;
  syncItems();
  openAtFirst(page.items.slice(before));
  layMap();
  drawHeader();
  drawChips();
  layTimeline();
  curves.stale = true;
  drawLegends();
  applyFilter({ openTheWay: false });
  drawCurves();
  drawCompare();
  drawDetail({ onlyIfNew: !first });
}

function startFilters() {
  const search = $("search");
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      filter.words = search.value.trim().toLowerCase();
      applyFilter();
    }, 60);
  });
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== "ArrowDown") return;
    event.preventDefault();
    clearTimeout(waiting);
    filter.words = search.value.trim().toLowerCase();
    applyFilter();
    tree.box.focus();
    const found = tree.rows.find((item) => item.match && !item.visit);
    if (found) select(found);
  });
  $("least").addEventListener("input", (event) => {
    filter.least = Number(event.target.value);
    $("least-said").textContent = number(filter.least);
    applyFilter();
  });
}

function clearFilters() {
  filter.words = "";
  filter.fates.clear();
  filter.sides.clear();
  filter.least = 0;
  $("search").value = "";
  $("least").value = 0;
  $("least-said").textContent = "0";
  drawChips();
  applyFilter();
  if (page.selected) reveal(page.selected);
}

function startTabs() {
  const names = TABS.filter(([name]) => name !== "compare" || page.runs[1]);
  $("tabs").replaceChildren(
    ...names.map(([name, label]) =>
      h(
        "button",
        {
          type: "button",
          role: "tab",
          id: `tab-${name}`,
          "aria-controls": `view-${name}`,
          onclick: () => showTab(name),
        },
        label,
      ),
    ),
  );
  $("tabs").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const at = names.findIndex(([name]) => $(`tab-${name}`).getAttribute("aria-selected") === "true");
    const [next] = names[(at + by + names.length) % names.length];
    showTab(next);
    $(`tab-${next}`).focus();
  });
  showTab("tree");
}

const focusOf = {
  tree: () => tree.box,
  timeline: () => $("timeline"),
  curves: () => $("axis").querySelector('[tabindex="0"]'),
  compare: () => $("tab-compare"),
};
const GLOBAL_KEYS = {
  "/": () => {
    showTab("tree");
    $("search").focus();
    $("search").select();
  },
  "?": () => $("help").showModal(),
  n: () => nextMatch(1),
  p: () => nextMatch(-1),
  b: () => {
    showTab("tree");
    select(bestItem());
    tree.box.focus({ preventScroll: true });
  },
  e: () => openAll(true),
  c: () => openAll(false),
  0: fitMap,
  Escape: () => {
    const inside = document.activeElement;
    if (inside === $("search") || $("detail").contains(inside)) {
      focusOf[openTab()]().focus({ preventScroll: true });
      if (inside !== $("search")) return;
    }
    clearFilters();
  },
};
TABS.forEach(([name], i) => {
  GLOBAL_KEYS[i + 1] = () => {
    if ($(`tab-${name}`)) {
      showTab(name);
      focusOf[name]().focus({ preventScroll: true });
    }
  };
});
const openTab = () => TABS.find(([name]) => !$(`view-${name}`).hidden)[0];

function startKeys() {
  $("keys").replaceChildren(
    ...KEYS.flatMap(([keys, text]) => [
      h(
        "dt",
        {},
        keys
          .split(/\s+/)
          .filter((key) => key !== "–")
          .map((key) => h("kbd", {}, key))
          .flatMap((key, i) => (i ? [" ", key] : [key])),
      ),
      h("dd", {}, text),
    ]),
  );
  $("help-open").addEventListener("click", () => $("help").showModal());
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
    const typing = event.target.tagName === "INPUT" && event.target.type !== "range";
    if (typing && event.key !== "Escape") return;
    const act = GLOBAL_KEYS[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
}

// A live run: changes come as server-sent events; "new" says that another run follows.
function listen() {
  const events = new EventSource("events");
  events.addEventListener("new", () => {
    Object.assign(page, {
      runs: [newRun()],
      items: [],
      roots: [],
      taken: 0,
      visitItems: null,
      selected: null,
      selectedCall: null,
    });
    refresh(true);
  });
  events.addEventListener("change", (event) => {
    take(page.runs[0], JSON.parse(event.data));
    refresh(false);
  });
}

function start() {
  const given = JSON.parse($("data").textContent);
  page.live = Boolean(given.live);
  page.runs = (given.runs || [{}]).map((change) => {
    const run = newRun();
    take(run, change);
    return run;
  });
  page.merged = given.merged || null;
  page.pairs = [];
  readColours();
  startTree();
  startMap();
  startTimeline();
  startCurves();
  startFilters();
  startTabs();
  startKeys();
  refresh(true);
  const best = bestItem();
  if (best) select(best);
  tree.box.focus({ preventScroll: true });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    drawLegends();
    paintRows();
    drawMap();
    drawTimeline();
    curves.stale = true;
    drawCurves();
  });
  if (page.live) listen();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}
start();
