// The pages about trainings: one as it goes on, or several beside one another.
// From top to bottom: charts, pictures, tables, the page, its renewal.

// -------------------------------------------------------------------------------------------------------- charts

const INKS = ["var(--accent)", "var(--alarm)", "var(--hit)", "var(--missed)"];
const ink = (place) => ({ stroke: INKS[place % INKS.length], "stroke-dasharray": DASHES[Math.floor(place / INKS.length) % DASHES.length] });
const MARKED = 60; // points, up to which each has a dot

function short(value) {
  if (value === 0) return "0";
  if (value >= 1000) return Math.round(value).toLocaleString("en");
  return value < 1e-3 ? value.toExponential(2).replace(/\.?0*e/, "e") : String(Number(value.toPrecision(3)));
}

// Round numbers within these limits: about so many, or on a logarithmic scale 1, 2 and 5 times powers of ten.
function ticks(low, high, wanted, log) {
  const found = [];
  if (log) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const factor of high / low > 1000 ? [1] : [1, 2, 5]) found.push(factor * 10 ** power);
  } else {
    const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= 0.95 * rough);
    for (let number = Math.ceil(low / step); number * step <= high * 1.0001; number++) found.push(Number((number * step).toPrecision(12)));
  }
  return found.filter((value) => value >= low * 0.9999 && value <= high * 1.0001);
}

// From 0 up; a logarithmic one spans what is there.
function scaleOf(values, log) {
  const positive = values.filter((value) => value > 0);
  if (log && positive.length) {
    const low = Math.min(...positive) / 1.1, high = Math.max(...positive) * 1.1, length = Math.log(high / low);
    return { low, high, log, at: (value) => Math.log(Math.max(value, low) / low) / length };
  }
  const high = Math.max(...positive, 0) * 1.05 || 1;
  return { low: 0, high, log: false, at: (value) => value / high };
}

function drawChart(box, chart) {
  const svg = box.querySelector("svg"), width = svg.clientWidth, height = 240;
  const margins = { left: 52, top: 20, right: 14, bottom: 38 };
  const points = chart.lines.flatMap((line) => line.points);
  const across = scaleOf(points.map(([step]) => step), false), up = scaleOf(points.map(([, value]) => value), chart.log);
  const xs = ticks(0, across.high, width / 110, false).map((step) => [across.at(step), step.toLocaleString("en")]);
  const ys = ticks(up.low, up.high, 5, up.log).map((value) => [up.at(value), short(value)]);
  const { parts, x, y } = axes(width, height, margins, xs, ys, "step", chart.unit + (up.log ? " (logarithmic)" : ""));
  chart.lines.forEach((line, number) => {
    const places = line.points.map(([step, value]) => [x(across.at(step)), y(up.at(value))]);
    parts.push(element("path", { class: "line", d: pathOf(places), ...ink(number) }));
    if (places.length <= MARKED) parts.push(...places.map(([cx, cy]) => element("circle", { cx, cy, r: 2.5, fill: ink(number).stroke })));
  });
  const reading = element("line", { class: "reading", y1: margins.top, y2: height - margins.bottom, visibility: "hidden" });

  // The key has the last values, or those at the pointer.
  const tell = (step) => {
    const nearest = (line) => line.points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best), [Infinity, NaN]);
    const told = chart.lines.map((line) => [line.name, nearest(line)]);
    const names = told.map(([name, [, value]], number) => element("span", {}, keyLine(ink(number)), name, element("b", {}, Number.isNaN(value) ? "–" : short(value))));
    box.querySelector(".key").replaceChildren(...names);
    return told.map(([name, [, value]]) => `${name} ${short(value)}`).join(", ");
  };
  const last = Math.max(...points.map(([step]) => step));
  showChart(svg, height, `${chart.title} by step. Last: ${tell(last)}.`, [...parts, reading]);
  svg.onpointermove = ({ offsetX }) => {
    const step = ((offsetX - margins.left) / (width - margins.left - margins.right)) * across.high;
    const shown = points.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best - step) ? point[0] : best), Infinity);
    tell(shown);
    for (const side of ["x1", "x2"]) reading.setAttribute(side, x(across.at(shown)));
    reading.setAttribute("visibility", "visible");
    box.querySelector(".at").textContent = ` at step ${shown.toLocaleString("en")}`;
  };
  svg.onpointerleave = () => {
    tell(last);
    reading.setAttribute("visibility", "hidden");
    box.querySelector(".at").textContent = "";
  };
}

