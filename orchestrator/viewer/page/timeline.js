// The timeline: each call a bar, calls that overlap in lanes; below it how many were in flight.
const GROUPS = [
  [
    "draws",
    "accent",
    (call) => call.kind === "Generate" && !call.scores.length && call.role !== "reward" && call.role !== "judge",
  ],
  [
    "scores",
    "mid",
    (call) =>
      call.scores.length > 0 ||
      ["Rate", "LogProb", "Hidden"].includes(call.kind) ||
      call.role === "reward" ||
      call.role === "judge",
  ],
  ["tools", "best", (call) => call.kind === "CallTool"],
  ["memory and human", "only-a", () => true],
];
const groupOf = (call) => GROUPS.find(([, , fits]) => fits(call));
const timeline = { view: null, from: 0, to: 1, end: 0, scroll: 0, bars: [], moved: false };

function lanesOf(run) {
  const ends = [];
  const laid = [...run.calls]
    .sort((p, q) => p.t - q.t)
    .map((call) => {
      let lane = ends.findIndex((end) => end <= call.t);
      if (lane < 0) lane = ends.length;
      ends[lane] = call.t + call.s;
      return { call, lane };
    });
  return { laid, lanes: Math.max(1, ends.length) };
}

function layTimeline() {
  timeline.laid = page.runs.map(lanesOf);
  const fitted = timeline.to >= timeline.end; // else somebody looks at a part of it
  timeline.end = Math.max(1e-6, ...page.runs.map((run) => run.t));
  if (fitted) fitTimeline();
  else drawTimeline();
}

function fitTimeline() {
  Object.assign(timeline, { from: 0, to: timeline.end * 1.01, scroll: 0 });
  drawTimeline();
}
const drawTimeline = () => timeline.view && timeline.view.redraw();

const LEFT = 24,
  TOP = 30,
  FOOT = 84;

function paintTimeline({ context: c, width, height }) {
  const x = (t) => LEFT + ((t - timeline.from) / (timeline.to - timeline.from)) * (width - 2 * LEFT);
  timeline.x = x;
  timeline.bars = [];
  paintAxis(c, width, height, x);
  const total = timeline.laid.reduce((sum, { lanes }) => sum + lanes, 0);
  const bands = page.runs.reduce((sum, run) => sum + (run.visits.length ? 22 : 0), 0) + (page.runs.length - 1) * 30;
  const lane = Math.min(26, Math.max(4, (height - TOP - FOOT - bands - 12) / total));
  timeline.tall = total * lane + bands;
  const foot = Math.min(height - FOOT, TOP + timeline.tall + 40);
  c.save();
  c.beginPath();
  c.rect(0, TOP, width, foot - TOP);
  c.clip();
  let top = TOP + 8 - timeline.scroll;
  page.runs.forEach((run, k) => {
    if (page.runs.length > 1) top = paintName(c, "AB"[k], top);
    if (run.visits.length) top = paintVisits(c, run, x, top);
    for (const { call, lane: n } of timeline.laid[k].laid) {
      const left = x(call.t),
        right = x(call.t + call.s),
        y = top + n * lane;
      if (right < 0 || left > width || y > height || y < -lane) continue;
      const bar = {
        call,
        x: left,
        y,
        w: Math.max(1.5, right - left - 0.5),
        h: Math.max(2.5, lane - 2),
        lane: n,
        run: k,
      };
      timeline.bars.push(bar);
      paintBar(c, bar);
    }
    for (const stop of run.stops) paintStop(c, x(stop.t), foot);
    top += timeline.laid[k].lanes * lane;
  });
  c.restore();
  paintFlight(c, width, foot, height, x);
}

function paintBar(c, { call, x, y, w, h: tall }) {
  const colour = colours[groupOf(call)[1]];
  c.fillStyle = colour;
  c.globalAlpha = call.failed ? 0.15 : call.wasted ? 0.28 : call.again ? 0.55 : 0.88;
  c.beginPath();
  if (w < 4) c.fillRect(x, y, w, tall);
  else {
    c.roundRect(x, y, w, tall, Math.min(3, tall / 3, w / 2));
    c.fill();
  }
  c.globalAlpha = 1;
  if (w >= 4 && (call.failed || call.wasted)) {
    c.strokeStyle = call.failed ? colours.bad : colour;
    c.lineWidth = 1;
    if (call.wasted && !call.failed) c.setLineDash([3, 2]);
    c.stroke();
    c.setLineDash([]);
  }
  if (call === page.selectedCall) {
    c.strokeStyle = colours.ink;
    c.lineWidth = 2;
    c.strokeRect(x - 2, y - 2, w + 4, tall + 4);
  }
}

