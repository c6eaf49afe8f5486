// SPDX-License-Identifier: Apache-2.0
// Charts as inline SVG, drawn for the width they get and drawn again when it changes.
"use strict";

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

function shape(tag, attributes = {}, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

const colour = (name) => `var(--${name})`;

// A panel with a title; draw(svg, width, height) fills the chart each time the width changes.
function panel(title, detail, height, draw) {
  const chart = element("div", { class: "chart" });
  const heading = element("h3", {}, title);
  if (detail) heading.append(element("small", {}, detail));
  let drawn = 0;
  const fit = () => {
    const width = chart.clientWidth;
    if (width === drawn || width < 40) return;
    drawn = width;
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": title });
    draw(svg, width, height);
    chart.replaceChildren(svg);
  };
  // An observer may not change the layout it observes: it draws in the next frame.
  new ResizeObserver(() => requestAnimationFrame(fit)).observe(chart);
  charts.push(fit);
  return element("div", { class: "panel" }, heading, chart);
}

// Draws every chart of the page now: a page that is printed or saved may never be given a frame.
const charts = [];
function fitCharts() {
  for (const fit of charts) fit();
}

// Round steps (1, 2 or 5 times a power of ten) that cover low..high.
function ticks(low, high, wanted) {
  const raw = (high - low) / wanted || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const first = Math.floor(low / step + 1e-9) * step;
  const found = [];
  for (let i = 0; found.length < 2 || found[found.length - 1] < high - step * 1e-6; i++) found.push(first + i * step);
  return found;
}

function compact(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 100) return value.toFixed(0);
  if (size >= 1) return value.toFixed(size >= 10 ? 1 : 2).replace(/\.?0+$/, "");
  return size >= 0.001 ? value.toPrecision(2).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "") : value.toExponential(0);
}

const percent = (share) => `${Math.round(100 * share)}%`;

function showTip(event, text) {
  const tip = document.getElementById("tip");
  tip.textContent = text;
  tip.hidden = false;
  const width = tip.offsetWidth, height = tip.offsetHeight;
  tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
  tip.style.top = `${event.clientY - height - 12 < 4 ? event.clientY + 18 : event.clientY - height - 12}px`;
}

function hideTip() {
  document.getElementById("tip").hidden = true;
}

// series: [{name, colour, dash, points: [[x, y]], band: [[x, low, high]], dots}]; x holds the numbers 0..n
function lineChart({ title, detail, series, low, high, format = compact, xTicks, breaks = [], height = 190, describe }) {
  const filled = series.filter((one) => one.points.length);
  const values = filled.flatMap((one) => [...one.points.map((p) => p[1]), ...(one.band || []).flatMap((b) => [b[1], b[2]])]);
  const lowest = low ?? Math.min(...values), highest = high ?? Math.max(...values);
  const yTicks = ticks(lowest, highest > lowest ? highest : lowest + (Math.abs(lowest) || 1), 4);
  const xs = filled.flatMap((one) => one.points.map((p) => p[0]));
  const xLow = Math.min(...xs), xHigh = Math.max(...xs);
  return panel(title, detail, height, (svg, width) => {
    const labels = yTicks.map(format);
    const left = 10 + 7 * Math.max(...labels.map((label) => label.length)), right = 12, top = 12, bottom = 24;
    const toX = (x) => left + ((x - xLow) / (xHigh - xLow || 1)) * (width - left - right);
    const [yLow, yHigh] = [yTicks[0], yTicks[yTicks.length - 1]];
    const toY = (y) => top + (1 - (y - yLow) / (yHigh - yLow)) * (height - top - bottom);
    yTicks.forEach((y, i) => {
      svg.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: toY(y), y2: toY(y) }));
      svg.append(shape("text", { x: left - 8, y: toY(y) + 4, "text-anchor": "end" }, labels[i]));
    });
    for (const x of breaks) svg.append(shape("line", { class: "axis", x1: toX(x), x2: toX(x), y1: top, y2: height - bottom, "stroke-dasharray": "2 3" }));
    for (const [x, label] of xTicks) {
      const anchor = breaks.length ? "middle" : x === xLow && xTicks.length > 1 ? "start" : x === xHigh ? "end" : "middle";
      svg.append(shape("text", { x: toX(x), y: height - 6, "text-anchor": anchor }, label));
    }
    for (const one of filled) {
      if (one.band) {
        const upper = one.band.map(([x, , y]) => `${toX(x)},${toY(y)}`), lower = one.band.map(([x, y]) => `${toX(x)},${toY(y)}`).reverse();
        svg.append(shape("polygon", { points: [...upper, ...lower].join(" "), fill: colour(one.colour), opacity: 0.13 }));
      }
    }
    for (const one of filled) {
      const style = { fill: "none", stroke: colour(one.colour), "stroke-width": one.dash ? 1.8 : 2.2, "stroke-linejoin": "round", "stroke-linecap": "round" };
      if (one.dash) style["stroke-dasharray"] = "5 4";
      svg.append(shape("polyline", { points: one.points.map(([x, y]) => `${toX(x)},${toY(y)}`).join(" "), ...style }));
      if (one.dots || one.points.length === 1) for (const [x, y] of one.points) svg.append(shape("circle", { cx: toX(x), cy: toY(y), r: 3.5, fill: one.dash ? colour("panel") : colour(one.colour), stroke: colour(one.colour), "stroke-width": 1.8 }));
    }
    hover(svg, filled, { toX, width, height, top, bottom, format, describe });
  });
}

