// SPDX-License-Identifier: Apache-2.0
// Puts the data into the page. What a model wrote is only ever set as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const points = (share) => (100 * share).toFixed(1);
const number = (value) => value.toLocaleString("en-US");
const hasControl = "ablation" in data.accuracy && data.accuracy.ablation.length > 0;
const PAGE_OF_QUESTIONS = 40;

function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

function table(head, rows, target) {
  const line = (tag, cells) => element("tr", cells.control ? { class: "control" } : {}, ...cells.map((cell) => {
    const kind = cell && cell.kind ? { class: cell.kind } : {};
    return element(tag, kind, cell === null || cell === undefined ? "" : cell.kind ? cell.text : cell);
  }));
  target.append(element("table", {}, element("thead", {}, line("th", head)), element("tbody", {}, ...rows.map((row) => line("td", row)))));
}

function legend(target, entries) {
  for (const [name, hue, kind] of entries) {
    const svg = shape("svg", { width: 26, height: 12, "aria-hidden": "true" });
    if (kind === "box") svg.append(shape("rect", { x: 5, y: 0, width: 14, height: 12, rx: 2, fill: colour(hue) }));
    else {
      const style = { x1: 1, x2: 25, y1: 6, y2: 6, stroke: colour(hue), "stroke-width": 2.2 };
      if (kind === "dash") style["stroke-dasharray"] = "5 4";
      svg.append(shape("line", style));
      if (kind !== "thin") svg.append(shape("circle", { cx: 13, cy: 6, r: 3.5, fill: kind === "dash" ? colour("panel") : colour(hue), stroke: colour(hue), "stroke-width": 1.8 }));
    }
    target.append(element("span", {}, svg, name));
  }
}

const metricNames = () => ({ mean_at_k: `mean of ${data.headline.k} samples`, greedy: "greedy answer" });

function drawHead() {
  const { head, headline } = data;
  document.title = `R-Zero: ${head.model}, ${head.task}, seed ${head.seed}`;
  at("kicker").append(element("b", {}, "rzero"), `  ·  model ${head.model}  ·  task ${head.task}  ·  seed ${head.seed}${head.finished ? "" : "  ·  not finished"}`);
  if (!headline || headline.iteration === 0 || !Object.keys(headline.metrics).length) {
    at("title").textContent = head.finished ? "Nothing was measured" : "Still on its way";
    at("lead").textContent = "This page is built from the journals so far; build it again with rzero report.";
  } else {
    const main = headline.metrics.mean_at_k || headline.metrics.greedy;
    const { value: from } = main.base, { value: to } = main.final;
    const isClear = to - from > Math.hypot(main.base.half, main.final.half);
    if (isClear) at("title").append(`From ${percent(from)} to `, element("b", {}, percent(to)), ", by its own questions");
    else at("title").textContent = `No clear gain: ${percent(from)} before, ${percent(to)} after`;
    const greedy = headline.metrics.greedy;
    const first = `In ${headline.iteration} iteration${headline.iteration > 1 ? "s" : ""} of R-Zero the model ${isClear ? "raised" : "moved"} its accuracy on held-out problems from ${points(from)} to ${points(to)}%`;
    const second = greedy && main !== greedy ? ` (greedy: ${points(greedy.base.value)} to ${points(greedy.final.value)}%)` : "";
    at("lead").textContent = `${first}${second}. ${head.given}. Its Challenger wrote the questions, and the majority of its Solver's own answers was the label.`;
    for (const [metric, name] of Object.entries(metricNames())) if (headline.metrics[metric]) at("cards").append(card(name, headline.metrics[metric]));
  }
  drawFlow(head);
}

function card(name, { base, final, control, comparison }) {
  const gain = 100 * (final.value - base.value);
  const bars = element("div", { class: "bars" });
  for (const [label, one, hue] of [["base", base, "base"], ["untrained Challenger", control, "control"], ["R-Zero", final, "solver"]]) {
    if (!one) continue;
    const bar = element("i");
    bar.style.cssText = `width: ${100 * one.value}%; background: var(--${hue})`;
    bars.append(element("span", {}, label), element("div", { class: "track" }, bar), element("span", {}, `${points(one.value)} ± ${points(one.half)}`));
  }
  return element("div", { class: "card" },
    element("div", { class: "name" }, `${name}, average of the sets`),
    element("div", { class: "numbers" },
      element("span", { class: "from" }, `${points(base.value)} →`),
      element("span", { class: "to" }, `${points(final.value)}%`),
      element("span", { class: gain < 0 ? "gain loss" : "gain" }, `${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(1)} points`)),
    bars,
    comparison ? element("p", { class: "verdict" }, `${comparison}.`) : null);
}

