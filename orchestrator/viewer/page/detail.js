// The details of a step or a call: what the model was sent, what it said, what came of it.
function drawDetail({ onlyIfNew = false } = {}) {
  const box = $("detail");
  const item = page.selected,
    call = page.selectedCall;
  const node = item && nodeOf(item);
  const state = JSON.stringify(
    call
      ? [call.wasted, call.nodes.length, call.scores.length]
      : node
        ? [node.score, node.fate, node.scorers.length, item.children.length]
        : [page.runs[0].run.name, page.runs[0].end, item && item.visit],
  );
  if (onlyIfNew && state === page.detailed) return; // what is being read stays as it is
  page.detailed = state;
  if (call) box.replaceChildren(...callDetail(call));
  else if (!item) box.replaceChildren(...nothingChosen());
  else if (item.visit) box.replaceChildren(...visitDetail(item.visit));
  else box.replaceChildren(...stepDetail(item));
}

const facts = (rows) =>
  h(
    "dl",
    { class: "facts" },
    rows
      .filter(([, value]) => value !== null && value !== "")
      .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );

function nothingChosen() {
  const run = page.runs[0];
  const rows = Object.entries(settingsOf(run))
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]);
  const told = [
    h("h2", {}, "Run"),
    facts([["name", run.run.name || "–"], ["seed", String(run.run.seed ?? "–")], ...rows]),
  ];
  if (run.end && run.end.diagnostics) {
    const scalars = Object.entries(run.end.diagnostics).filter(
      ([name, value]) => name !== "path" && (typeof value !== "object" || value === null),
    );
    told.push(
      h("h3", {}, "What the search says of itself"),
      facts(
        scalars.map(([name, value]) => [
          name.replaceAll("_", " "),
          typeof value === "number" && !Number.isInteger(value) ? number(value, 3) : String(value),
        ]),
      ),
    );
  }
  const notes = run.notes.filter((note) => Object.keys(note.data || {}).length);
  if (notes.length)
    told.push(
      h(
        "details",
        {},
        h("summary", {}, `${notes.length} notes of the strategy's own`),
        notes
          .slice(0, 200)
          .map((note) => block(`${note.kind} · ${seconds(note.t)}`, JSON.stringify(note.data, null, 1))),
      ),
    );
  return told;
}

function visitDetail(visit) {
  const told = [
    h("h2", {}, visit.node, h("span", { class: "tag" }, visit.step)),
    facts([
      ["visit", String(visit.visit + 1)],
      ["began", seconds(visit.t)],
      ["took", visit.end === undefined ? "still running" : seconds(visit.end - visit.t)],
    ]),
  ];
  if (visit.update)
    told.push(
      h("h3", {}, "What it changed"),
      ...Object.entries(visit.update).map(([name, value]) =>
        block(name, typeof value === "string" ? value : JSON.stringify(value, null, 1)),
      ),
    );
  return told;
}

function stepDetail(item) {
  const node = nodeOf(item);
  const tags = [];
  if (node.terminal) tags.push(h("span", { class: "tag" }, "finished"));
  if (node.fate)
    tags.push(h("span", { class: `tag ${FATES[node.fate]}` }, node.fate === 1 ? "best path" : FATES[node.fate]));
  if (side(item))
    tags.push(
      h(
        "span",
        { class: `tag ${side(item)}` },
        { both: "in both runs", "only-a": "only in A", "only-b": "only in B" }[side(item)],
      ),
    );
  const tokens = node.call && node.call.samples ? node.call.samples[node.sample].n_tokens : null;
  const told = [
    h("h2", {}, `Step ${node.i + 1}`, tags),
    facts([
      ...(item.a && item.b
        ? [
            ["score in A", number(item.a.score)],
            ["score in B", number(item.b.score)],
          ]
        : [["score", number(node.score)]]),
      ["depth", String(node.depth)],
      ["log-prob", node.logp === null ? null : number(node.logp, 2)],
      ["tokens", tokens ? whole(tokens) : null],
      ["drawn after", seconds(node.t)],
      ["children", String(item.children.length)],
    ]),
    h("h3", {}, "Text"),
    h("div", { class: "block mine" }, h("pre", {}, node.text.replace(/\n+$/, "") || wordless(node))),
  ];
  const path = [...pathTo(node)];
  if (path.length > 1) {
    told.push(h("h3", {}, "Path", h("small", {}, counted("step", path.length))));
    const steps = path.map((step) =>
      h(
        "div",
        { class: "path-step", "aria-current": step === node ? "step" : null, onclick: () => select(step.item) },
        h("pre", {}, step.text.replace(/\n+$/, "") || wordless(step)),
      ),
    );
    if (path.length > 12)
      told.push(
        h("details", {}, h("summary", {}, `${path.length - 8} earlier steps`), steps.slice(0, -8)),
        ...steps.slice(-8),
      );
    else told.push(...steps);
  }
  if (node.call) told.push(...callParts(node.call, node.sample));
  if (node.scorers.length) {
    told.push(h("h3", {}, "Scored by", h("small", {}, counted("call", node.scorers.length))));
    for (const call of node.scorers.slice(0, 16))
      told.push(
        h(
          "details",
          {},
          h("summary", {}, `${call.kind} · ${call.role}${call.failed ? " · failed" : ""} · ${valueOf(call)}`),
          callParts(call, -1),
        ),
      );
  }
  return told;
}

