// The outline: an ARIA tree of which only the rows in sight are in the document.
const ROW = 28;
const DEEPEST = 24; // indents; deeper steps stay flush, their level is told
const tree = { rows: [], pool: [], box: null, sizer: null };

const filter = { words: "", fates: new Set(), sides: new Set(), least: 0, count: 0 };
const filtering = () => filter.words !== "" || filter.fates.size > 0 || filter.sides.size > 0 || filter.least > 0;

const FILTERS = {
  finished: (item) => Boolean(nodeOf(item).terminal),
  best: (item) => fateOf(item) === "best",
  pruned: (item) => fateOf(item) === "pruned",
  speculative: (item) => fateOf(item) === "speculative",
};

function matches(item) {
  if (item.visit)
    return (
      filter.words !== "" &&
      !filter.fates.size &&
      !filter.least &&
      `${item.visit.node} ${item.visit.step}`.toLowerCase().includes(filter.words)
    );
  const node = nodeOf(item);
  if (filter.words && !node.text.toLowerCase().includes(filter.words)) return false;
  if (filter.least > 0 && (node.score === null || node.score < filter.least)) return false;
  if (filter.sides.size && !filter.sides.has(side(item))) return false;
  if (filter.fates.size && ![...filter.fates].some((name) => FILTERS[name](item))) return false;
  return true;
}

// Marks what the filter keeps, and opens the way to it. Parents stand before their children in page.items.
function applyFilter({ openTheWay = true } = {}) {
  filter.count = 0;
  const on = filtering();
  for (const item of page.items) {
    item.match = on ? matches(item) : true;
    item.below = false;
    if (item.match && !item.visit) filter.count += 1;
  }
  if (on) {
    for (let i = page.items.length - 1; i >= 0; i--) {
      const item = page.items[i];
      if (item.parent && (item.match || item.below)) {
        item.parent.below = true;
        if (openTheWay) item.parent.open = true;
      }
    }
  }
  const total = page.items.length - page.roots.filter((item) => item.visit).length;
  $("count").textContent = on ? `${whole(filter.count)} of ${whole(total)} steps` : "";
  layRows();
  drawMap();
}

function layRows() {
  const rows = [];
  const on = filtering();
  const shown = (item) => !on || item.match || item.below;
  for (const item of tree.rows) item.row = -1;
  const pending = page.roots.filter(shown).reverse();
  while (pending.length) {
    const item = pending.pop();
    item.row = rows.length;
    rows.push(item);
    if (item.open)
      for (let i = item.children.length - 1; i >= 0; i--) if (shown(item.children[i])) pending.push(item.children[i]);
  }
  tree.rows = rows;
  tree.sizer.style.height = `${rows.length * ROW + 8}px`;
  const empty = $("empty");
  empty.hidden = rows.length > 0;
  empty.textContent = rows.length
    ? ""
    : on
      ? "No step matches. Esc shows all again."
      : page.live
        ? "Waiting for the first step …"
        : "This run drew no steps.";
  paintRows();
}

function paintRows() {
  const first = Math.max(0, Math.floor(tree.box.scrollTop / ROW) - 4);
  const last = Math.min(tree.rows.length, Math.ceil((tree.box.scrollTop + tree.box.clientHeight) / ROW) + 4);
  while (tree.pool.length < last - first) {
    const row = emptyRow();
    tree.pool.push(row);
    tree.sizer.append(row.element);
  }
  tree.pool.forEach((row, k) => {
    const item = first + k < last ? tree.rows[first + k] : null;
    row.element.hidden = !item;
    row.item = item;
    if (item) fillRow(row, item, first + k);
  });
  const at = page.selected && page.selected.row >= first && page.selected.row < last ? `row-${page.selected.n}` : null;
  if (at) tree.box.setAttribute("aria-activedescendant", at);
  else tree.box.removeAttribute("aria-activedescendant");
}