function drawFlow(head) {
  const right = data.pools.main.filter((row) => row["pool/label_accuracy"] !== undefined && row["pool/label_accuracy"] !== null);
  const kept = right.reduce((sum, row) => sum + row["pool/kept"], 0);
  const share = right.reduce((sum, row) => sum + row["pool/kept"] * row["pool/label_accuracy"], 0) / (kept || 1);
  const entries = [
    ["c", number(head.questions), "different, usable questions of the Challenger"],
    ["s", number(head.questions * head.votes), `answers: ${head.votes} votes of the Solver on each`],
    ["s", number(head.kept), `questions kept: ${head.kept_rule}`],
    ...(kept ? [["s", percent(share), "of the kept majority labels are true (measured, never used)"]] : []),
    ["", duration(head.seconds), `of computing, ${number(head.tokens)} tokens sampled${head.seconds_ablation ? `; the comparison run took ${duration(head.seconds_ablation)}` : ""}`],
  ];
  for (const [role, value, text] of entries) at("flow").append(element("li", { class: role }, element("b", {}, value), element("span", {}, text)));
}

const iterationTicks = (last) => Array.from({ length: last + 1 }, (_, i) => [i, i === 0 ? "base" : `${i}`]);
const describeIteration = (i) => (i === 0 ? "base" : `after iteration ${i}`);

function drawAccuracy() {
  const rowOf = (run, set, iteration) => (data.accuracy[run] || []).find((row) => row.set === set && row.iteration === iteration);
  const last = Math.max(0, ...data.accuracy.main.map((row) => row.iteration));
  if (last === 0) return at("accuracy").remove();
  const value = (row, metric) => {
    if (!row || row[metric] === undefined || row[metric] === null) return null;
    const [low, high] = row[metric === "greedy" ? "greedy_interval" : "interval"];
    return { value: row[metric], half: (high - low) / 2, low, high };
  };
  legend(at("accuracy-legend"), [["base", "base", "dot"], ["R-Zero", "solver", "dot"], ...(hasControl ? [["untrained Challenger, everything else equal", "control", "dash"]] : [])]);
  for (const [metric, name] of Object.entries(metricNames())) {
    const rows = data.sets.map((set) => ({ label: set, base: value(rowOf("main", set, 0), metric), final: value(rowOf("main", set, last), metric), control: value(rowOf("ablation", set, last), metric) }));
    const complete = rows.filter((row) => row.base && row.final);
    if (!complete.length) continue;
    at("gains").append(gainChart({ title: `Base to iteration ${last}`, detail: name, rows: complete }));
  }
  for (const [metric, name] of Object.entries(metricNames())) for (const set of data.sets) {
    const series = Object.keys(data.accuracy).map((run) => {
      const found = data.accuracy[run].filter((row) => row.set === set && value(row, metric)).sort((a, b) => a.iteration - b.iteration);
      const isMain = run === "main";
      return { name: isMain ? "R-Zero" : "untrained Challenger", colour: isMain ? "solver" : "control", dash: !isMain, dots: true,
        points: found.map((row) => [row.iteration, row[metric]]),
        band: isMain ? found.map((row) => { const { low, high } = value(row, metric); return [row.iteration, low, high]; }) : undefined };
    }).reverse();
    if (series.some((one) => one.points.length)) at("accuracy-curves").append(lineChart({ title: set, detail: name, series, low: 0, high: 1, format: percent, xTicks: iterationTicks(last), describe: describeIteration }));
  }
  const cell = (row, metric) => { const one = value(row, metric); return one ? element("span", {}, `${points(one.value)} `, element("small", {}, `± ${points(one.half)}`)) : ""; };
  const lines = [];
  for (const run of Object.keys(data.accuracy)) for (let i = run === "main" ? 0 : 1; i <= last; i++) {
    const cells = data.sets.flatMap((set) => ["mean_at_k", "greedy"].map((metric) => cell(rowOf(run, set, i), metric)));
    const line = [run === "main" ? (i === 0 ? "base" : `R-Zero, iteration ${i}`) : `untrained Challenger, ${i}`, ...cells];
    line.control = run !== "main";
    lines.push(line);
  }
  table(["accuracy in %", ...data.sets.flatMap((set) => [`${set}, mean@${data.headline.k}`, `${set}, greedy`])], lines, at("accuracy-table"));
}

