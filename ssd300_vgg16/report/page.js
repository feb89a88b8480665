// The page about detections: boxes over untouched pictures, and with ground truth what is right and wrong about them.
// From top to bottom: data, matching, state, tallies, marks, gallery, large view, figures, suspicious labels, start.

// ---------------------------------------------------------------------------------------------------------- data

const images = data.files.length;
const detections = columns(data.detections);
detections.scores = Float64Array.from(data.detections.scores, (score) => score / 100000);
const objects = truth ? columns(data.objects) : columns({ ends: new Array(images).fill(0), boxes: [], classes: [] });
const crowd = new Set(truth ? data.objects.crowd : []);
const ignored = new Set(truth ? data.objects.ignored : []);
const sizes = new Map(); // of images that were shown: [width, height] in the pixels that boxes refer to
// Where each file name stands among all, sorted as people count: 2 before 10.
const byName = data.files.map((_, image) => image).sort((a, b) => collator().compare(data.files[a], data.files[b]));

function columns({ ends, boxes, classes }) {
  const starts = [0, ...ends.slice(0, -1)];
  return { starts, ends, boxes: Float64Array.from(boxes), classes: Uint16Array.from(classes), count: classes.length };
}

function collator() {
  return (collator.one ??= new Intl.Collator("en", { numeric: true }));
}

const rowsOf = (table, image) => Array.from({ length: table.ends[image] - table.starts[image] }, (_, place) => table.starts[image] + place);
const boxOf = (table, row) => table.boxes.subarray(4 * row, 4 * row + 4);
const linkOf = (image) => data.folder + data.links[image];
const pictureOf = (image) => data.copies[image] ?? linkOf(image);

function learnSize(image, { naturalWidth, naturalHeight }) {
  sizes.set(image, data.sizes[image] ?? [naturalWidth, naturalHeight]);
}

// ------------------------------------------------------------------------------------------------------ matching

const ALARM = 0, HIT = 1, NOT_COUNTED = 2;

// The part of the first box inside of a crowd, or the intersection over union. Boxes are x, y, width, height.
function overlap(tableA, a, tableB, b, isCrowd) {
  const [ax, ay, aw, ah] = boxOf(tableA, a), [bx, by, bw, bh] = boxOf(tableB, b);
  const width = Math.min(aw + ax, bw + bx) - Math.max(ax, bx), height = Math.min(ah + ay, bh + by) - Math.max(ay, by);
  if (width <= 0 || height <= 0) return 0;
  const shared = width * height;
  return shared / (isCrowd ? aw * ah : aw * ah + bw * bh - shared);
}

// Detections of each image, the best first.
const ranked = data.files.map((_, image) => rowsOf(detections, image).sort((a, b) => detections.scores[b] - detections.scores[a]));

// COCO's rule: a detection takes the object of its class that it overlaps most and that no better one has taken; an
// ignored one only if there is no other. What is scored lower never matters: one matching serves all score thresholds.
function match(iou) {
  const became = new Uint8Array(detections.count), object = new Int32Array(detections.count).fill(-1);
  const finder = new Int32Array(objects.count).fill(-1);
  for (let image = 0; image < images; image++) {
    const rows = rowsOf(objects, image).sort((a, b) => ignored.has(a) - ignored.has(b));
    if (!rows.length) continue;
    for (const detection of ranked[image]) {
      let best = Math.min(iou, 1 - 1e-10), taken = -1;
      for (const row of rows) {
        if (objects.classes[row] !== detections.classes[detection]) continue;
        if (finder[row] >= 0 && !crowd.has(row)) continue;
        if (taken >= 0 && !ignored.has(taken) && ignored.has(row)) break;
        const shared = overlap(detections, detection, objects, row, crowd.has(row));
        if (shared >= best) [best, taken] = [shared, row];
      }
      if (taken < 0) continue;
      finder[taken] = detection;
      object[detection] = taken;
      became[detection] = ignored.has(taken) ? NOT_COUNTED : HIT;
    }
  }
  return { iou, became, object, finder };
}

// --------------------------------------------------------------------------------------------------------- state

const SORTS = {
  ...(truth && { worst: "worst first" }),
  name: "file name",
  many: "most detections",
  few: "fewest detections",
  sure: "highest score",
  unsure: "lowest score",
};
const SHOWS = { all: "all images", misses: "with misses", alarms: "with false alarms", wrong: "with errors", right: "without errors" };
const MARKS = truth
  ? { hit: "✓ hits", alarm: "✗ false alarms", missed: "○ missed", label: "all labels" }
  : { plain: "detections" };
const defaults = {
  threshold: data.threshold,
  iou: 0.5,
  off: new Set(),
  query: "",
  sort: Object.keys(SORTS)[0],
  show: "all",
  marks: new Set(Object.keys(MARKS).filter((mark) => mark !== "label")),
  tab: "images",
  pair: "",
  image: null,
};
let state = { ...defaults };
let matching = match(state.iou);
let tallies;
let order = [];

// The view as a link: only what differs from the beginning.
function hashOf() {
  const hash = new URLSearchParams();
  if (state.threshold !== defaults.threshold) hash.set("score", state.threshold.toFixed(2));
  if (state.iou !== defaults.iou) hash.set("iou", state.iou.toFixed(2));
  if (state.off.size) hash.set("off", [...state.off].join("."));
  for (const name of ["query", "sort", "show", "tab", "pair"]) if (state[name] !== defaults[name]) hash.set(name, state[name]);
  const marks = [...state.marks].join(".");
  if (marks !== [...defaults.marks].join(".")) hash.set("marks", marks);
  if (state.image !== null) hash.set("image", data.files[state.image]);
  return hash.toString();
}

