// Curves: what was spent, what was found, and how well the particles held out.
const SVG = "http://www.w3.org/2000/svg";
const curves = { axis: "time", stale: true };
const AXES = { time: ["time", seconds], tokens: ["tokens", whole], calls: ["calls", whole] };
const xOf = (run, t) => (curves.axis === "time" ? t : spentAt(run, t, curves.axis));

function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const LIMITED = {
  tokens: "tokens",
  output_tokens: "output tokens",
  calls: "calls",
  tool_calls: "tool calls",
  cost_usd: "US dollars",
  joules: "joules",
  seconds: "seconds",
};

function spentBy(run, name) {
  if (name === "seconds")
    return [
      [0, 0],
      [xOf(run, run.t), run.t],
    ];
  return [[0, 0], ...sums(run).map((row) => [xOf(run, row.t), row[name]])];
}

function rewardsOf(run) {
  const scored = run.nodes
    .filter((node) => node.score !== null && node.scored !== null)
    .sort((p, q) => p.scored - q.scored);
  const dots = scored.map((node) => [xOf(run, node.scored), node.score]);
  const best = (nodes) => {
    let top = -Infinity;
    const line = [];
    for (const node of nodes) {
      if (node.score <= top) continue;
      const x = xOf(run, node.scored);
      if (line.length && line[line.length - 1][0] === x) line.pop(); // of those scored at once, the best
      line.push([x, (top = node.score)]);
    }
    if (line.length) line.push([xOf(run, run.t), top]);
    return line;
  };
  return { dots, all: best(scored), finished: best(scored.filter((node) => node.terminal)) };
}

function countedUp(run, keep) {
  let n = 0;
  const nodes = run.nodes
    .filter(keep)
    .map((node) => node.t)
    .sort((p, q) => p - q);
  return [[0, 0], ...nodes.map((t) => [xOf(run, t), (n += 1)]), [xOf(run, run.t), n]];
}

function populations(run, name) {
  const groups = new Map();
  for (const point of run.resamplings) {
    const key = `${point.visit}.${point.population}`;
    if (!groups.has(key)) groups.set(key, []);
    if (point[name] !== null && point[name] !== undefined) groups.get(key).push([xOf(run, point.t), point[name]]);
  }
  return [...groups.values()];
}

const runColour = (k, plain = colours.accent) => (page.runs.length > 1 ? colours[["only-a", "only-b"][k]] : plain);
const ofRuns = (make) => page.runs.flatMap((run, k) => make(run, k));

function drawCurves() {
  if (!curves.stale || $("view-curves").hidden) return;
  curves.stale = false;
  const box = $("charts");
  const charts = [];
  const limit = page.runs[0].run.limits || {};
  charts.push(
    chart({
      title: "Tokens",
      note: "prompt tokens not found in the cache, and output tokens",
      format: whole,
      step: true,
      limit: limit.tokens,
      lines: ofRuns((run, k) => [
        { name: "all", points: spentBy(run, "tokens"), colour: runColour(k) },
        { name: "output", points: spentBy(run, "output_tokens"), colour: runColour(k, colours.mid), thin: true },
      ]),
    }),
  );
  const names = Object.keys(limit).filter((name) => LIMITED[name] && limit[name] > 0);
  if (names.length) {
    const palette = [colours.accent, colours.best, colours.mid, colours["only-a"], colours["only-b"]];
    charts.push(
      chart({
        title: "Budget",
        note: `share used of ${names.map((name) => `${whole(limit[name])} ${LIMITED[name]}`).join(", ")}`,
        format: (x) => `${Math.round(x * 100)} %`,
        step: true,
        limit: 1,
        from: 0,
        lines: ofRuns((run, k) =>
          names.map((name, n) => ({
            name: LIMITED[name],
            points: spentBy(run, name).map(([x, y]) => [x, y / limit[name]]),
            colour: page.runs.length > 1 ? runColour(k) : palette[n % palette.length],
          })),
        ),
      }),
    );
  }
  const rewards = page.runs.map(rewardsOf);
  if (rewards.some(({ dots }) => dots.length)) {
    charts.push(
      chart({
        title: "Rewards",
        note: "each score, the best so far (thin) and the best finished",
        format: number,
        step: true,
        from: 0,
        to: 1,
        dots: rewards.map(({ dots }, k) => ({ points: dots, colour: runColour(k, colours.mid) })),
        lines: rewards.flatMap(({ all, finished }, k) => [
          { name: "best so far", points: all, colour: runColour(k, colours.high), thin: true },
          { name: "best finished", points: finished, colour: runColour(k, colours.best) },
        ]),
      }),
    );
  }
  charts.push(
    chart({
      title: "Steps",
      note: "drawn, and finished solutions (thin)",
      format: whole,
      step: true,
      from: 0,
      lines: ofRuns((run, k) => [
        { name: "drawn", points: countedUp(run, () => true), colour: runColour(k) },
        {
          name: "finished",
          points: countedUp(run, (node) => node.terminal),
          colour: runColour(k, colours.best),
          thin: true,
        },
      ]),
    }),
  );
  if (page.runs.some((run) => run.resamplings.length)) {
    const most = Math.max(...ofRuns((run) => run.resamplings.map((point) => point.n)));
    charts.push(
      chart({
        title: "Effective sample size",
        note: `before each resampling, of ${whole(most)} particles`,
        format: (x) => number(x, most < 100 ? 1 : 0),
        from: 0,
        limit: most,
        marks: true,
        lines: ofRuns((run, k) =>
          populations(run, "ess").map((points, n) => ({ name: `population ${n + 1}`, points, colour: runColour(k) })),
        ),
      }),
    );
    charts.push(
      chart({
        title: "Log evidence",
        note: "log Ẑ after each resampling",
        format: (x) => number(x, 2),
        marks: true,
        lines: ofRuns((run, k) =>
          populations(run, "log_evidence").map((points, n) => ({
            name: `population ${n + 1}`,
            points,
            colour: runColour(k, colours.best),
          })),
        ),
      }),
    );
  }
  box.replaceChildren(...charts);
}