function drawLearning() {
  const { learning, styles } = data;
  if (!learning && !data.pairs.length) return at("learning").remove();
  at("learning-sentence").textContent = learning ? learning.sentence : "The task cannot tell worked answers from guesses, so only examples are shown.";
  if (learning) {
    const parts = [["switching", "from showing the steps", "solver"], ["steps", "from steps that are right more often", "pale"], ["guesses", "from better guesses", "control"]];
    legend(at("learning-legend"), [["base", "base", "box"], ...parts.map(([, label, hue]) => [label, hue, "box"])]);
    at("learning-charts").append(waterfall({ title: "Where the gain comes from", detail: "points of accuracy", rows: learning.rows, parts }));
    const last = Math.max(...styles.main.map((row) => row.iteration));
    const curve = (run, key, name, hue, dash) => ({ name, colour: hue, dash, dots: true, points: (styles[run] || []).map((row) => [row.iteration, row[key]]) });
    at("learning-charts").append(lineChart({ title: "Answers that show their steps", detail: "teal: their share; grey: how often they are right", height: 232, low: 0, high: 1, format: percent, xTicks: iterationTicks(last), describe: describeIteration,
      series: [curve("main", "worked_right", "right when steps are shown", "base"), curve("ablation", "worked", "share, untrained Challenger", "control", true), curve("main", "worked", "share that shows steps", "solver")] }));
  }
  if (data.pairs.length) at("pairs").append(element("h3", { class: "pairs-title" }, "The same problem before and after", element("small", {}, "greedy answers; the first that changed in each set, also for the worse")));
  for (const pair of data.pairs) {
    const say = (when, text, isRight) => element("div", { class: isRight ? "say right" : "say" }, element("small", {}, `${when}, ${isRight ? "right" : "wrong"}`), element("div", { class: "mono" }, text));
    at("pairs").append(element("div", { class: "pair" },
      element("div", { class: "ask" }, element("span", { class: "mono" }, pair.question), element("small", {}, `${pair.set}; true answer ${pair.truth}`)),
      say("base", pair.before, !pair.better), say(`iteration ${data.headline.iteration}`, pair.after, pair.better)));
  }
}

// One curve per metric over the steps of all iterations, which are set off by dotted lines.
function stepCurves(target, role, hue, metrics) {
  const rows = data.steps.main[role], other = (data.steps.ablation || {})[role] || [];
  const breaks = [], names = [];
  rows.forEach((row, i) => { if (i && row.iteration !== rows[i - 1].iteration) breaks.push(i - 0.5); });
  for (const iteration of new Set(rows.map((row) => row.iteration))) {
    const mine = rows.map((row, i) => [row, i]).filter(([row]) => row.iteration === iteration).map(([, i]) => i);
    names.push([(mine[0] + mine[mine.length - 1]) / 2, breaks.length ? `iteration ${iteration}` : "steps"]);
  }
  for (const [key, title, detail, options = {}] of metrics) {
    const curve = (list, name, shown, dash) => ({ name, colour: shown, dash, points: list.map((row, i) => [i, row[key]]).filter((p) => p[1] !== undefined) });
    const series = [curve(other, "untrained Challenger", "control", true), curve(rows, "R-Zero", hue, false)];
    if (!series[1].points.length) continue;
    target.append(lineChart({ title, detail, series, xTicks: names, breaks, height: 160, describe: (i) => (rows[i] || other[i] ? `iteration ${(rows[i] || other[i]).iteration}, step ${i + 1}` : ""), ...options }));
  }
}

const share = { low: 0, high: 1, format: percent };