function chartPanel(chart) {
  const there = chart.lines.some((line) => line.points.length);
  const parts = there ? [element("svg", { class: "chart", role: "img" }), element("div", { class: "key" })] : [element("p", { class: "nothing" }, "Nothing yet")];
  const box = element("section", { class: "panel" }, element("h2", {}, chart.title, element("small", { class: "at" })), ...parts);
  if (there) new ResizeObserver(() => drawChart(box, chart)).observe(box);
  return box;
}

// ------------------------------------------------------------------------------------------------------ pictures

const CROWDED = 10; // marks, beyond which none has a tag

// A picture with rows of name, x, y, width, height and score; the score is null for labels.
function picture({ file, jpeg, size: [width, height] }, rows, what) {
  const marks = rows.map(([name, ...rest]) => ({ kind: "plain", name: Math.max(0, classes.indexOf(name)), box: rest.slice(0, 4), score: rest[4] }));
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  drawMarks(svg, [...marks].reverse(), { scale: 1, left: 0, top: 0, width, height }, 14, CROWDED);
  const seen = marks.map(({ name, score }) => tagText("", classes[name], score, Infinity)).join(", ") || "nothing";
  const image = element("img", { src: `data:image/jpeg;base64,${jpeg}`, alt: `${file}, ${what}: ${seen}`, title: file, width, height });
  return element("div", { class: "picture" }, image, svg);
}

function grid(columns, label, ...cells) {
  const made = element("div", { class: "pictures", tabindex: 0, role: "region", "aria-label": label }, ...cells);
  made.style.gridTemplateColumns = `repeat(${columns}, minmax(140px, ${columns === "auto-fill" ? "1fr" : "300px"}))`;
  return made;
}

function learning() {
  const heads = ["labels", ...data.detections.map(({ epoch }) => `after epoch ${epoch}`)].map((text) => element("h3", {}, text));
  const rows = data.validation.flatMap((one, row) => [
    picture(one, one.marks, "labels"),
    ...data.detections.map(({ epoch, images }) => picture(one, images[row], `after epoch ${epoch}`)),
  ]);
  return panel("What it finds", `The same validation pictures after some of the evaluations: detections scored ${data.shown_score} or more.`, true, grid(heads.length, "Validation pictures", ...heads, ...rows));
}

// -------------------------------------------------------------------------------------------------------- tables

function words(texts) {
  const pairs = Object.entries(texts).flatMap(([name, text]) => [element("dt", {}, name), element("dd", { class: name === "Command" ? "command" : null }, text)]);
  return panel("Configuration", "", true, element("dl", { class: "words" }, ...pairs));
}

function comparison({ title, text, rows }) {
  const cells = rows.map(({ name, values, best }) => [name, ...values.map((value, place) => element("td", { class: place === best ? "best" : null }, value))]);
  return panel(title, text, true, ...(rows.length ? [tableOf(["", ...data.runs], cells, title)] : []));
}

// ------------------------------------------------------------------------------------------------------ the page

function makePage() {
  const parts = [], tables = (data.tables ?? []).map(comparison);
  if (data.numbers) parts.push(numbersOf(data.numbers));
  parts.push(...tables.slice(0, 1), ...data.charts.map(chartPanel), ...tables.slice(1));
  if (data.detections?.length) parts.push(learning());
  if (data.samples?.length)
    parts.push(panel("What it learns from", "The first training images as the network gets them: augmented, with the objects that default boxes are matched to.", true,
      grid("auto-fill", "Training images", ...data.samples.map((one) => picture(one, one.marks, "objects")))));
  if (data.configuration) parts.push(words(data.configuration));
  if (data.per_class?.length)
    parts.push(panel("Classes", "Average precision of each class in the last evaluation.", true, tableOf(["class", "objects", "AP50", "AP"], data.per_class, "Classes")));
  byId("figures").append(...parts);
}

function tellState() {
  const minutes = Math.floor((Date.now() / 1000 - data.written) / 60), time = new Date(1000 * data.written).toLocaleTimeString();
  byId("state").textContent = data.running
    ? `running; written at ${time}${minutes >= 5 ? `, ${count(minutes, "minute")} ago: is the run still there?` : ""}`
    : data.state;
  byId("state").classList.toggle("running", data.running && minutes < 5);
}

// ------------------------------------------------------------------------------------------------------- renewal

const regions = () => [...document.querySelectorAll(".pictures, .scroll")];

function renew() {
  if (document.hidden) return;
  // The browser keeps the place on the page; that within its parts is kept here.
  history.replaceState(regions().map((region) => [region.scrollLeft, region.scrollTop]), "");
  location.reload();
}

makePage();
if (data.written) tellState();
if (data.running) {
  (history.state ?? []).forEach(([left, top], number) => regions()[number]?.scrollTo(left, top));
  setInterval(renew, 1000 * data.renewed_after);
  document.addEventListener("visibilitychange", renew);
}
