// Two runs beside each other: their figures, their settings, and where their trees part.
function drawCompare() {
  const [a, b] = page.runs;
  if (!b) return;
  const counts = { both: 0, "only-a": 0, "only-b": 0 };
  for (const item of page.items) if (!item.visit) counts[side(item)] += 1;
  const figures = [
    ["answer", answerOf],
    ["complete", (run) => (run.end ? (run.end.complete ? "yes" : "no") : "not finished")],
    ["stopped by", (run) => (run.end && run.end.diagnostics.stopped) || "–"],
    ["steps", (run) => whole(run.nodes.length)],
    ["finished solutions", (run) => whole(run.nodes.filter((node) => node.terminal).length)],
    ["best finished score", (run) => number(topScore(run))],
    ["calls", (run) => whole(run.calls.length)],
    ["tokens", (run) => whole(spentAt(run, Infinity, "tokens"))],
    ["output tokens", (run) => whole(spentAt(run, Infinity, "output_tokens"))],
    ["time", (run) => seconds(run.t)],
    ["speculative calls", (run) => whole(run.calls.filter((call) => call.wasted).length)],
  ];
  const shown = (value) => (value === undefined ? "–" : typeof value === "string" ? value : JSON.stringify(value));
  const names = [...new Set([...Object.keys(settingsOf(a)), ...Object.keys(settingsOf(b))])].filter(
    (name) => name !== "recipe" && name !== "seed",
  );
  const settings = [
    ["seed", (run) => shown(run.run.seed)],
    ...names.map((name) => [name, (run) => shown(settingsOf(run)[name])]),
  ];
  const part = partingStep();
  $("view-compare").replaceChildren(
    h(
      "div",
      { class: "compare" },
      h("h2", {}, "What both drew"),
      h(
        "div",
        {
          class: "stacked",
          role: "img",
          "aria-label": `${counts.both} steps in both, ${counts["only-a"]} only in A, ${counts["only-b"]} only in B`,
        },
        Object.entries(counts)
          .filter(([, n]) => n)
          .map(([name, n]) => {
            const bar = h("i", { class: name });
            bar.style.flex = String(n);
            return bar;
          }),
      ),
      h(
        "p",
        { class: "quiet" },
        `${whole(counts.both)} steps in both · `,
        h("span", { class: "only-a" }, `${whole(counts["only-a"])} only in A`),
        " · ",
        h("span", { class: "only-b" }, `${whole(counts["only-b"])} only in B`),
      ),
      h(
        "p",
        { class: "quiet" },
        part
          ? [
              "The best paths part at ",
              h(
                "button",
                { type: "button", class: "link", onclick: () => openStep(part) },
                shortened(oneLine(part.text), 80) || wordless(part),
              ),
            ]
          : "The best paths say the same.",
      ),
      h("h2", {}, "Figures"),
      table(figures, a, b),
      h("h2", {}, "Settings"),
      table(settings, a, b),
    ),
  );
}

function table(rows, a, b) {
  const body = rows.map(([name, of]) => {
    const [left, right] = [of(a), of(b)];
    return h(
      "tr",
      { class: left === right ? null : "differs" },
      h("th", { scope: "row" }, name),
      h("td", {}, left),
      h("td", {}, right),
    );
  });
  const heading = (name, run) =>
    h("th", { scope: "col", class: name }, `${name === "only-a" ? "A" : "B"} · ${run.run.name || "run"}`);
  return h(
    "table",
    {},
    h("thead", {}, h("tr", {}, h("th", {}, ""), heading("only-a", a), heading("only-b", b))),
    h("tbody", {}, body),
  );
}

const answerOf = (run) => (run.end ? (run.end.answer === null ? "none" : String(run.end.answer)) : "not finished");
const topScore = (run) =>
  run.nodes.reduce(
    (top, node) => (node.terminal && node.score !== null && (top === null || node.score > top) ? node.score : top),
    null,
  );

// The first step of A's best path that B's has not, else the other way round.
function partingStep() {
  const paths = page.runs.map((run) =>
    run.nodes.filter((node) => node.fate === 1).sort((p, q) => p.visit - q.visit || p.depth - q.depth),
  );
  const at = paths[0].findIndex((node, i) => !paths[1][i] || paths[1][i].text !== node.text);
  return at >= 0 ? paths[0][at] : paths[1][paths[0].length] || null;
}