function exactness(role) {
  const found = data.steps.main[role].map((row) => row.mismatch_max).filter((value) => value !== undefined);
  if (!found.length) return "";
  const worst = Math.max(...found);
  return worst === 0 ? " The log-probs of sampling and of training agree bit for bit in every step." : ` The log-probs of sampling and of training differ by at most ${compact(worst)}.`;
}

function drawChallenger() {
  const rows = data.steps.main.challenger;
  if (!rows.length && !data.histograms.length) return at("challenger").remove();
  const hasBand = data.histograms.some((one) => one.low !== undefined);
  at("challenger-note").textContent = `It is paid for questions on which the Solver is of two minds, and pays for repeating itself. Below: how many of the Solver's votes the most common answer got, at the first step of each iteration and after the training.${hasBand ? " Questions in the shaded band are kept." : ""}${exactness("challenger")}`;
  legend(at("histogram-legend"), [["before the Challenger's training", "base", "box"], ["after it", "challenger", "box"], ...(hasBand ? [["kept", "band", "box"]] : [])]);
  for (const one of data.histograms) at("histograms").append(histogram({ title: `Iteration ${one.iteration}`, ...one }));
  stepCurves(at("challenger-curves"), "challenger", "challenger", [
    ["reward_mean", "Reward", "mean over the step"], ["agreement_mean", "Agreement", "share of the majority", share],
    ["distinct_share", "Distinct questions", "share", share], ["largest_cluster", "Largest cluster", "of similar questions", { low: 0 }],
    ["format_share", "Usable questions", "share", share], ["length_mean", "Length", "tokens per question", { low: 0 }],
    ["kl", "KL to the reference", "per token", { low: 0 }], ["entropy", "Entropy", "nats per token", { low: 0 }], ["grad_norm", "Gradient norm", "before clipping", { low: 0 }],
  ]);
}

function drawSolver() {
  if (!data.steps.main.solver.length) return at("solver").remove();
  at("solver-note").textContent = `It is paid for giving the majority's answer to the kept questions.${hasControl ? " Dashed: the run with an untrained Challenger." : ""}${exactness("solver")}`;
  stepCurves(at("solver-curves"), "solver", "solver", [
    ["reward_mean", "Reward", "agrees with the majority", share], ["length_mean", "Length", "tokens per answer", { low: 0 }], ["unboxed_share", "Answers without a box", "share", { low: 0, format: (value) => `${compact(100 * value)}%` }],
    ["kl", "KL to the reference", "per token", { low: 0 }], ["entropy", "Entropy", "nats per token", { low: 0 }], ["grad_norm", "Gradient norm", "before clipping", { low: 0 }],
  ]);
  const show = (value) => (value === undefined || value === null ? "" : percent(value));
  const rows = Object.entries(data.pools).flatMap(([run, pools]) => pools.map((row) => {
    const line = [run === "main" ? `R-Zero, ${row.iteration}` : `untrained Challenger, ${row.iteration}`, ...["questions", "invalid", "duplicates", "held_out", "kept"].map((name) => number(row[`pool/${name}`] ?? 0)), show(row["pool/agreement_mean"]), show(row["pool/label_accuracy"])];
    line.control = run !== "main";
    return line;
  }));
  table(["pool of iteration", "questions", "unusable", "repeated", "held out", "kept", "mean agreement", "labels true"], rows, at("pool-table"));
}

function drawGauges() {
  if (!data.gauges.length) return at("gauges").remove();
  const early = data.result.reason && !data.result.reason.startsWith("the last") ? ` The run's result is ${data.result.iteration ? `iteration ${data.result.iteration}` : "the base"}: ${data.result.reason}.` : "";
  const loud = data.gauges.filter((one) => one.beyond.length).length;
  at("gauges-note").textContent = `${loud ? `${loud} of ${data.gauges.length} were beyond a threshold.` : "None was beyond a threshold."}${early}`;
  const left = (text) => ({ kind: "left wrap", text });
  const rows = data.gauges.map((one) => [one.name, left(one.words), compact(one.first), compact(one.last), compact(one.worst),
    left(Object.entries(one.limits).map(([action, limit]) => `${action} ${one.side} ${compact(limit)}`).join(", ") || "none"),
    left(one.beyond.length ? `${one.beyond.length} times, first in ${one.beyond[0]}` : "")]);
  table(["gauge", left("of what"), "first", "last", "worst", left("thresholds"), left("beyond")], rows, at("gauge-table"));
}

