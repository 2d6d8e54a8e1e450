// The map: the whole tree on a canvas, roots on top, one column for each leaf.
const map = { view: null, zoom: 1, x: 0, y: 0, columns: 1, levels: 1, hover: null, moved: false };

const TINY = 2.2; // of a radius, in pixels

function layMap() {
  let column = 0,
    deepest = 1;
  const pending = [...page.roots].reverse().map((item) => [item, false]);
  while (pending.length) {
    const [item, done] = pending.pop();
    if (done || !item.children.length) {
      const kids = item.children;
      item.x = kids.length ? (kids[0].x + kids[kids.length - 1].x) / 2 : column++;
      item.y = item.level;
      deepest = Math.max(deepest, item.level);
      continue;
    }
    pending.push([item, true]);
    for (let i = item.children.length - 1; i >= 0; i--) pending.push([item.children[i], false]);
  }
  map.columns = Math.max(1, column);
  map.levels = deepest;
}

function place() {
  const { width, height } = map.view;
  const left = 28,
    top = 22,
    bottom = 40;
  const stretch = ((width - 2 * left) / Math.max(1, map.columns - 1 || 1)) * map.zoom;
  const drop = Math.min(64, (height - top - bottom) / Math.max(1, map.levels)) * Math.max(1, map.zoom ** 0.35);
  return {
    x: (item) => (map.columns === 1 ? width / 2 : left + item.x * stretch) + map.x,
    y: (item) => top + item.y * drop + map.y,
    rootX: width / 2 + map.x,
    rootY: top + map.y,
    radius: Math.min(6, Math.max(1.4, Math.min(stretch, drop) / 2.6)),
  };
}

function drawMap() {
  if (map.view) map.view.redraw();
}

function paintMap({ context: c, width }) {
  const at = place();
  const seen = page.items.map((item) => ({ item, x: at.x(item), y: at.y(item) }));
  map.seen = seen;
  map.radius = at.radius;
  const inSight = (x) => x > -20 && x < width + 20;
  const faint = filtering();
  const edges = { plain: new Path2D(), faint: new Path2D(), best: new Path2D() };
  for (const { item, x, y } of seen) {
    const px = item.parent ? seen[item.parent.n].x : at.rootX,
      py = item.parent ? seen[item.parent.n].y : at.rootY;
    if (!inSight(x) && !inSight(px)) continue;
    const fate = fateOf(item);
    const kind =
      fate === "best"
        ? "best"
        : fate === "pruned" || fate === "speculative" || (faint && !item.match && !item.below)
          ? "faint"
          : "plain";
    edges[kind].moveTo(px, py);
    edges[kind].bezierCurveTo(px, (py + y) / 2, x, (py + y) / 2, x, y);
  }
  for (const [kind, colour, thick] of [
    ["faint", colours.line, 1],
    ["plain", colours["strong-line"], 1],
    ["best", colours.best, 2.2],
  ]) {
    c.strokeStyle = colour;
    c.lineWidth = thick;
    c.stroke(edges[kind]);
  }
  if (!page.roots.some((item) => item.visit) && page.roots.length) {
    c.fillStyle = colours.soft;
    c.fillRect(at.rootX - 3, at.rootY - 3, 6, 6);
  }
  for (const { item, x, y } of seen) if (inSight(x)) paintDot(c, item, x, y, at.radius, faint);
  nameVisits(c, seen, at.radius);
  if (page.selected && seen[page.selected.n]) {
    const { x, y } = seen[page.selected.n];
    c.strokeStyle = colours.accent;
    c.lineWidth = 2;
    c.beginPath();
    c.arc(x, y, at.radius + 4, 0, 2 * Math.PI);
    c.stroke();
  }
}

// The names of the visits, beside their squares, as far as there is room.
function nameVisits(c, seen, radius) {
  c.font = `12px ${colours.sans}`;
  c.fillStyle = colours.soft;
  let free = -Infinity;
  for (const { item, x, y } of seen) {
    if (!item.visit || x < free) continue;
    c.fillText(item.visit.node, x + radius + 5, y - 3);
    free = x + radius + 14 + c.measureText(item.visit.node).width;
  }
}