function stateOf(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const number = (name, low, high) => {
    const value = parseFloat(given.get(name));
    return value >= low && value <= high ? value : defaults[{ score: "threshold" }[name] ?? name];
  };
  const among = (name, choices) => (Object.hasOwn(choices, given.get(name)) ? given.get(name) : defaults[name]);
  const list = (name) => (given.get(name) ?? "").split(".").filter(Boolean);
  const image = data.files.indexOf(given.get("image"));
  return {
    threshold: number("score", 0, 1),
    iou: number("iou", 0.1, 0.95),
    off: new Set(list("off").map(Number).filter((one) => one in classes)),
    query: given.get("query") ?? "",
    sort: among("sort", SORTS),
    show: among("show", SHOWS),
    marks: given.has("marks") ? new Set(list("marks").filter((mark) => Object.hasOwn(MARKS, mark))) : new Set(defaults.marks),
    tab: truth ? among("tab", { images: 0, figures: 0, labels: 0 }) : "images",
    pair: /^-?\d+_-?\d+$/.test(given.get("pair") ?? "") && truth ? given.get("pair") : "",
    image: image < 0 ? null : image,
  };
}

let frame = 0, saving = 0;

// Change the view; it is drawn once a frame, however often it changes.
function change(changes) {
  state = { ...state, ...changes };
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    render();
  });
}

function saveView() {
  clearTimeout(saving);
  saving = setTimeout(() => {
    const hash = hashOf();
    if (location.hash.slice(1) !== hash) history.replaceState(null, "", hash ? `#${hash}` : "#");
  }, 150);
}

// ------------------------------------------------------------------------------------------------------- tallies

const isOn = (detection) => detections.scores[detection] > state.threshold && !state.off.has(detections.classes[detection]);
const isFound = (object) => matching.finder[object] >= 0 && detections.scores[matching.finder[object]] > state.threshold;

// Of each image and each class: detections, hits, false alarms and misses above the threshold.
function tally() {
  const empty = () => ({ shown: 0, hits: 0, alarms: 0, misses: 0, best: 0, least: 1 });
  const add = (one, became, score) => {
    one.shown++;
    if (became === HIT) one.hits++;
    else if (became === ALARM) one.alarms++;
    if (score > one.best) one.best = score;
    if (score < one.least) one.least = score;
  };
  const ofImage = Array.from({ length: images }, empty), ofClass = classes.map(empty), all = empty();
  for (let image = 0; image < images; image++) {
    for (const row of ranked[image]) {
      const score = detections.scores[row];
      if (score <= state.threshold) break; // all that follow are scored lower
      const name = detections.classes[row];
      add(ofClass[name], matching.became[row], score);
      if (state.off.has(name)) continue;
      add(ofImage[image], matching.became[row], score);
      add(all, matching.became[row], score);
    }
    for (const row of rowsOf(objects, image)) {
      if (ignored.has(row) || isFound(row)) continue;
      const name = objects.classes[row];
      for (const one of state.off.has(name) ? [ofClass[name]] : [ofClass[name], ofImage[image], all]) one.misses++;
    }
  }
  return { ofImage, ofClass, all };
}

function rates({ hits, alarms, misses }) {
  const precision = hits + alarms ? hits / (hits + alarms) : 0, recall = hits + misses ? hits / (hits + misses) : 0;
  return { precision, recall, f1: 2 * hits + alarms + misses ? (2 * hits) / (2 * hits + alarms + misses) : 0 };
}

// Which class was seen for which: pairs of a label and a detection of another class that neither has found a partner of
// its own. -1 stands for background: a miss, or a false alarm. Hits are pairs of a class with itself.
function confusions() {
  const pairs = [];
  for (let image = 0; image < images; image++) {
    const left = [];
    for (const row of rowsOf(objects, image)) {
      if (ignored.has(row) || state.off.has(objects.classes[row])) continue;
      if (isFound(row)) pairs.push([objects.classes[row], objects.classes[row], image]);
      else left.push(row);
    }
    for (const detection of ranked[image]) {
      if (!isOn(detection) || matching.became[detection] !== ALARM) continue;
      let best = Math.min(matching.iou, 1 - 1e-10), place = -1;
      left.forEach((row, at) => {
        const shared = overlap(detections, detection, objects, row, false);
        if (shared >= best) [best, place] = [shared, at];
      });
      const label = place < 0 ? -1 : objects.classes[left.splice(place, 1)[0]];
      pairs.push([label, detections.classes[detection], image]);
    }
    for (const row of left) pairs.push([objects.classes[row], -1, image]);
  }
  return pairs;
}

function pairInWords(label, seen) {
  if (seen < 0) return `${classes[label]} missed`;
  return label < 0 ? `${classes[seen]} where no label is` : `${classes[label]} seen as ${classes[seen]}`;
}

function chooseImages() {
  const wanted = state.query.trim().toLowerCase();
  const of = tallies.ofImage, errors = (image) => of[image].misses + of[image].alarms;
  const shown = {
    all: () => true,
    misses: (image) => of[image].misses > 0,
    alarms: (image) => of[image].alarms > 0,
    wrong: (image) => errors(image) > 0,
    right: (image) => errors(image) === 0,
  }[state.show];
  const confused = state.pair && new Set(confusions().filter((pair) => `${pair[0]}_${pair[1]}` === state.pair).map((pair) => pair[2]));
  const chosen = byName.filter(
    (image) => shown(image) && (!confused || confused.has(image)) && (!wanted || data.files[image].toLowerCase().includes(wanted)),
  );
  const rank = {
    name: null,
    worst: (image) => -errors(image),
    many: (image) => -of[image].shown,
    few: (image) => of[image].shown,
    sure: (image) => -of[image].best,
    unsure: (image) => (of[image].shown ? of[image].least : 2),
  }[state.sort];
  return rank ? chosen.sort((a, b) => rank(a) - rank(b)) : chosen; // stable: equal ones stay in order of their names
}

const figure = (value) => (value < 0 || value === undefined ? "–" : value.toFixed(3));

// --------------------------------------------------------------------------------------------------------- marks

// What is to be drawn of an image: the least certain first, so that the others lie on top.
function marksOf(image) {
  const marks = [];
  for (const row of rowsOf(objects, image)) {
    const name = objects.classes[row];
    if (state.off.has(name)) continue;
    const missed = !ignored.has(row) && !isFound(row);
    const kind = missed && state.marks.has("missed") ? "missed" : state.marks.has("label") ? "label" : null;
    if (kind) marks.push({ kind, box: boxOf(objects, row), name, score: null, object: row });
  }
  for (const row of [...ranked[image]].reverse()) {
    if (!isOn(row)) continue;
    const kind = truth ? ["alarm", "hit", "ignored"][matching.became[row]] : "plain";
    if (state.marks.has(kind === "ignored" ? "hit" : kind))
      marks.push({ kind, box: boxOf(detections, row), name: detections.classes[row], score: detections.scores[row], detection: row });
  }
  return marks;
}