function hover(svg, series, { toX, width, height, top, bottom, format, describe }) {
  const xs = [...new Set(series.flatMap((one) => one.points.map((p) => p[0])))].sort((a, b) => a - b);
  const line = shape("line", { class: "zero", y1: top, y2: height - bottom, visibility: "hidden" });
  const area = shape("rect", { x: 0, y: 0, width, height, fill: "transparent" });
  svg.append(line, area);
  area.addEventListener("pointermove", (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const x = xs.reduce((best, other) => (Math.abs(toX(other) - at) < Math.abs(toX(best) - at) ? other : best));
    const rows = series.flatMap((one) => one.points.filter((p) => p[0] === x).map((p) => `${one.name}  ${format(p[1])}`));
    line.setAttribute("x1", toX(x));
    line.setAttribute("x2", toX(x));
    line.setAttribute("visibility", "visible");
    showTip(event, [describe(x), ...rows].join("\n"));
  });
  area.addEventListener("pointerleave", () => { line.setAttribute("visibility", "hidden"); hideTip(); });
}

// rows: [{label, base, final, control}], each value {value, half} or null
function gainChart({ title, detail, rows }) {
  const rowHeight = 46, top = 8, bottom = 26, height = top + bottom + rows.length * rowHeight;
  return panel(title, detail, height, (svg, width) => {
    const left = Math.min(120, 16 + 8 * Math.max(...rows.map((row) => row.label.length))), right = 44;
    const toX = (share) => left + share * (width - left - right);
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(shape("line", { class: "axis", x1: toX(share), x2: toX(share), y1: top, y2: height - bottom }));
      svg.append(shape("text", { x: toX(share), y: height - 8, "text-anchor": "middle" }, percent(share)));
    }
    rows.forEach((row, i) => {
      const y = top + (i + 0.5) * rowHeight;
      svg.append(shape("text", { class: "strong", x: 0, y: y + 4 }, row.label));
      svg.append(shape("line", { x1: toX(row.base.value), x2: toX(row.final.value), y1: y, y2: y, stroke: colour("solver"), "stroke-width": 2, opacity: 0.45 }));
      mark(svg, toX, row.base, y, "base");
      if (row.control) mark(svg, toX, row.control, y + 9, "control");
      mark(svg, toX, row.final, y, "solver");
      const gain = 100 * (row.final.value - row.base.value);
      svg.append(shape("text", { class: "strong", x: width, y: y + 4, "text-anchor": "end" }, `${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(1)}`));
      const hit = shape("rect", { x: 0, y: y - rowHeight / 2, width, height: rowHeight, fill: "transparent" });
      const lines = [["base", row.base], ["R-Zero", row.final], ["untrained Challenger", row.control]].filter((one) => one[1]);
      const text = [row.label, ...lines.map(([name, one]) => `${name}  ${(100 * one.value).toFixed(1)} ± ${(100 * one.half).toFixed(1)}%`)].join("\n");
      hit.addEventListener("pointermove", (event) => showTip(event, text));
      hit.addEventListener("pointerleave", hideTip);
      svg.append(hit);
    });
  });
}

function mark(svg, toX, { value, half }, y, name) {
  const low = Math.max(value - half, 0), high = Math.min(value + half, 1), isControl = name === "control";
  svg.append(shape("line", { x1: toX(low), x2: toX(high), y1: y, y2: y, stroke: colour(name), "stroke-width": isControl ? 1.5 : 5, opacity: isControl ? 0.9 : 0.35 }));
  svg.append(shape("circle", { cx: toX(value), cy: y, r: isControl ? 3.5 : 6, fill: colour(isControl ? "panel" : name), stroke: colour(name), "stroke-width": 1.8 }));
}