function paintDot(c, item, x, y, radius, faint) {
  const fate = fateOf(item),
    node = nodeOf(item);
  c.globalAlpha = faint && !item.match ? 0.18 : fate === "pruned" ? 0.75 : 1;
  const colour =
    side(item) === "only-a"
      ? colours["only-a"]
      : side(item) === "only-b"
        ? colours["only-b"]
        : item.visit
          ? colours.accent
          : scoreColour(node.score);
  if (radius < TINY) {
    c.fillStyle = colour; // thousands of circles that nobody can tell from squares
    c.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    c.globalAlpha = 1;
    return;
  }
  c.beginPath();
  if (item.visit) c.rect(x - radius, y - radius, 2 * radius, 2 * radius);
  else c.arc(x, y, radius, 0, 2 * Math.PI);
  c.fillStyle = item.visit || node.terminal ? colour : colours.paper;
  c.fill();
  c.strokeStyle = colour;
  c.lineWidth = 1.6;
  if (fate === "speculative") c.setLineDash([2, 2]);
  c.stroke();
  c.setLineDash([]);
  if (fate === "pruned") {
    c.strokeStyle = colours.quiet;
    c.lineWidth = 1.2;
    c.beginPath();
    c.moveTo(x - radius - 1.5, y + radius + 1.5);
    c.lineTo(x + radius + 1.5, y - radius - 1.5);
    c.stroke();
  }
  c.globalAlpha = 1;
}

function nearest(event) {
  const box = map.view.canvas.getBoundingClientRect();
  const x = event.clientX - box.left,
    y = event.clientY - box.top;
  let found = null,
    least = Math.max(12, map.radius * 2) ** 2;
  for (const dot of map.seen || []) {
    const apart = (dot.x - x) ** 2 + (dot.y - y) ** 2;
    if (apart < least) {
      least = apart;
      found = dot.item;
    }
  }
  return found;
}

function fitMap() {
  Object.assign(map, { zoom: 1, x: 0, y: 0 });
  drawMap();
}

function startMap() {
  const box = $("map");
  map.view = canvasIn(box, paintMap);
  let drag = null;
  box.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const at = event.clientX - box.getBoundingClientRect().left;
      const zoom = Math.min(400, Math.max(1, map.zoom * Math.exp(-event.deltaY / 400)));
      map.x = zoom === 1 ? 0 : at - ((at - 28 - map.x) * zoom) / map.zoom - 28;
      if (zoom === 1) map.y = 0;
      map.zoom = zoom;
      drawMap();
    },
    { passive: false },
  );
  box.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX - map.x, y: event.clientY - map.y };
    map.moved = false;
    map.view.canvas.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", (event) => {
    if (drag && event.buttons) {
      map.moved = map.moved || Math.hypot(event.clientX - drag.x - map.x, event.clientY - drag.y - map.y) > 4;
      if (map.moved) {
        map.x = event.clientX - drag.x;
        map.y = event.clientY - drag.y;
        tip("");
        drawMap();
      }
      return;
    }
    const item = nearest(event);
    tip(item ? tipOf(item) : "", event.clientX, event.clientY);
  });
  box.addEventListener("pointerup", (event) => {
    const item = map.moved ? null : nearest(event);
    drag = null;
    if (item) {
      select(item);
      tree.box.focus({ preventScroll: true });
    }
  });
  box.addEventListener("pointerleave", () => tip(""));
  box.addEventListener("dblclick", fitMap);
}

function tipOf(item) {
  if (item.visit) return `${item.visit.node} (${item.visit.step})`;
  const node = nodeOf(item);
  const told = [`score ${number(node.score)}`, `depth ${node.depth}`];
  if (node.terminal) told.push("finished");
  if (node.fate) told.push(node.fate === 1 ? "best path" : FATES[node.fate]);
  return `${shortened(oneLine(node.text), 160) || wordless(node)}\n${told.join(" · ")}`;
}