// How an image lies in a frame that shows all of it.
function fitted([imageWidth, imageHeight], width, height) {
  const scale = Math.min(width / imageWidth, height / imageHeight);
  return { scale, left: (width - scale * imageWidth) / 2, top: (height - scale * imageHeight) / 2, width, height };
}

// ------------------------------------------------------------------------------------------------------- gallery

const gallery = byId("gallery");
const CROWDED = 8; // marks in a small picture, beyond which tags say no more than what is wrong
const cards = new Map(); // by place in the order; only those of the rows in sight are there
let grid = { across: 1, wide: 200, high: 200, gap: 12, picture: 150 };
let focused = 0; // the place that the tabulator key comes to

function layOut() {
  const width = gallery.clientWidth, narrow = width < 600;
  const gap = narrow ? 8 : 14, across = Math.max(1, Math.floor((width + gap) / ((narrow ? 155 : 250) + gap)));
  const wide = Math.floor((width - gap * (across - 1)) / across), picture = Math.round(wide * 0.75);
  const before = JSON.stringify(grid);
  grid = { across, wide, picture, gap, high: picture + (narrow ? 30 : 34) + gap };
  gallery.style.height = `${Math.ceil(order.length / across) * grid.high}px`;
  if (before !== JSON.stringify(grid)) emptyGallery();
}

function emptyGallery() {
  cards.clear();
  gallery.replaceChildren();
}

// Put in the cards of the rows in sight and of one beyond them, and take out the others.
function fillGallery() {
  if (byId("images").hidden) return;
  const above = -gallery.getBoundingClientRect().top;
  const first = Math.max(0, Math.floor(above / grid.high) - 1) * grid.across;
  const last = Math.min(order.length, (Math.ceil((above + innerHeight) / grid.high) + 1) * grid.across);
  const held = document.activeElement?.closest?.(".card");
  for (const [place, card] of cards) {
    if ((place < first || place >= last) && card !== held) {
      card.remove();
      cards.delete(place);
    }
  }
  for (let place = first; place < last; place++) if (!cards.has(place)) addCard(place);
}

function addCard(place) {
  const image = order[place];
  const picture = element("img", { alt: "", decoding: "async", draggable: "false" });
  const frame = element("span", { class: "frame" }, picture, element("svg", { "aria-hidden": "true" }));
  const caption = element("span", { class: "caption" }, element("span", { class: "name" }, data.files[image]), element("span", { class: "counts" }));
  const button = element("button", { type: "button", tabindex: place === focused ? 0 : -1, title: data.files[image] }, frame, caption);
  const card = element("div", { class: "card", role: "listitem", "aria-posinset": place + 1, "aria-setsize": order.length }, button);
  card.style.width = `${grid.wide}px`;
  card.style.height = `${grid.high - grid.gap}px`;
  const row = Math.floor(place / grid.across), column = place % grid.across;
  card.style.transform = `translate(${column * (grid.wide + grid.gap)}px, ${row * grid.high}px)`;
  card.place = place;
  card.image = image;
  button.addEventListener("click", () => openViewer(order.map((one) => ({ image: one })), place));
  button.addEventListener("focus", () => (focused = place));
  picture.addEventListener("load", () => {
    learnSize(image, picture);
    drawCard(card);
  });
  picture.addEventListener("error", () => frame.classList.add("broken"));
  picture.src = pictureOf(image);
  cards.set(place, card);
  // In the order of places, in which a screen reader goes through them.
  gallery.insertBefore(card, [...gallery.children].find((other) => other.place > place) ?? null);
  drawCard(card);
}

function drawCard(card) {
  const of = tallies.ofImage[card.image], counts = card.querySelector(".counts");
  const inWords = truth
    ? `${count(of.hits, "hit")}, ${count(of.misses, "missed", "missed")}, ${count(of.alarms, "false alarm")}`
    : count(of.shown, "detection");
  card.firstChild.setAttribute("aria-label", `${data.files[card.image]}: ${inWords}`);
  const parts = truth ? [["hit", "✓", of.hits], ["missed", "○", of.misses], ["alarm", "✗", of.alarms]] : [["", "", of.shown]];
  counts.replaceChildren(...parts.filter((part) => part[2] || !part[0]).map(([name, sign, number]) => element("span", { class: name }, `${sign}${sign && " "}${number}`)));
  if (sizes.has(card.image))
    drawMarks(card.querySelector("svg"), marksOf(card.image), fitted(sizes.get(card.image), grid.wide - 2, grid.picture), 11, CROWDED);
}

function renderGallery() {
  const before = order;
  order = chooseImages();
  const same = before.length === order.length && before.every((image, place) => image === order[place]);
  const held = document.activeElement?.closest?.(".card");
  if (!same) {
    focused = 0;
    emptyGallery();
  }
  layOut();
  fillGallery();
  if (same) for (const card of cards.values()) drawCard(card);
  if (!same && held) cards.get(0)?.firstChild.focus({ preventScroll: true });
  const [label, seen] = state.pair.split("_").map(Number);
  const told = order.length === images ? count(images, "image") : `${order.length.toLocaleString("en")} of ${count(images, "image")}`;
  const left = data.detections.left_out ? `; the page has the ${detections.count.toLocaleString("en")} best detections, not ${count(data.detections.left_out, "other")}` : "";
  const none = !truth && !detections.count ? `; nothing on ${images === 1 ? "it" : "them"} is scored above ${data.threshold}` : "";
  const below = !truth && !none && state.threshold < data.threshold ? `; detections scored up to ${data.threshold} were not written` : "";
  const parts = [told + left + none + below];
  if (state.pair) {
    const off = () => change({ pair: "" });
    parts.push(" ", element("button", { type: "button", class: "chip", onclick: off }, `only: ${pairInWords(label, seen)} ✕`));
  }
  byId("count").replaceChildren(...parts);
  if (!order.length) gallery.replaceChildren(element("p", { class: "nothing" }, "No image is left: choose other filters."));
}