function emptyRow() {
  const guides = h("span", { class: "guides" }),
    twisty = h("span", { class: "twisty", "aria-hidden": "true" });
  const dot = h("span", { class: "dot" }),
    words = h("span", { class: "words" }),
    beside = h("span", { class: "side" });
  const bar = h("i"),
    score = h("span");
  const element = h(
    "div",
    { class: "row", role: "treeitem" },
    h("span", { class: "gutter" }, guides, twisty, dot),
    words,
    beside,
    h("span", { class: "score" }, bar, score),
  );
  const row = { element, guides, twisty, dot, words, beside, bar, score, item: null };
  element.addEventListener("click", (event) => {
    if (event.target === twisty) toggle(row.item);
    else select(row.item);
  });
  element.addEventListener("dblclick", () => toggle(row.item));
  return row;
}

function fillRow(row, item, index) {
  const { element } = row;
  const node = nodeOf(item);
  const fate = fateOf(item);
  const level = item.level - 1;
  element.id = `row-${item.n}`;
  element.className = `row ${fate}${node && node.terminal ? " finished" : ""}${filtering() && !item.match ? " context" : ""}`;
  element.style.transform = `translateY(${index * ROW + 4}px)`;
  element.setAttribute("aria-level", item.level);
  element.setAttribute("aria-selected", item === page.selected);
  const siblings = item.parent ? item.parent.children : page.roots;
  element.setAttribute("aria-setsize", siblings.length);
  element.setAttribute("aria-posinset", siblings.indexOf(item) + 1);
  if (item.children.length) element.setAttribute("aria-expanded", item.open);
  else element.removeAttribute("aria-expanded");
  row.guides.style.width = `${Math.min(level, DEEPEST) * 16 + 16}px`;
  row.twisty.textContent = item.children.length ? (item.open ? "▾" : "▸") : "";
  row.dot.className = `dot ${fate}${node && node.terminal ? " finished" : ""}`;
  const score = scoreOf(item);
  row.dot.style.setProperty("--colour", item.visit ? colours.accent : scoreColour(score));
  marked(row.words, item.visit ? item.visit.node : oneLine(node.text), node ? wordless(node) : "");
  fillBeside(row.beside, item, node);
  row.bar.style.visibility = score === null ? "hidden" : "";
  row.bar.style.setProperty("--share", score === null ? 0 : Math.min(1, Math.max(0, score)));
  row.bar.style.setProperty("--colour", scoreColour(score));
  row.score.textContent = item.visit ? "" : number(score);
  element.setAttribute(
    "aria-label",
    item.visit ? `visit ${item.visit.visit + 1}, ${item.visit.node}` : described(item),
  );
}

function described(item) {
  const node = nodeOf(item);
  const told = [oneLine(node.text) || wordless(node)];
  if (node.score !== null) told.push(`score ${number(node.score)}`);
  if (node.terminal) told.push("finished");
  if (node.fate === 1) told.push("best path");
  if (node.fate > 1) told.push(FATES[node.fate]);
  if (side(item)) told.push({ both: "in both runs", "only-a": "only in A", "only-b": "only in B" }[side(item)]);
  return told.join(", ");
}

function fillBeside(box, item, node) {
  if (item.visit) {
    box.className = "side";
    box.textContent =
      item.visit.end === undefined ? item.visit.step : `${item.visit.step} · ${seconds(item.visit.end - item.visit.t)}`;
    return;
  }
  const where = side(item);
  box.className = `side badge ${where}`;
  if (where) box.textContent = { both: "A B", "only-a": "A", "only-b": "B" }[where];
  else {
    box.className = "side";
    box.textContent =
      item.level > DEEPEST
        ? `level ${node.depth}`
        : item.children.length && !item.open
          ? `${whole(countBelow(item))} below`
          : "";
  }
}

function countBelow(item) {
  let count = 0;
  const pending = [...item.children];
  while (pending.length) {
    const next = pending.pop();
    count += 1;
    pending.push(...next.children);
  }
  return count;
}

// A text with what is searched for marked in it.
function marked(box, text, instead) {
  if (!text) return box.replaceChildren(h("span", { class: "none" }, instead));
  if (!filter.words) {
    box.textContent = text;
    return undefined;
  }
  const parts = [];
  const lower = text.toLowerCase();
  let from = 0;
  for (let at = lower.indexOf(filter.words); at >= 0; at = lower.indexOf(filter.words, from)) {
    parts.push(text.slice(from, at), h("mark", {}, text.slice(at, at + filter.words.length)));
    from = at + filter.words.length;
  }
  parts.push(text.slice(from));
  return box.replaceChildren(...parts);
}