function drawQuestion(row) {
  const top = row.votes.reduce((best, vote) => Math.max(best, vote[1]), 0);
  const bar = element("span", { class: "votes", title: row.votes.map(([answer, count]) => `${answer}: ${count}`).join("\n") });
  row.votes.forEach(([, count], i) => { const part = element("i"); part.style.cssText = `width: ${(100 * count) / row.asked}%; opacity: ${Math.max(1 - 0.28 * i, 0.15)}`; bar.append(part); });
  const isWrong = row.kept && row.truth !== null && row.wrong;
  const verdict = element("span", { class: "verdict" }, `${top} of ${row.asked}  `, element("b", isWrong ? { class: "wrong" } : {}, row.kept ? (isWrong ? "kept, label wrong" : "kept") : ""), row.kept ? "" : row.reason || "dropped");
  const item = element("details", { class: "question" }, element("summary", {}, element("span", { class: "it" }, row.iteration), element("span", { class: "q mono" }, row.question), bar, verdict));
  item.addEventListener("toggle", () => {
    if (item.children.length > 1) return;
    const facts = [`label ${row.label ?? "none"}`, row.truth !== null ? `true answer ${row.truth}` : null, `the Challenger's own answer ${row.own ?? "none"}`].filter(Boolean).join("  ·  ");
    item.append(element("div", { class: "body" }, element("div", { class: "facts" }, facts),
      ...row.answers.map(([text, answer, count]) => element("div", { class: "row" }, element("span", {}, `${count} ×`), element("div", { class: answer !== null && answer === row.label ? "say right" : "say" }, element("div", { class: "mono" }, text || "(empty)"))))));
  });
  return item;
}

function drawQuestions() {
  if (!data.questions.length) return at("questions").remove();
  const total = Object.values(data.question_totals).reduce((sum, count) => sum + count, 0);
  const part = total > data.questions.length ? `${number(data.questions.length)} of ${number(total)} questions are here, evenly chosen; questions.jsonl holds all. ` : "";
  at("questions-note").textContent = `${part}The bar is the vote: the darkest part is the most common answer, the empty part had no box. Open a question to read the answers.`;
  const select = at("filter-iteration");
  for (const [value, text] of [["", "all"], ...Object.keys(data.question_totals).map((i) => [i, i])]) select.append(element("option", { value }, text));
  let limit = PAGE_OF_QUESTIONS;
  const filter = () => {
    const iteration = select.value, kept = at("filter-kept").value, text = at("filter-text").value.trim().toLowerCase();
    const fits = (row) => (!iteration || String(row.iteration) === iteration)
      && (!kept || (kept === "wrong" ? row.kept && row.wrong : row.kept === (kept === "kept")))
      && (!text || row.question.toLowerCase().includes(text) || row.answers.some((answer) => answer[0].toLowerCase().includes(text)));
    const found = data.questions.filter(fits);
    at("question-count").textContent = `${number(found.length)} question${found.length === 1 ? "" : "s"}`;
    at("question-list").replaceChildren(...found.slice(0, limit).map(drawQuestion));
    at("more").hidden = found.length <= limit;
  };
  for (const id of ["filter-iteration", "filter-kept", "filter-text"]) at(id).addEventListener("input", () => { limit = PAGE_OF_QUESTIONS; filter(); });
  at("more").addEventListener("click", () => { limit += PAGE_OF_QUESTIONS; filter(); });
  filter();
}

function drawMade() {
  for (const [name, value] of data.run) at("run-facts").append(element("dt", {}, name), element("dd", {}, value));
  const left = (text) => ({ kind: "left", text });
  const rows = data.kernels.map(([op, backend, reasons]) => [op, left(backend), { kind: "left wrap", text: element("small", {}, reasons.join("; ")) }]);
  if (rows.length) table(["op", left("backend"), left("why not another")], rows, at("kernels"));
  at("config").textContent = data.config;
}

for (const draw of [drawHead, drawAccuracy, drawLearning, drawChallenger, drawSolver, drawGauges, drawQuestions, drawMade]) draw();
fitCharts();
document.body.dataset.ready = "yes";