function valueOf(call) {
  const value = call.value;
  if (typeof value === "number") return number(value, 3);
  if (value && Array.isArray(value.logprobs))
    return `log p ${number(
      value.logprobs.reduce((p, q) => p + q, 0),
      2,
    )}`;
  return call.samples ? shortened(oneLine(call.samples[0].text), 40) : "";
}

function callDetail(call) {
  const tags = [];
  if (call.failed) tags.push(h("span", { class: "tag failed" }, "failed"));
  if (call.wasted) tags.push(h("span", { class: "tag speculative" }, "speculative"));
  if (call.again) tags.push(h("span", { class: "tag" }, "replayed"));
  const told = [
    h("h2", {}, call.kind, call.role ? h("span", { class: "tag" }, call.role) : null, tags),
    ...callParts(call, -1),
  ];
  const links = [...call.nodes.map((node) => ["drew", node]), ...call.scores.map((i) => ["scored", call.run.nodes[i]])];
  if (links.length)
    told.push(
      h("h3", {}, "Steps"),
      h(
        "ul",
        { class: "plain-list" },
        links
          .slice(0, 64)
          .map(([did, node]) =>
            h(
              "li",
              {},
              h(
                "button",
                { type: "button", class: "link", onclick: () => openStep(node) },
                `${did} ${shortened(oneLine(node.text), 70) || wordless(node)}`,
              ),
            ),
          ),
      ),
    );
  return told;
}

function openStep(node) {
  showTab("tree");
  select(node.item);
  tree.box.focus({ preventScroll: true });
}

// What all views of a call share: timing, what was sent, what came back.
function callParts(call, sample) {
  const spent = call.spent;
  const rows = [
    ["began", seconds(call.t)],
    ["took", seconds(call.s)],
    ["tokens in", spent[SPENT.input] ? whole(spent[SPENT.input]) : null],
    ["from cache", spent[SPENT.cached] ? whole(spent[SPENT.cached]) : null],
    ["tokens out", spent[SPENT.output] ? whole(spent[SPENT.output]) : null],
    ["US dollars", spent[SPENT.cost] ? number(spent[SPENT.cost], 5) : null],
    ["tries", call.tries > 1 ? String(call.tries) : null],
  ];
  const told = [];
  if (sample >= 0) told.push(h("h3", {}, "Drawn by", h("small", {}, `${call.role} · path ${call.path}`)));
  told.push(facts(rows));
  if (call.kind === "CallTool")
    told.push(h("h3", {}, `Tool: ${call.asked.name}`), block("arguments", argumentsOf(call)));
  else if (call.messages >= 0 || call.head > 0 || call.node >= 0 || call.asked.continuation)
    told.push(h("h3", {}, "Prompt"), ...promptBlocks(call));
  else if (call.kind !== "Generate" || !call.samples)
    told.push(h("h3", {}, "Asked"), block("", JSON.stringify(call.asked, null, 1)));
  told.push(...replyBlocks(call, sample));
  const rest = Object.entries(call.asked).filter(([name]) => !["name", "arguments", "continuation"].includes(name));
  if (call.samples && rest.length)
    told.push(
      h(
        "details",
        {},
        h("summary", {}, "Sampling and other fields"),
        block("", JSON.stringify(Object.fromEntries(rest), null, 1)),
      ),
    );
  return told;
}