// before, after: counts of questions by the number of votes of the majority; the band low..high, if there is one, is kept
function histogram({ title, detail, before, after, low, high, height = 200 }) {
  const shares = (counts) => { const sum = counts.reduce((a, b) => a + b, 0) || 1; return counts.map((count) => count / sum); };
  const shown = shares(after), earlier = before ? shares(before) : [];
  // Votes of another number are drawn at the same share, and as tall as they would be with bars of this width.
  const scale = before ? (before.length - 1) / (after.length - 1) : 1;
  const highest = Math.max(...shown, ...earlier.map((share) => share * scale));
  return panel(title, detail, height, (svg, width) => {
    const left = 38, right = 6, top = 12, bottom = 40, votes = after.length - 1;
    const slot = (width - left - right) / (votes + 1);
    const toX = (share) => left + (share * votes + 0.5) * slot;
    const yTicks = ticks(0, highest, 3), yHigh = yTicks[yTicks.length - 1];
    const toY = (share) => top + (1 - share / yHigh) * (height - top - bottom);
    if (low !== undefined) svg.append(shape("rect", { x: left + low * slot, width: (high - low + 1) * slot, y: top, height: height - top - bottom, fill: colour("band") }));
    for (const y of yTicks) {
      svg.append(shape("line", { class: "axis", x1: left, x2: width - right, y1: toY(y), y2: toY(y) }));
      svg.append(shape("text", { x: left - 8, y: toY(y) + 4, "text-anchor": "end" }, percent(y)));
    }
    if (before) {
      const corners = earlier.map((share, i) => `${toX(i / (before.length - 1))},${toY(share * scale)}`);
      const outline = [`${toX(0)},${toY(0)}`, ...corners, `${toX(1)},${toY(0)}`].join(" ");
      svg.append(shape("polygon", { points: outline, fill: colour("base"), opacity: 0.45 }));
      svg.append(shape("polyline", { points: corners.join(" "), fill: "none", stroke: colour("base"), "stroke-width": 2 }));
    }
    shown.forEach((share, i) => {
      const bar = shape("rect", { x: toX(i / votes) - slot * 0.31, y: toY(share), width: slot * 0.62, height: toY(0) - toY(share), fill: colour("challenger"), opacity: 0.92, rx: 1 });
      bar.addEventListener("pointermove", (event) => showTip(event, `${i} of ${votes} votes\n${after[i]} questions, ${percent(share)}`));
      bar.addEventListener("pointerleave", hideTip);
      svg.append(bar);
    });
    for (let i = 0; i <= votes; i++) svg.append(shape("text", { x: toX(i / votes), y: height - 22, "text-anchor": "middle" }, i));
    svg.append(shape("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, `votes for the most common answer, of ${votes}`));
  });
}

// rows: [{set, base, final, switching, steps, guesses}]; bars run from the base to the final accuracy
function waterfall({ title, detail, rows, parts }) {
  const rowHeight = 50, top = 8, bottom = 26, height = top + bottom + rows.length * rowHeight;
  return panel(title, detail, height, (svg, width) => {
    const left = Math.min(110, 16 + 8 * Math.max(...rows.map((row) => row.set.length))), right = 12;
    const toX = (share) => left + share * (width - left - right);
    for (const share of [0, 0.25, 0.5, 0.75, 1]) {
      svg.append(shape("line", { class: "axis", x1: toX(share), x2: toX(share), y1: top, y2: height - bottom }));
      svg.append(shape("text", { x: toX(share), y: height - 8, "text-anchor": "middle" }, percent(share)));
    }
    rows.forEach((row, i) => {
      const y = top + (i + 0.5) * rowHeight - 9;
      svg.append(shape("text", { class: "strong", x: 0, y: y + 13 }, row.set));
      svg.append(shape("rect", { x: toX(0), y, width: toX(row.base) - toX(0), height: 18, fill: colour("base"), rx: 1 }));
      let at = row.base;
      for (const [name, label, hue] of parts) {
        const next = at + row[name], from = Math.min(at, next), wide = Math.max(toX(Math.max(at, next)) - toX(from) - 1, 0.5);
        const bar = shape("rect", { x: toX(from) + 1, y: row[name] < 0 ? y + 20 : y, width: wide, height: row[name] < 0 ? 5 : 18, fill: colour(hue), rx: 1 });
        const points = `${row[name] >= 0 ? "+" : "−"}${Math.abs(100 * row[name]).toFixed(1)}`;
        bar.addEventListener("pointermove", (event) => showTip(event, `${row.set}\n${label}  ${points} points`));
        bar.addEventListener("pointerleave", hideTip);
        svg.append(bar);
        if (wide > 34 && row[name] > 0) svg.append(shape("text", { x: toX(from) + wide / 2, y: y + 13, "text-anchor": "middle", style: "fill: var(--panel); font-weight: 600; pointer-events: none" }, points));
        at = next;
      }
    });
  });
}