// Arrow keys go from card to card.
gallery.addEventListener("keydown", (event) => {
  const card = event.target.closest(".card");
  const rows = Math.max(1, Math.floor(innerHeight / grid.high));
  const steps = {
    ArrowLeft: -1, ArrowRight: 1, ArrowUp: -grid.across, ArrowDown: grid.across,
    PageUp: -rows * grid.across, PageDown: rows * grid.across, Home: -Infinity, End: Infinity,
  };
  if (!card || !(event.key in steps) || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  focusCard(Math.max(0, Math.min(order.length - 1, card.place + steps[event.key])));
});

function focusCard(place) {
  const bar = byId("bar").offsetHeight, top = gallery.getBoundingClientRect().top + Math.floor(place / grid.across) * grid.high;
  if (top < bar) scrollBy(0, top - bar - grid.gap);
  else if (top + grid.high > innerHeight) scrollBy(0, top + grid.high - innerHeight);
  fillGallery();
  const former = cards.get(focused)?.firstChild;
  if (former) former.tabIndex = -1;
  const button = cards.get(place)?.firstChild;
  if (button) button.tabIndex = 0;
  button?.focus({ preventScroll: true });
  focused = place;
}

// ---------------------------------------------------------------------------------------------------- large view

const viewer = byId("viewer"), stage = byId("stage"), stageImage = byId("stage-image"), stageBoxes = byId("stage-boxes");
let sequence = [], at = 0; // what the arrow keys go through: images, some with a box to look at
let view = null; // how the image lies on the stage, as drawMarks takes it; zoom 1 shows all of it
let chosen = null; // the mark under the pointer in the list
let opener = null;

function openViewer(items, place) {
  sequence = items;
  opener = document.activeElement;
  if (!viewer.open) viewer.showModal();
  goTo(place);
  stage.focus();
}

function goTo(place) {
  if (!(place in sequence)) return;
  at = place;
  chosen = null;
  view = null;
  const { image } = sequence[at];
  state.image = image;
  stageImage.classList.remove("broken");
  stageImage.style.visibility = "hidden"; // until the new one is there: boxes never lie over another image
  stageBoxes.replaceChildren();
  stageImage.src = pictureOf(image);
  stageImage.alt = data.files[image];
  byId("viewer-name").textContent = data.files[image];
  byId("viewer-place").textContent = `${(at + 1).toLocaleString("en")} of ${sequence.length.toLocaleString("en")}`;
  byId("previous").disabled = at === 0;
  byId("next").disabled = at === sequence.length - 1;
  renderViewer();
  if (at + 1 in sequence) new Image().src = pictureOf(sequence[at + 1].image);
  saveView();
}

stageImage.addEventListener("load", () => {
  if (!viewer.open) return;
  learnSize(state.image, stageImage);
  stageImage.style.visibility = "";
  fit();
});

function fit() {
  if (!sizes.has(state.image)) return;
  view = { ...fitted(sizes.get(state.image), stage.clientWidth, stage.clientHeight), zoom: 1 };
  const box = sequence[at].box;
  if (box) {
    // A suspicious label: so near that its box takes a third of the stage.
    const wanted = Math.min(stage.clientWidth / box[2], stage.clientHeight / box[3]) / 3 / view.scale;
    zoom(Math.max(1, Math.min(wanted, 6)), (box[0] + box[2] / 2) * view.scale + view.left, (box[1] + box[3] / 2) * view.scale + view.top, true);
  }
  drawStage();
}

// Zoom by a factor, where the point (x, y) of the stage stays in place, or comes to the middle.
function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2, centred = false) {
  if (!view) return;
  const bounded = Math.min(40, Math.max(1, view.zoom * factor)) / view.zoom;
  const [toX, toY] = centred ? [stage.clientWidth / 2, stage.clientHeight / 2] : [x, y];
  view.zoom *= bounded;
  view.scale *= bounded;
  view.left = toX - (x - view.left) * bounded;
  view.top = toY - (y - view.top) * bounded;
  drawStage();
}

function pan(dx, dy) {
  if (!view) return;
  view.left += dx;
  view.top += dy;
  drawStage();
}

function drawStage() {
  if (!view) return;
  const [width, height] = sizes.get(state.image);
  // The image stays in sight: it fills the stage, or lies in its middle.
  for (const [edge, length, space] of [["left", width * view.scale, stage.clientWidth], ["top", height * view.scale, stage.clientHeight]])
    view[edge] = length <= space ? (space - length) / 2 : Math.min(0, Math.max(space - length, view[edge]));
  stageImage.style.width = `${width}px`;
  stageImage.style.transform = `translate(${view.left}px, ${view.top}px) scale(${view.scale})`;
  const marks = marksOf(state.image);
  drawMarks(stageBoxes, marks, view, 13, Infinity, marks.find((mark) => same(mark, chosen)) ?? null);
}

const same = (a, b) => b !== null && a.detection === b.detection && a.object === b.object;

const HEADINGS = { missed: "Missed", alarm: "False alarms", hit: "Hits", plain: "Detections", ignored: "Not counted", label: "Labels" };

function renderViewer() {
  if (!viewer.open || state.image === null) return;
  const marks = marksOf(state.image).reverse(), parts = [];
  for (const [kind, heading] of Object.entries(HEADINGS)) {
    const ofKind = marks.filter((mark) => mark.kind === kind);
    if (!ofKind.length) continue;
    parts.push(element("h3", { class: kind }, `${heading} (${ofKind.length})`));
    parts.push(element("ul", {}, ...ofKind.map((mark) => element("li", {}, markButton(mark)))));
  }
  if (!parts.length) parts.push(element("p", {}, "Nothing at this score."));
  const link = element("a", { href: linkOf(state.image), target: "_blank", rel: "noopener" }, "open the image file");
  byId("viewer-list").replaceChildren(...parts, element("p", {}, link));
  drawStage();
}