function argumentsOf(call) {
  const given = call.asked.arguments || {};
  const names = Object.keys(given);
  return names.length === 1 && typeof given[names[0]] === "string" ? given[names[0]] : JSON.stringify(given, null, 1);
}

function promptBlocks(call) {
  const blocks = [];
  if (call.messages >= 0)
    for (const message of JSON.parse(call.run.texts[call.messages])) {
      const calls = (message.tool_calls || []).map((each) => `${each.name}(${each.arguments})`).join("\n");
      blocks.push(block(message.role, [message.content, calls].filter(Boolean).join("\n")));
    }
  const written = call.node >= 0 ? [...pathTo(call.run.nodes[call.node])].map((node) => node.text).join("") : "";
  const prefix = call.run.texts[call.head] + written;
  if (prefix) blocks.push(block(call.messages >= 0 ? "the turn so far" : "text", prefix));
  if (call.asked.continuation) blocks.push(block("continuation", call.asked.continuation));
  return blocks.map((each, k) =>
    k < blocks.length - 3 && blocks.length > 4
      ? h("details", {}, h("summary", {}, each.querySelector(".who").textContent), each)
      : each,
  );
}

function replyBlocks(call, sample) {
  if (call.failed) return [h("h3", {}, "Failed"), block(call.failed.kind, call.failed.message)];
  if (!call.samples) {
    const value = call.value;
    if (value === null || value === undefined) return [];
    if (call.kind === "CallTool")
      return [h("h3", {}, "Result"), block(value.ok === false ? "an error" : "", value.text ?? JSON.stringify(value))];
    return [
      h("h3", {}, "Reply"),
      block("", typeof value === "object" ? JSON.stringify(value, null, 1) : String(value)),
    ];
  }
  const shown = sample >= 0 ? [call.samples[sample]] : call.samples.slice(0, 8);
  const rest = call.samples.filter((each) => !shown.includes(each));
  const told = [
    h(
      "h3",
      {},
      shown.length > 1 ? "Completions" : "Completion",
      h("small", {}, call.samples.length > 1 && sample >= 0 ? `number ${sample + 1} of ${call.samples.length}` : ""),
    ),
    ...shown.map((each) => completion(each, sample >= 0)),
  ];
  if (rest.length)
    told.push(
      h(
        "details",
        {},
        h("summary", {}, `${rest.length} more`),
        rest.slice(0, 64).map((each) => completion(each, false)),
      ),
    );
  return told;
}

function completion(sample, mine) {
  const told = [
    sample.used === false ? "not kept" : "",
    sample.finish === "length" ? "cut at its length limit" : "",
    sample.n_tokens ? counted("token", sample.n_tokens) : "",
  ]
    .filter(Boolean)
    .join(" · ");
  const box = h(
    "div",
    { class: mine ? "block mine" : "block" },
    h("div", { class: "who" }, h("span", {}, "assistant"), h("span", {}, told)),
    h("pre", {}, sample.text || h("span", { class: "ended" }, "(ended its turn)")),
  );
  if (sample.logprobs && sample.logprobs.length) box.append(probabilities(sample.logprobs));
  return box;
}

// One bar for each token, as high as its probability.
function probabilities(logprobs) {
  const total = logprobs.reduce((p, q) => p + (q ?? 0), 0);
  const bars = logprobs.map((p) => {
    const bar = h("i");
    bar.style.height = `${Math.max(4, Math.exp(p ?? -9) * 100)}%`;
    return bar;
  });
  const told = `log-probs of ${logprobs.length} tokens, sum ${number(total, 2)}, least ${number(Math.min(...logprobs.map((p) => p ?? 0)), 2)}`;
  return h("div", { class: "probs", role: "img", "aria-label": told, title: told }, bars);
}

const block = (who, text) =>
  h("div", { class: "block" }, who ? h("div", { class: "who" }, who) : null, h("pre", {}, text));