function paintName(c, name, top) {
  c.fillStyle = name === "A" ? colours["only-a"] : colours["only-b"];
  c.font = `600 13px ${colours.sans}`;
  c.fillText(`Run ${name}`, LEFT, top + 14);
  return top + 24;
}

function paintVisits(c, run, x, top) {
  c.font = `12px ${colours.sans}`;
  run.visits.forEach((visit) => {
    const left = x(visit.t),
      right = x(visit.end === undefined ? run.t : visit.end);
    c.fillStyle = colours.wash;
    c.fillRect(left, top, Math.max(1, right - left - 1), 17);
    c.save();
    c.beginPath();
    c.rect(left, top, right - left - 4, 17);
    c.clip();
    c.fillStyle = colours.soft;
    c.fillText(visit.node, Math.max(left, 0) + 6, top + 12.5);
    c.restore();
  });
  return top + 22;
}

function paintStop(c, x, foot) {
  c.strokeStyle = colours.bad;
  c.lineWidth = 1.2;
  c.setLineDash([4, 3]);
  c.beginPath();
  c.moveTo(x, TOP);
  c.lineTo(x, foot);
  c.stroke();
  c.setLineDash([]);
}

function niceStep(range, n) {
  const rough = range / n,
    power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((m) => rough <= m * power * 1.0001);
}

function paintAxis(c, width, height, x) {
  const step = niceStep(timeline.to - timeline.from, Math.max(2, width / 120));
  c.font = `11.5px ${colours.sans}`;
  c.textAlign = "center";
  for (let t = Math.ceil(timeline.from / step) * step; t <= timeline.to; t += step) {
    c.strokeStyle = colours.line;
    c.lineWidth = 1;
    c.beginPath();
    c.moveTo(Math.round(x(t)) + 0.5, TOP - 6);
    c.lineTo(Math.round(x(t)) + 0.5, height - 14);
    c.stroke();
    c.fillStyle = colours.quiet;
    c.fillText(seconds(Math.abs(t) < step / 1e6 ? 0 : t), x(t), TOP - 12);
  }
  c.textAlign = "left";
}

// How many calls were in flight, as a stepped area.
function paintFlight(c, width, foot, height, x) {
  const tall = Math.min(140, height - foot - 34),
    base = foot + 18 + tall;
  const flights = page.runs.map((run) => {
    const edges = run.calls
      .flatMap((call) => [
        [call.t, 1],
        [call.t + call.s, -1],
      ])
      .sort((p, q) => p[0] - q[0] || p[1] - q[1]);
    let n = 0;
    return edges.map(([t, by]) => [t, (n += by)]);
  });
  const most = Math.max(1, ...flights.flatMap((points) => points.map(([, n]) => n)));
  flights.forEach((points, k) => {
    c.beginPath();
    c.moveTo(LEFT, base);
    let column = LEFT,
      highest = 0,
      now = 0;
    for (const [t, n] of [...points, [Infinity, 0]]) {
      const px = Math.round(Math.max(LEFT, Math.min(width - LEFT, x(t))));
      if (px > column) {
        c.lineTo(column, base - (highest / most) * tall); // of what falls into one pixel, the most
        c.lineTo(column, base - (now / most) * tall);
        c.lineTo(px, base - (now / most) * tall);
        column = px;
        highest = 0;
      }
      now = n;
      highest = Math.max(highest, n);
    }
    c.lineTo(width - LEFT, base);
    c.globalAlpha = 0.22;
    c.fillStyle = page.runs.length > 1 ? colours[["only-a", "only-b"][k]] : colours.accent;
    c.fill();
    c.globalAlpha = 1;
  });
  c.fillStyle = colours.quiet;
  c.font = `11.5px ${colours.sans}`;
  c.fillText(`calls in flight, at most ${most}`, LEFT, foot + 10);
}

function zoomTimeline(by, at = (timeline.from + timeline.to) / 2) {
  const range = Math.min(timeline.end * 1.01, Math.max(timeline.end / 1e5, (timeline.to - timeline.from) * by));
  const share = (at - timeline.from) / (timeline.to - timeline.from);
  timeline.from = Math.max(0, Math.min(timeline.end * 1.01 - range, at - share * range));
  timeline.to = timeline.from + range;
  drawTimeline();
}