function markButton(mark) {
  // The kinds of errors are those at an overlap of half.
  const kind = mark.kind === "alarm" && state.iou === 0.5 ? data.kinds[data.detections.kinds[mark.detection]] : "";
  const choose = (one) => () => {
    chosen = one;
    drawStage();
  };
  const button = element(
    "button",
    { type: "button", onfocus: choose(mark), onmouseenter: choose(mark), onblur: choose(null), onmouseleave: choose(null) },
    swatch(mark.name, mark.kind),
    element("span", { class: "what" }, classes[mark.name]),
  );
  if (kind && kind !== "hit") button.append(element("span", { class: "why" }, kind));
  if (mark.score !== null) button.append(element("span", { class: "score" }, percent(mark.score)));
  button.addEventListener("click", () => {
    if (!view) return;
    const centre = [0, 1].map((axis) => (mark.box[axis] + mark.box[axis + 2] / 2) * view.scale + [view.left, view.top][axis]);
    zoom(view.zoom < 2 ? 2.5 : 1, ...centre, true);
  });
  return button;
}

viewer.addEventListener("close", () => {
  state.image = null;
  saveView();
  const place = order.indexOf(sequence[at]?.image);
  if (state.tab === "images" && place >= 0) focusCard(place);
  else opener?.focus?.();
});

viewer.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const done = {
    ArrowLeft: () => goTo(at - 1), ArrowRight: () => goTo(at + 1), Home: () => goTo(0), End: () => goTo(sequence.length - 1),
    "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: fit,
    ...(view?.zoom > 1 && !event.target.closest("#viewer-list") && { ArrowUp: () => pan(0, 80), ArrowDown: () => pan(0, -80) }),
  }[event.key];
  if (!done) return;
  event.preventDefault();
  done();
});

const BUTTONS = {
  previous: () => goTo(at - 1), next: () => goTo(at + 1), close: () => viewer.close(),
  "zoom-in": () => zoom(1.5), "zoom-out": () => zoom(1 / 1.5), "zoom-fit": fit,
};
for (const [id, act] of Object.entries(BUTTONS)) byId(id).addEventListener("click", act);
stage.tabIndex = -1;

stage.addEventListener("wheel", (event) => {
  event.preventDefault();
  const area = stage.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0018)), event.clientX - area.left, event.clientY - area.top);
}, { passive: false });

stage.addEventListener("dblclick", (event) => {
  const area = stage.getBoundingClientRect();
  if (view?.zoom > 1.01) fit();
  else zoom(3, event.clientX - area.left, event.clientY - area.top);
});

// One finger or the mouse moves the image, two fingers zoom.
const pointers = new Map();
stage.addEventListener("pointerdown", (event) => {
  pointers.set(event.pointerId, event);
  stage.setPointerCapture(event.pointerId);
  stage.classList.add("dragged");
});
stage.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  if (pointers.size === 1) pan(event.clientX - before.clientX, event.clientY - before.clientY);
  else {
    const other = [...pointers.values()].find((one) => one.pointerId !== event.pointerId);
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    const area = stage.getBoundingClientRect();
    zoom(apart(event) / Math.max(apart(before), 1), (event.clientX + other.clientX) / 2 - area.left, (event.clientY + other.clientY) / 2 - area.top);
  }
  pointers.set(event.pointerId, event);
});
for (const end of ["pointerup", "pointercancel"])
  stage.addEventListener(end, (event) => {
    pointers.delete(event.pointerId);
    if (!pointers.size) stage.classList.remove("dragged");
  });

// ------------------------------------------------------------------------------------------------------- figures

const BINS = 50;

// Detections that are on by score: of each bin [hits, false alarms]; those that do not count are left out.
let counted = {}; // the last one, which the score slider does not change

function histogram() {
  if (counted.matching === matching && counted.off === state.off) return counted.bins;
  const bins = Array.from({ length: BINS }, () => [0, 0]);
  for (let row = 0; row < detections.count; row++) {
    if (state.off.has(detections.classes[row]) || matching.became[row] === NOT_COUNTED) continue;
    bins[Math.min(BINS - 1, Math.floor(detections.scores[row] * BINS))][matching.became[row] === HIT ? 0 : 1]++;
  }
  counted = { matching, off: state.off, bins };
  return bins;
}

// The many detections of hardly any score would leave nothing to see of the others: bars higher than this are cut.
function highestOf(bins) {
  const highest = Math.max(1, ...bins.slice(BINS / 10).map(([hits, alarms]) => hits + alarms));
  const shown = Math.min(highest, 3 * Math.max(...bins.map(([hits]) => hits)) || highest);
  return shown === 1 ? 1 : 2 * Math.ceil(shown / 2); // half of it is a number of detections too
}

function histogramBars(bins, width, height, bottom, highest) {
  const wide = width / BINS;
  return bins.flatMap(([hits, alarms], bin) => {
    const [low, high] = [(hits / highest) * height, (alarms / highest) * height].map((length) => Math.min(length, height));
    const place = { x: bin * wide + 0.5, width: Math.max(wide - 1, 0.5) };
    // A line of the paper between them: they are told apart without their colours.
    return [
      element("rect", { ...place, y: bottom - low, height: low, fill: truth ? "var(--hit)" : "var(--accent)" }),
      element("rect", { ...place, y: Math.max(bottom - height, bottom - low - high), height: Math.min(high, height - low), fill: truth ? "var(--alarm)" : "var(--accent)", "fill-opacity": truth ? 0.75 : 1 }),
    ];
  });
}

function renderSparkline() {
  // The middle of the slider's knob, 16 pixels wide, goes from end to end of the bars.
  const svg = byId("sparkline"), width = svg.clientWidth - 16, bins = histogram();
  if (width <= 0) return;
  const at = { x1: state.threshold * width, x2: state.threshold * width, y1: 0, y2: 24 };
  const line = element("line", { ...at, stroke: "var(--ink)", "stroke-width": 1.5 });
  svg.replaceChildren(element("g", { transform: "translate(8 0)" }, ...histogramBars(bins, width, 23, 24, highestOf(bins)), line));
}