const CHART = { width: 460, height: 200, left: 48, right: 12, top: 12, bottom: 26 };

function chart({
  title,
  note,
  format,
  lines,
  dots = [],
  step = false,
  marks = false,
  limit = null,
  from = null,
  to = null,
}) {
  const all = [...lines, ...dots].flatMap(({ points }) => points);
  const far = all.reduce((most, [x]) => Math.max(most, x), 0) || 1;
  let low = from,
    high = to;
  for (const [, y] of all) {
    if (from === null) low = low === null ? y : Math.min(low, y);
    if (to === null) high = high === null ? y : Math.max(high, y);
  }
  low = low === null ? 0 : low;
  high = high === null ? 1 : high;
  if (limit && limit <= high * 4) high = Math.max(high, limit);
  if (step && from === null) low = Math.min(0, low);
  if (low === high) {
    low -= 0.5;
    high += 0.5;
  }
  const { width, height, left, right, top, bottom } = CHART;
  const x = (v) => left + (v / far) * (width - left - right);
  const y = (v) => height - bottom - ((v - low) / (high - low)) * (height - top - bottom);
  const root = svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": summed(title, lines, format),
  });
  for (const v of ticks(low, high, 4)) {
    root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }));
    root.append(svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, format(v)));
  }
  for (const v of ticks(0, far, 4))
    root.append(
      svg("text", { x: x(v), y: height - 6, "text-anchor": v === 0 ? "start" : "middle" }, AXES[curves.axis][1](v)),
    );
  if (limit && limit <= high)
    root.append(svg("line", { class: "limit", x1: left, x2: width - right, y1: y(limit), y2: y(limit) }));
  for (const { points, colour } of dots)
    root.append(
      svg("path", {
        class: "points",
        stroke: colour,
        d: points.map(([px, py]) => `M${x(px).toFixed(1)} ${y(py).toFixed(1)}h0`).join(""),
      }),
    );
  for (const { points, colour, thin } of lines) {
    const d = points
      .map(([px, py], i) =>
        i === 0
          ? `M${x(px).toFixed(1)} ${y(py).toFixed(1)}`
          : step
            ? `H${x(px).toFixed(1)}V${y(py).toFixed(1)}`
            : `L${x(px).toFixed(1)} ${y(py).toFixed(1)}`,
      )
      .join("");
    root.append(svg("path", { class: thin ? "line thin" : "line", stroke: colour, d }));
    if (marks)
      root.append(
        svg("path", {
          class: "points",
          stroke: colour,
          d: points.map(([px, py]) => `M${x(px).toFixed(1)} ${y(py).toFixed(1)}h0`).join(""),
        }),
      );
  }
  const cross = svg("line", { class: "cross", y1: top, y2: height - bottom });
  root.append(cross);
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const v = ((((event.clientX - box.left) / box.width) * width - left) / (width - left - right)) * far;
    cross.classList.toggle("on", v >= 0 && v <= far);
    if (v < 0 || v > far) return tip("");
    cross.setAttribute("x1", x(v));
    cross.setAttribute("x2", x(v));
    const told = lines
      .filter(({ points }) => points.length && points[0][0] <= v)
      .slice(0, 12)
      .map(({ name, points }) => `${name}: ${format(points.findLast(([px]) => px <= v)[1])}`);
    return tip(
      [`${AXES[curves.axis][1](v)}${curves.axis === "time" ? "" : ` ${curves.axis}`}`, ...told].join("\n"),
      event.clientX,
      event.clientY,
    );
  });
  root.addEventListener("pointerleave", () => {
    cross.classList.remove("on");
    tip("");
  });
  return h("div", { class: "chart" }, h("h3", {}, title), h("p", {}, note), root);
}

const summed = (title, lines, format) =>
  `${title}. ${lines
    .filter(({ points }) => points.length)
    .slice(0, 6)
    .map(({ name, points }) => `${name}: at the end ${format(points[points.length - 1][1])}`)
    .join("; ")}`;

function ticks(low, high, n) {
  const step = niceStep(high - low, n);
  const found = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step)
    found.push(Math.abs(v) < step * 1e-6 ? 0 : v);
  return found;
}

function startCurves() {
  const box = $("axis");
  const choose = (axis, focus) => {
    curves.axis = axis;
    curves.stale = true;
    for (const button of box.querySelectorAll("button")) {
      const mine = button.dataset.axis === axis;
      button.setAttribute("aria-checked", mine);
      button.tabIndex = mine ? 0 : -1;
      if (mine && focus) button.focus();
    }
    drawCurves();
  };
  box.append(
    "against",
    ...Object.keys(AXES).map((axis) =>
      h("button", { type: "button", role: "radio", "data-axis": axis, onclick: () => choose(axis, true) }, axis),
    ),
  );
  box.addEventListener("keydown", (event) => {
    const names = Object.keys(AXES),
      by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(names[(names.indexOf(curves.axis) + by + names.length) % names.length], true);
  });
  choose("time", false);
}
