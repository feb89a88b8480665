// What each page is made with. Names come from files that anybody may have written. They enter a page as text only:
// never use innerHTML.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const classes = data.classes ?? []; // names, by number
const truth = "objects" in data;

function element(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "text", "path", "line", "circle"].includes(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

const byId = (id) => document.getElementById(id);
const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

// Okabe and Ito's colours, which people with any kind of colour-blindness tell apart, and from the eighth on those that
// are farthest from all before them in Oklab, as seen by any of these people: never nearer than the nearest of the
// first seven. Where there are more classes than colours, dashes tell those apart that share one; with ground truth
// dashes say hit or not. The tag has the name.
const COLOURS = [
  "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#871e0f", "#87fff0", "#3c00d2",
  "#a569ff", "#694b69", "#a5d2a5", "#b43c00", "#870fff", "#c3f0a5", "#780087", "#96b487", "#69d2ff", "#965a5a",
];
const DASHES = [null, "10 4", "2 3", "10 3 2 3"];
const colourOf = (number) => COLOURS[number % COLOURS.length];
const dashOf = (number) => DASHES[Math.floor(number / COLOURS.length) % DASHES.length];
// White where it stands out more than black: a luminance below 0.18, by WCAG.
const inkOn = (colour) => {
  if (colour === "#fff") return "#000";
  const [red, green, blue] = [1, 3, 5].map((start) => (parseInt(colour.slice(start, start + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.18 ? "#fff" : "#000";
};

function axes(width, height, { left, top, right, bottom }, xs, ys, xName, yName) {
  const quiet = { fill: "var(--quiet)", "font-size": 12 }, parts = [];
  const x = (value) => left + value * (width - left - right), y = (value) => height - bottom - value * (height - top - bottom);
  for (const [value, text] of xs) parts.push(element("text", { x: x(value), y: height - bottom + 17, "text-anchor": "middle", ...quiet }, text));
  for (const [value, text] of ys)
    parts.push(
      element("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), stroke: "var(--line)" }),
      element("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end", ...quiet }, text),
    );
  parts.push(
    element("text", { x: (left + width - right) / 2, y: height - 2, "text-anchor": "middle", ...quiet }, xName),
    element("text", { x: left, y: 11, ...quiet }, yName),
  );
  return { parts, x, y };
}

const pathOf = (points) => points.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function showChart(svg, height, label, parts) {
  svg.setAttribute("height", height);
  svg.setAttribute("aria-label", label);
  svg.replaceChildren(...parts);
}

// A piece of a line, for keys.
function keyLine(...lines) {
  const place = { x1: 1, x2: 25, y1: 6, y2: 6, "stroke-width": 2.5 };
  return element("svg", { width: 26, height: 12, "aria-hidden": "true" }, ...lines.map((line) => element("line", { ...place, ...line })));
}

function swatch(name, kind = "plain") {
  const stroke = colourOfMark({ kind, name });
  return keyLine({ stroke: inkOn(stroke), "stroke-opacity": 0.55, "stroke-width": 6 }, { stroke, "stroke-width": 4, "stroke-dasharray": dashOfMark({ kind, name }) });
}

const percent = (value) => `${Math.round(100 * value)}%`;

// Marks, boxes on a picture: kind, box as x, y, width, height, name (the class's number), and score or null.
const MARK_DASHES = { hit: null, alarm: "9 4", missed: "3 3", label: null, ignored: "1 2" };
const SIGNS = { hit: "", plain: "", alarm: "✗ ", missed: "○ ", label: "", ignored: "" };
const colourOfMark = ({ kind, name }) => (kind === "label" ? "#fff" : colourOf(name));
const dashOfMark = ({ kind, name }) => (kind !== "plain" ? MARK_DASHES[kind] : truth ? null : dashOf(name));

// A box's line, on a wider and paler one that stands out from it; one of no area is a point.
function outlined({ x, y, width, height }, colour, line, dash, kind) {
  const place = { x, y, width: Math.max(width, 1), height: Math.max(height, 1), fill: "none" };
  return [
    element("rect", { ...place, stroke: inkOn(colour), "stroke-opacity": 0.55, "stroke-width": line + 1.5 }),
    element("rect", { ...place, stroke: colour, "stroke-width": line, "stroke-dasharray": dash, class: `mark ${kind}` }),
  ];
}

const pen = document.createElement("canvas").getContext("2d");

// What a tag says in so many pixels. A long name is cut in its middle: names often begin alike.
function tagText(sign, name, score, space) {
  const told = (shown) => sign + shown + (score === null ? "" : ` ${percent(score)}`);
  const letters = [...name], wide = pen.measureText(told(name)).width;
  if (wide <= space) return told(name);
  const cut = (kept) => told(`${letters.slice(0, Math.ceil(kept / 2)).join("")}…${letters.slice(letters.length - Math.floor(kept / 2)).join("")}`);
  let kept = Math.floor((letters.length * space) / wide);
  while (kept > 1 && pen.measureText(cut(kept)).width > space) kept--;
  return cut(kept);
}

// Draw marks into an svg: a point p of the image lies at scale * p + (left, top). Where there are more than so many,
// tags say no more than what is wrong.
function drawMarks(svg, marks, { scale, left, top, width, height }, letters, most, chosen = null) {
  const drawn = [], taken = [];
  pen.font = `600 ${letters}px system-ui, sans-serif`;
  for (const mark of marks) {
    const [x, y, w, h] = [mark.box[0] * scale + left, mark.box[1] * scale + top, mark.box[2] * scale, mark.box[3] * scale];
    const wide = mark === chosen ? 4 : letters < 12 ? 1.75 : 2;
    drawn.push(...outlined({ x, y, width: w, height: h }, colourOfMark(mark), wide, dashOfMark(mark), mark.kind));
  }
  for (const mark of [...marks].reverse()) {
    const sign = SIGNS[mark.kind], text = marks.length > most ? sign.trim() : tagText(sign, classes[mark.name], mark.score, width / 1.5);
    if (!text) continue;
    const wide = pen.measureText(text).width + 8, high = letters + 5;
    const x = Math.max(0, Math.min(mark.box[0] * scale + left - 1, width - wide));
    const above = mark.box[1] * scale + top - high, below = (mark.box[1] + mark.box[3]) * scale + top;
    if (mark !== chosen && (above + high < 0 || above > height || mark.box[2] * scale < 14)) continue;
    // At the top of the box, else below it; where another tag is already, the box stays without one.
    const free = [Math.max(0, above), below].find(
      (y) => y + high <= height && !taken.some((tag) => x < tag.x + tag.wide && tag.x < x + wide && y < tag.y + high && tag.y < y + high),
    );
    if (free === undefined) continue;
    taken.push({ x, y: free, wide });
    const colour = colourOfMark(mark);
    const tag = element("text", { x: x + 4, y: free + letters, fill: inkOn(colour), "font-size": letters, "font-weight": 600 }, text);
    drawn.push(element("g", {}, element("rect", { x, y: free, width: wide, height: high, fill: colour, rx: 2 }), tag));
  }
  svg.replaceChildren(...drawn);
}

function numbersOf(pairs) {
  const cells = pairs.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return element("dl", { class: "numbers" }, ...cells);
}

function panel(title, text, wide, ...children) {
  return element("section", { class: wide ? "panel wide" : "panel" }, element("h2", {}, title), ...(text ? [element("p", {}, text)] : []), ...children);
}

function tableOf(headings, rows, label) {
  const named = (scope, name) => element("th", { scope, title: typeof name === "string" && name }, name);
  const head = element("tr", {}, ...headings.map((heading) => named("col", heading)));
  const body = rows.map(([first, ...cells]) =>
    element("tr", {}, named("row", first), ...cells.map((cell) => (cell instanceof Node ? cell : element("td", {}, cell)))));
  const table = element("table", { "aria-label": label }, element("thead", {}, head), element("tbody", {}, ...body));
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, table);
}

byId("title").textContent = data.title;
byId("heading").textContent = data.heading;