// Recall and precision of detections by falling score, of a class or (null) of all that are on.
function curve(number) {
  const meant = (name) => (number === null ? !state.off.has(name) : name === number);
  const rows = [];
  detections.classes.forEach((name, row) => meant(name) && matching.became[row] !== NOT_COUNTED && rows.push(row));
  const asked = objects.classes.filter((name, row) => meant(name) && !ignored.has(row)).length;
  if (!asked) return [];
  rows.sort((a, b) => detections.scores[b] - detections.scores[a]);
  let hits = 0;
  const points = rows.map((row, place) => [(hits += matching.became[row] === HIT) / asked, hits / (place + 1)]);
  // The best precision at this recall or further on, as AP takes it.
  for (let place = points.length - 2; place >= 0; place--) points[place][1] = Math.max(points[place][1], points[place + 1][1]);
  const step = Math.ceil(points.length / 400);
  return points.filter((_, place) => place % step === 0 || place === points.length - 1);
}

const TENTHS = [0, 0.2, 0.4, 0.6, 0.8, 1].map((value) => [value, String(value)]);
const MAX_CURVES = 20; // of classes: more are not told apart
let curveClass = null;

function renderCurves(panel) {
  const svg = panel.querySelector("svg"), width = svg.clientWidth, height = 300;
  const margins = { left: 34, top: 22, right: 12, bottom: 38 };
  const { parts, x, y } = axes(width, height, margins, TENTHS, TENTHS, "recall", "precision");
  const line = (points, attributes) =>
    element("path", { d: pathOf(points.map(([recall, precision]) => [x(recall), y(precision)])), fill: "none", "stroke-linejoin": "round", ...attributes });
  const present = classes.map((_, number) => number).filter((number) => tallies.ofClass[number].hits + tallies.ofClass[number].misses && !state.off.has(number));
  const shown = present.length > 1 && present.length <= MAX_CURVES ? present : [];
  for (const number of shown)
    if (number !== curveClass)
      parts.push(line(curve(number), { stroke: colourOf(number), "stroke-width": 1.5, "stroke-opacity": curveClass === null ? 0.9 : 0.35, "stroke-dasharray": dashOf(number) }));
  const now = rates(curveClass === null ? tallies.all : tallies.ofClass[curveClass]);
  parts.push(
    line(curve(curveClass), { stroke: "var(--ink)", "stroke-width": 3 }),
    element("circle", { cx: x(now.recall), cy: y(now.precision), r: 6, fill: "var(--card)", stroke: "var(--ink)", "stroke-width": 2.5 }),
  );
  showChart(svg, height, `Precision against recall. Now: precision ${figure(now.precision)}, recall ${figure(now.recall)}.`, parts);
  const key = shown.map((number) => element("span", {}, keyLine({ stroke: colourOf(number), "stroke-dasharray": dashOf(number) }), classes[number]));
  panel.querySelector(".key").replaceChildren(...key);
}

function renderHistogram(panel) {
  const svg = panel.querySelector("svg"), width = svg.clientWidth, height = 300, bins = histogram();
  const margins = { left: 56, top: 22, right: 12, bottom: 38 };
  const highest = highestOf(bins);
  const ys = (highest > 1 ? [0, 0.5, 1] : [0, 1]).map((share) => [share, Math.round(share * highest).toLocaleString("en")]);
  const { parts, x } = axes(width, height, margins, TENTHS, ys, "score", "detections");
  const bars = histogramBars(bins, width - margins.left - margins.right, height - margins.top - margins.bottom, height - margins.bottom, highest);
  parts.push(
    element("g", { transform: `translate(${margins.left} 0)` }, ...bars),
    element("line", { x1: x(state.threshold), x2: x(state.threshold), y1: margins.top, y2: height - margins.bottom, stroke: "var(--ink)", "stroke-width": 2, "stroke-dasharray": "4 3" }),
  );
  showChart(svg, height, `Detections by score; above the threshold ${count(tallies.all.hits, "hit")} and ${count(tallies.all.alarms, "false alarm")}.`, parts);
}

// What does not depend on the sliders is made once.
function makeFigures() {
  const { metrics } = data;
  const numbers = [
    ["AP50", "AP at IoU 0.5"], ["AP", "AP, 0.5 to 0.95"], ["AP75", "AP at IoU 0.75"], ["AP_small", "AP, small"],
    ["AP_medium", "AP, medium"], ["AP_large", "AP, large"], ["AR_100", "recall, 0.5 to 0.95"],
  ];
  const overall = numbersOf(numbers.map(([name, text]) => [text, figure(metrics[name])]));
  const gains = Object.keys(data.errors).map((kind) => metrics.errors[kind].AP50_gain), most = Math.max(0.01, ...gains);
  const errors = Object.entries(data.errors).map(([kind, meaning], place) => {
    const bar = element("span");
    bar.style.width = `${(100 * gains[place]) / most}%`; // nothing where there is nothing to gain
    return [element("span", {}, kind, element("small", {}, meaning)), metrics.errors[kind].count.toLocaleString("en"), `+${gains[place].toFixed(3)}`, element("td", { class: "bar-cell" }, bar)];
  });
  const choice = element("select", { "aria-label": "Class of the thick curve", onchange: (event) => {
    curveClass = event.target.value === "" ? null : Number(event.target.value);
    renderFigures();
  } }, element("option", { value: "" }, "all classes"), ...classes.map((name, number) => element("option", { value: number }, name)));
  const chart = () => element("svg", { class: "chart", role: "img" });
  const curves = panel("Precision and recall", `The ring is where the slider stands${classes.length > MAX_CURVES ? "" : "; thin lines are the classes"}.`, false, chart(), element("div", { class: "key" }));
  curves.id = "curves";
  curves.querySelector("h2").append(choice);
  const scores = panel("Scores", "Good detectors have hits on the right and false alarms on the left. The dashed line is the slider; bars that are higher than the chart are cut.", false, chart(),
    element("div", { class: "key" }, element("span", {}, element("i", { class: "hit" }), "hits, below"), element("span", {}, element("i", { class: "alarm" }), "false alarms, above")));
  scores.id = "scores";
  const rest = metrics.errors;
  byId("figures").replaceChildren(
    panel("Average precision", "", true, overall),
    curves,
    scores,
    panel("Typical errors", `At IoU 0.5, of detections of any score, and what mending all of a kind would add to the AP of ${rest.AP50.toFixed(3)}. Without any false alarm it would be ${(rest.AP50 + rest.without_false_alarms).toFixed(3)}, without any miss ${(rest.AP50 + rest.without_misses).toFixed(3)}. The definition is TIDE's.`, true,
      tableOf(["error", "count", "AP50", ""], errors, "Typical errors")),
    element("section", { class: "panel wide", id: "per-class" }),
    element("section", { class: "panel wide", id: "confusion" }),
  );
}