function barAt(event) {
  const box = timeline.view.canvas.getBoundingClientRect();
  const px = event.clientX - box.left,
    py = event.clientY - box.top;
  return timeline.bars.findLast(
    ({ x, y, w, h: tall }) => px >= x - 2 && px <= x + w + 2 && py >= y - 1 && py <= y + tall + 1,
  );
}

function callTip(call) {
  const told = [
    `${call.kind}${call.role ? ` · ${call.role}` : ""}`,
    `${seconds(call.t)} → ${seconds(call.t + call.s)} (${seconds(call.s)})`,
  ];
  if (call.spent[SPENT.calls])
    told.push(`${whole(call.spent[SPENT.input])} tokens in, ${whole(call.spent[SPENT.output])} out`);
  if (call.failed) told.push(`failed: ${shortened(oneLine(call.failed.message), 120)}`);
  if (call.wasted) told.push("speculative: nothing of it was kept");
  if (call.again) told.push("replayed from the journal");
  return told.join("\n");
}

function showCall(call) {
  selectCall(call);
  const { from, to } = timeline;
  if (call.t < from || call.t > to) {
    const range = to - from;
    timeline.from = Math.max(0, call.t - range / 2);
    timeline.to = timeline.from + range;
  }
  say(callTip(call).replaceAll("\n", ", "));
  drawTimeline();
}

function stepCall(by, lanes) {
  const here = page.selectedCall;
  const laid = timeline.laid.flatMap((each) => each.laid);
  if (!laid.length) return;
  const at = laid.findIndex(({ call }) => call === here);
  if (at < 0) return showCall(laid[0].call);
  if (!lanes) return showCall(laid[Math.min(laid.length - 1, Math.max(0, at + by))].call);
  const { lane, call } = laid[at];
  const others = laid.filter((each) => each.call.run === call.run && Math.sign(each.lane - lane) === by);
  if (!others.length) return undefined;
  const near = by > 0 ? Math.min(...others.map((each) => each.lane)) : Math.max(...others.map((each) => each.lane));
  const apart = (each) => Math.abs(each.call.t - call.t);
  return showCall(others.filter((each) => each.lane === near).reduce((p, q) => (apart(q) < apart(p) ? q : p)).call);
}

const TIMELINE_KEYS = {
  ArrowRight: () => stepCall(1),
  ArrowLeft: () => stepCall(-1),
  ArrowDown: () => stepCall(1, true),
  ArrowUp: () => stepCall(-1, true),
  "+": () => zoomTimeline(0.6),
  "=": () => zoomTimeline(0.6),
  "-": () => zoomTimeline(1 / 0.6),
  0: fitTimeline,
  Enter: () => page.selectedCall && $("detail").focus(),
};

function startTimeline() {
  const box = $("timeline");
  timeline.view = canvasIn(box, paintTimeline);
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !TIMELINE_KEYS[event.key]) return;
    event.preventDefault();
    TIMELINE_KEYS[event.key]();
  });
  let drag = null;
  const time = (event) =>
    timeline.from +
    ((event.clientX - box.getBoundingClientRect().left - LEFT) / (timeline.view.width - 2 * LEFT)) *
      (timeline.to - timeline.from);
  box.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      if (event.ctrlKey || !event.shiftKey) zoomTimeline(Math.exp(event.deltaY / 400), time(event));
    },
    { passive: false },
  );
  box.addEventListener("pointerdown", (event) => {
    drag = { t: time(event), y: event.clientY + timeline.scroll, x0: event.clientX, y0: event.clientY };
    timeline.moved = false;
    timeline.view.canvas.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", (event) => {
    if (drag && event.buttons) {
      timeline.moved = timeline.moved || Math.hypot(event.clientX - drag.x0, event.clientY - drag.y0) > 4;
      if (!timeline.moved) return;
      const range = timeline.to - timeline.from;
      timeline.from = Math.max(0, Math.min(timeline.end * 1.01 - range, timeline.from + drag.t - time(event)));
      timeline.to = timeline.from + range;
      const room = timeline.view.height - TOP - FOOT - 16;
      timeline.scroll = Math.max(0, Math.min(timeline.tall - room, drag.y - event.clientY));
      tip("");
      drawTimeline();
      return;
    }
    const bar = barAt(event);
    tip(bar ? callTip(bar.call) : "", event.clientX, event.clientY);
  });
  box.addEventListener("pointerup", (event) => {
    const bar = timeline.moved ? null : barAt(event);
    drag = null;
    if (bar) showCall(bar.call);
  });
  box.addEventListener("pointerleave", () => tip(""));
  box.addEventListener("dblclick", fitTimeline);
}