// ---------------------------------------------------------------- open, close, move

function toggle(item, open = !item.open) {
  if (!item.children.length || item.open === open) return;
  item.open = open;
  if (!open && page.selected && page.selected !== item) {
    for (let here = page.selected.parent; here; here = here.parent)
      if (here === item) {
        select(item);
        break;
      }
  }
  layRows();
}

function openAll(open) {
  for (const item of page.items) if (item.children.length) item.open = open || Boolean(item.visit);
  if (!open && page.selected) {
    let top = page.selected;
    while (top.parent && !top.parent.visit) top = top.parent;
    select(top);
  }
  layRows();
}

function reveal(item) {
  let changed = item.row < 0;
  for (let here = item.parent; here; here = here.parent)
    if (!here.open) {
      here.open = true;
      changed = true;
    }
  if (changed) layRows();
  if (item.row < 0) return; // filtered away
  const top = item.row * ROW,
    bottom = top + ROW + 8;
  const room = tree.box.clientHeight,
    far = top < tree.box.scrollTop - 3 * ROW || bottom > tree.box.scrollTop + room + 3 * ROW;
  if (far) tree.box.scrollTop = top - room / 2;
  else if (top < tree.box.scrollTop) tree.box.scrollTop = top;
  else if (bottom > tree.box.scrollTop + room) tree.box.scrollTop = bottom - room;
}

function moveTo(index) {
  if (!tree.rows.length) return;
  select(tree.rows[Math.min(tree.rows.length - 1, Math.max(0, index))]);
}

function nextMatch(step) {
  const found = tree.rows.filter((item) => item.match && !item.visit);
  if (!found.length) return;
  const here = page.selected ? page.selected.row : -1;
  const after = step > 0 ? found.find((item) => item.row > here) : found.findLast((item) => item.row < here);
  select(after || found[step > 0 ? 0 : found.length - 1]);
}

function bestItem() {
  const best = page.items.filter((item) => !item.visit && fateOf(item) === "best");
  return best.length ? best.reduce((p, q) => (q.level >= p.level ? q : p)) : null;
}

const TREE_KEYS = {
  ArrowDown: () => moveTo(page.selected ? page.selected.row + 1 : 0),
  ArrowUp: () => moveTo(page.selected ? page.selected.row - 1 : 0),
  Home: () => moveTo(0),
  End: () => moveTo(tree.rows.length - 1),
  PageDown: () => moveTo((page.selected ? page.selected.row : 0) + Math.floor(tree.box.clientHeight / ROW) - 1),
  PageUp: () => moveTo((page.selected ? page.selected.row : 0) - Math.floor(tree.box.clientHeight / ROW) + 1),
  ArrowRight: () => {
    const item = page.selected;
    if (!item) return moveTo(0);
    if (item.children.length && !item.open) return toggle(item, true);
    return item.children.length ? moveTo(item.row + 1) : undefined;
  },
  ArrowLeft: () => {
    const item = page.selected;
    if (!item) return;
    if (item.children.length && item.open) toggle(item, false);
    else if (item.parent) select(item.parent);
  },
  " ": () => page.selected && toggle(page.selected),
  Enter: () => page.selected && $("detail").focus(),
  "*": () => {
    if (!page.selected) return;
    for (const item of page.selected.parent ? page.selected.parent.children : page.roots)
      if (item.children.length) item.open = true;
    layRows();
  },
};

function startTree() {
  tree.box = $("tree");
  tree.sizer = tree.box.querySelector(".sizer");
  tree.box.addEventListener("scroll", paintRows, { passive: true });
  tree.box.addEventListener("focus", () => {
    if (!page.selected && tree.rows.length) select(tree.rows[0]);
  });
  tree.box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !TREE_KEYS[event.key]) return;
    event.preventDefault();
    TREE_KEYS[event.key]();
  });
  new ResizeObserver(paintRows).observe(tree.box);
}

// At first: all of a small tree; of a large one the best path and the roots.
function openAtFirst(items) {
  const small = page.items.length <= 300;
  for (const item of items) if (small || item.visit || fateOf(item) === "best") item.open = true;
}