const MAX_CONFUSED = 24;

function renderFigures() {
  if (byId("figures").hidden) return;
  renderCurves(byId("curves"));
  renderHistogram(byId("scores"));
  const { per_class: measured, best_f1: best } = data.metrics;
  const rows = classes.map((name, number) => {
    const now = rates(tallies.ofClass[number]), all = measured[name], good = best.per_class[name];
    return [name, all.objects.toLocaleString("en"), ...["AP", "AP50", "AP_small", "AP_medium", "AP_large"].map((key) => figure(all[key])),
      figure(now.precision), figure(now.recall), figure(now.f1), `${good.f1.toFixed(3)} at ${good.score_threshold.toFixed(2)}`];
  });
  byId("per-class").replaceChildren(
    element("h2", {}, "Classes"),
    element("p", {}, `Precision, recall and F1 at a score above ${state.threshold.toFixed(2)} and IoU ${state.iou.toFixed(2)}.`),
    tableOf(["class", "objects", "AP", "AP50", "small", "medium", "large", "precision", "recall", "F1", "best F1"], rows, "Figures of each class"),
  );
  renderConfusion(byId("confusion"));
}

function renderConfusion(panel) {
  const counts = new Map(), wrong = new Map();
  for (const [label, seen] of confusions()) {
    counts.set(`${label}_${seen}`, (counts.get(`${label}_${seen}`) ?? 0) + 1);
    for (const one of label === seen ? [label] : [label, seen]) wrong.set(one, (wrong.get(one) ?? 0) + (label !== seen));
  }
  const present = [...wrong.keys()].filter((one) => one >= 0).sort((a, b) => wrong.get(b) - wrong.get(a));
  const shown = present.slice(0, MAX_CONFUSED).sort((a, b) => a - b);
  const rows = [...shown, -1].map((label) => {
    const total = [...shown, -1].reduce((sum, seen) => sum + (counts.get(`${label}_${seen}`) ?? 0), 0);
    const cells = [...shown, -1].map((seen) => {
      if (label < 0 && seen < 0) return element("td", {});
      const number = counts.get(`${label}_${seen}`) ?? 0;
      const what = `${pairInWords(label, seen)}: ${number}`;
      const cell = element("button", { type: "button", disabled: !number, class: label === seen ? "right" : null, title: what, "aria-label": what, onclick: () => {
        change({ pair: `${label}_${seen}`, tab: "images", show: "all", query: "" });
        scrollTo(0, 0);
      } }, number || "·");
      if (number) cell.style.background = `rgba(var(--cell), ${(0.06 + 0.4 * number / total).toFixed(3)})`;
      return element("td", {}, cell);
    });
    return [label < 0 ? "no label" : classes[label], ...cells];
  });
  const more = present.length > MAX_CONFUSED ? ` Shown are the ${MAX_CONFUSED} classes with the most errors.` : "";
  panel.replaceChildren(
    element("h2", {}, "What is taken for what"),
    element("p", {}, `Rows are the labels, columns what was seen, at a score above ${state.threshold.toFixed(2)} and IoU ${state.iou.toFixed(2)}. A number opens its images.${more}`),
    tableOf(["label", ...shown.map((seen) => classes[seen]), "missed"], rows, "Confusion matrix"),
  );
}

// ---------------------------------------------------------------------------------------------- suspicious labels

const ABOUT = {
  "no label": ["Seen, but not labelled", "Sure detections on what the labels call background."],
  "other class": ["Labelled as something else", "Sure detections of another class right on a label."],
  "unseen label": ["Labelled, but not seen", "Labels that no detection comes near, the largest first."],
};
const AT_A_TIME = 48;

function makeSuspicions() {
  const section = byId("labels"), all = data.suspicions;
  const file = element("a", { href: data.suspicions_file, download: true }, data.suspicions_file);
  const cut = data.all_suspicions > all.length ? ` The page shows the first ${all.length.toLocaleString("en")}.` : "";
  const intro = element("p", {}, `${count(data.all_suspicions, "label")} worth a second look, for what the detector makes of them at any setting of the sliders.${cut} As a table to work through: `, file);
  const items = all.map(([kind, image, label, seen, score, box]) => ({ kind, image, label, seen, score, box }));
  const parts = Object.entries(ABOUT).flatMap(([kind, [title, text]]) => {
    const ofKind = items.filter((item) => item.kind === kind);
    if (!ofKind.length) return [];
    const list = element("ul", { class: "suspicions" });
    const more = element("button", { type: "button", class: "more" }, "Show more");
    const grow = () => {
      for (const item of ofKind.slice(list.children.length, list.children.length + AT_A_TIME)) list.append(suspicionItem(item, items));
      more.hidden = list.children.length >= ofKind.length;
    };
    more.addEventListener("click", grow);
    grow();
    return [element("h2", {}, `${title} (${ofKind.length.toLocaleString("en")})`), element("p", {}, text), list, more];
  });
  section.replaceChildren(...(items.length ? [intro, ...parts] : [element("p", {}, "No label stands out as suspicious.")]));
}

function suspicionItem(item, items) {
  const { kind, image, label, seen, score, box } = item;
  const found = `${classes[seen]} ${percent(score)}`;
  const text = { "no label": found, "other class": `${found}, labelled ${classes[label]}` }[kind] ?? classes[label];
  const picture = element("img", { alt: "", decoding: "async", loading: "lazy" });
  const svg = element("svg", { "aria-hidden": "true" }), crop = element("span", { class: "crop" }, picture, svg);
  picture.addEventListener("load", () => {
    learnSize(image, picture);
    picture.style.width = `${sizes.get(image)[0]}px`;
    // The box takes half of the square.
    const side = 92, scale = Math.min(side / 2 / Math.max(box[2], box[3], 8), 4);
    const left = side / 2 - (box[0] + box[2] / 2) * scale, top = side / 2 - (box[1] + box[3] / 2) * scale;
    picture.style.transform = `translate(${left}px, ${top}px) scale(${scale})`;
    const place = { x: box[0] * scale + left, y: box[1] * scale + top, width: box[2] * scale, height: box[3] * scale };
    const dash = seen < 0 ? MARK_DASHES.missed : null;
    svg.replaceChildren(...outlined(place, colourOf(seen < 0 ? label : seen), 2, dash, "suspicion"));
  });
  picture.addEventListener("error", () => crop.classList.add("broken"));
  picture.src = pictureOf(image); // after its listeners
  const words = element("span", {}, element("strong", {}, text), element("small", {}, data.files[image]));
  return element("li", {}, element("button", { type: "button", onclick: () => openViewer(items, items.indexOf(item)) }, crop, words));
}

// --------------------------------------------------------------------------------------------------------- start

let telling = 0;

function renderBar() {
  byId("threshold").value = state.threshold;
  byId("threshold-value").textContent = state.threshold.toFixed(2);
  byId("iou").value = state.iou;
  byId("iou-value").textContent = state.iou.toFixed(2);
  const { all } = tallies, now = rates(all), withAny = tallies.ofImage.filter((of) => of.shown).length;
  const rows = truth
    ? [["✓ hits", all.hits, "hit"], ["○ missed", all.misses, "missed"], ["✗ false alarms", all.alarms, "alarm"],
       ["precision", figure(now.precision)], ["recall", figure(now.recall)], ["F1", figure(now.f1)]]
    : [["detections", all.shown], ["images with any", withAny], ["images without", images - withAny]];
  byId("tally").replaceChildren(...rows.map(([name, value, kind]) =>
    element("div", { "data-name": name.replace(/^\W+/, "") }, element("dt", {}, name), element("dd", { class: kind ?? null }, value.toLocaleString("en")))));
  clearTimeout(telling);
  telling = setTimeout(() => (byId("told").textContent = rows.map(([name, value]) => `${name.replace(/^\W+/, "")} ${value}`).join(", ")), 600);
  renderSparkline();
}

function renderControls() {
  byId("query").value = state.query;
  byId("sort").value = state.sort;
  byId("show").value = state.show;
  for (const box of byId("marks").querySelectorAll("input")) box.checked = state.marks.has(box.value);
  for (const chip of byId("classes").querySelectorAll("[data-class]")) {
    const number = Number(chip.dataset.class), of = tallies.ofClass[number];
    chip.setAttribute("aria-pressed", !state.off.has(number));
    chip.querySelector("small").textContent = of.shown.toLocaleString("en");
  }
  for (const name of ["images", "figures", "labels"]) {
    const on = state.tab === name;
    byId(name).hidden = !on;
    byId(`tab-${name}`).setAttribute("aria-selected", on);
    byId(`tab-${name}`).tabIndex = on ? 0 : -1;
  }
}

function render() {
  if (matching.iou !== state.iou) matching = match(state.iou);
  tallies = tally();
  renderBar();
  renderControls();
  renderGallery();
  if (truth) renderFigures();
  renderViewer();
  saveView();
}

function makeControls() {
  document.body.classList.toggle("with-truth", truth);
  for (const [id, choices] of [["sort", SORTS], ["show", SHOWS]]) {
    byId(id).append(...Object.entries(choices).map(([value, text]) => element("option", { value }, text)));
    byId(id).addEventListener("change", (event) => change({ [id]: event.target.value }));
  }
  for (const [id, read] of [["query", String], ["threshold", Number], ["iou", Number]])
    byId(id).addEventListener("input", (event) => change({ [id]: read(event.target.value) }));
  const toggled = (set, one) => {
    const other = new Set(set);
    if (!other.delete(one)) other.add(one);
    return other;
  };
  for (const [mark, text] of Object.entries(MARKS)) {
    const box = element("input", { type: "checkbox", value: mark, onchange: () => change({ marks: toggled(state.marks, mark) }) });
    byId("marks").append(element("label", { class: "tick" }, box, keyLine({ stroke: "currentColor", "stroke-dasharray": MARK_DASHES[mark] }), text));
  }
  const used = new Set([...detections.classes, ...objects.classes]);
  const chips = [...used].sort((a, b) => a - b).map((number) =>
    element("button", { type: "button", class: "chip", "data-class": number, title: `${classes[number]}: click to switch on or off, double-click to see no other`,
      onclick: () => change({ off: toggled(state.off, number) }),
      ondblclick: () => change({ off: new Set([...used].filter((one) => one !== number)) }),
    }, swatch(number), element("span", { class: "what" }, classes[number]), element("small")));
  byId("classes").append(...chips);
  byId("classes").hidden = !chips.length;
  if (chips.length > 1) byId("classes").append(element("button", { type: "button", class: "chip", onclick: () => change({ off: state.off.size ? new Set() : new Set(used) }) }, "all / none"));
  if (truth) {
    const { f1, score_threshold: best } = data.metrics.best_f1;
    byId("best").textContent = `Best F1 at ${best.toFixed(2)}`;
    byId("best").hidden = !f1; // where nothing hits
    byId("best").addEventListener("click", () => change({ threshold: best, iou: 0.5 }));
    makeFigures();
    makeSuspicions();
  }
  const tabs = ["images", "figures", "labels"];
  tabs.forEach((name, place) => {
    byId(name).setAttribute("role", truth ? "tabpanel" : "region");
    byId(`tab-${name}`).addEventListener("click", () => change({ tab: name }));
    byId(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      const to = tabs[(place + step + tabs.length) % tabs.length];
      change({ tab: to });
      byId(`tab-${to}`).focus();
    });
  });
}

function restore() {
  const wanted = stateOf(location.hash);
  const { image } = wanted;
  state = wanted;
  render();
  if (image === null) {
    if (viewer.open) viewer.close();
  } else if (!viewer.open || sequence[at]?.image !== image) {
    const place = order.indexOf(image);
    if (place >= 0) openViewer(order.map((one) => ({ image: one })), place);
    else openViewer([{ image }], 0);
  }
}

addEventListener("scroll", fillGallery, { passive: true });
addEventListener("hashchange", restore);
addEventListener("resize", () => {
  change({});
  if (viewer.open) fit();
});
makeControls();
restore();
