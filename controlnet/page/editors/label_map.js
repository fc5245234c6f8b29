// The map editor: a canvas over class indices. What is painted is an index, so every colour is exact by construction.
// Gradio calls this body once with `element`, `props` and `watch`; `props.value` is the map as editors/label_map.py packs it.
const root = element.querySelector(".map-editor");
const canvas = root.querySelector("canvas");
const find = (name, kind = "control") => root.querySelector(`[data-${kind}="${name}"]`);
const classes = props.classes; // [[name, "#rrggbb", whether the model can draw it], ...]
const colors = classes.map(([, hex]) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const MAX_UNDO_BYTES = 48e6;

let width = 0, height = 0, id = null;
let labels = null;      // Uint8Array, the map
let firstLabels = null; // what the eraser brings back
let undone = [], done = []; // snapshots: also of maps that another took the place of
let picture = null;     // Image or null
let tool = "brush", current = 0, chosen = false, highlighted = null;
let pointer = null;     // [x, y] in map pixels, or null
let painting = false;
const mapLayer = document.createElement("canvas");
const stopInTools = roving(root.querySelector(".me-tools"), "button");
const stopInList = roving(root.querySelector(".me-classes"), "button");

// ---- drawing ----
function paintLayer(x0, y0, x1, y1) {
  const context = mapLayer.getContext("2d");
  const image = context.createImageData(x1 - x0, y1 - y0);
  for (let y = y0, to = 0; y < y1; y++) {
    for (let x = x0; x < x1; x++, to += 4) {
      const label = labels[y * width + x];
      image.data.set(colors[label], to);
      image.data[to + 3] = highlighted === null || highlighted === label ? 255 : 40;
    }
  }
  context.putImageData(image, x0, y0);
}

let scheduled = false;
function redraw() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    if (!labels) return;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (picture) context.drawImage(picture, 0, 0, width, height);
    context.globalAlpha = picture ? find("opacity").value / 100 : 1;
    context.drawImage(mapLayer, 0, 0);
    context.globalAlpha = 1;
    if (pointer && (tool === "brush" || tool === "erase")) {
      for (const [style, line] of [["rgb(0 0 0 / 70%)", 3], ["white", 1.5]]) {
        context.beginPath();
        context.arc(pointer[0] + 0.5, pointer[1] + 0.5, find("size").value / 2, 0, 7);
        context.strokeStyle = style;
        context.lineWidth = line * (width / Math.max(canvas.clientWidth, 1));
        context.stroke();
      }
    }
  });
}

function redrawAll() {
  paintLayer(0, 0, width, height);
  redraw();
}

// ---- changing the map ----
function dab(x, y) {
  const radius = find("size").value / 2;
  const x0 = Math.max(0, Math.floor(x - radius)), x1 = Math.min(width, Math.ceil(x + radius) + 1);
  const y0 = Math.max(0, Math.floor(y - radius)), y1 = Math.min(height, Math.ceil(y + radius) + 1);
  if (x0 >= x1 || y0 >= y1) return;
  for (let j = y0; j < y1; j++) {
    for (let i = x0; i < x1; i++) {
      if ((i - x) ** 2 + (j - y) ** 2 > radius * radius) continue;
      const at = j * width + i;
      labels[at] = tool === "erase" ? firstLabels[at] : current;
    }
  }
  paintLayer(x0, y0, x1, y1);
}

function stroke(from, to) {
  const steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / Math.max(1, find("size").value / 6)));
  for (let k = 0; k <= steps; k++) dab(from[0] + ((to[0] - from[0]) * k) / steps, from[1] + ((to[1] - from[1]) * k) / steps);
  redraw();
}

function fill(x, y) {
  const start = y * width + x, old = labels[start];
  if (old === current) return;
  const stack = [start];
  while (stack.length) {
    const at = stack.pop();
    if (labels[at] !== old) continue;
    labels[at] = current;
    const column = at % width;
    if (column > 0) stack.push(at - 1);
    if (column < width - 1) stack.push(at + 1);
    if (at >= width) stack.push(at - width);
    if (at < labels.length - width) stack.push(at + width);
  }
  redrawAll();
}

function snapshot() {
  return { labels: labels.slice(), firstLabels, width, height, id, picture };
}

function remember() {
  done.push(snapshot());
  undone = [];
  while (done.length > 1 && done.reduce((sum, one) => sum + one.labels.length, 0) > MAX_UNDO_BYTES) done.shift();
}

function step(from, to) {
  if (!from.length) return;
  if (labels) to.push(snapshot());
  const before = from.pop(), same = labels && before.width === width && before.height === height;
  ({ labels, firstLabels, width, height, id, picture } = before);
  if (!same) fit();
  redrawAll();
  commit();
}

// The canvas for a map of this size.
function fit() {
  for (const layer of [canvas, mapLayer]) [layer.width, layer.height] = [width, height];
  canvas.style.width = `min(100%, ${(68 * width) / height}vh)`;
  root.dataset.state = "ready";
}

function showSteps() {
  find("undo", "action").disabled = !done.length;
  find("redo", "action").disabled = !undone.length;
  find("back", "action").hidden = !done.length;
  stopInTools();
  find("opacity").parentElement.style.visibility = picture ? "" : "hidden";
}

function commit() {
  showSteps();
  listClasses();
  props.value = { width, height, runs: pack(labels), id, edited: true };
}

// ---- legend and class list, in one ----
function shares() {
  const counts = new Array(classes.length).fill(0);
  for (const label of labels) counts[label]++;
  return counts.map((count) => count / labels.length);
}

function listClasses() {
  const words = find("search").value.trim().toLowerCase();
  const share = labels ? shares() : classes.map(() => 0);
  const order = classes.map((_, index) => index).filter((index) => classes[index][0].includes(words));
  const present = order.filter((index) => share[index] > 0).sort((a, b) => share[b] - share[a]);
  const absent = order.filter((index) => share[index] === 0).sort((a, b) => classes[a][0].localeCompare(classes[b][0]));
  const list = root.querySelector(".me-classes");
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.index : null;
  list.replaceChildren(...present.map((index) => classItem(index, share[index])));
  listRest("not in the map", absent.filter((index) => classes[index][2]));
  listRest("this model cannot draw", absent.filter((index) => !classes[index][2]));
  const buttons = [...list.querySelectorAll("button")];
  const again = buttons.find((button) => button.dataset.index === focused);
  stopInList(again || buttons.find((button) => button.dataset.index === String(current)));
  again?.focus({ preventScroll: true });
  const label = find("current", "out");
  label.textContent = classes[current][0];
  label.style.setProperty("--swatch", classes[current][1]);
}

function listRest(text, some) {
  if (!some.length) return;
  const heading = Object.assign(document.createElement("li"), { className: "me-rest", textContent: text });
  root.querySelector(".me-classes").append(heading, ...some.map((index) => classItem(index, 0)));
}

function classItem(index, share) {
  const item = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.dataset.index = index;
  if (!classes[index][2]) Object.assign(button, { className: "me-undrawable", title: "This model cannot draw it." });
  button.setAttribute("aria-pressed", String(index === current));
  button.style.setProperty("--swatch", classes[index][1]);
  const name = Object.assign(document.createElement("span"), { textContent: classes[index][0] });
  const percent = document.createElement("i");
  percent.textContent = share === 0 ? "" : share < 0.001 ? "<0.1%" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)}%`;
  button.append(name, percent);
  button.addEventListener("click", () => choose(index));
  if (share > 0) {
    button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && highlight(index));
    button.addEventListener("pointerleave", () => highlight(null));
  }
  item.append(button);
  return item;
}

function choose(index) {
  current = index;
  chosen = true;
  highlighted = null;
  if (tool !== "fill") selectTool("brush");
  redrawAll();
  listClasses();
  const cannot = classes[index][2] ? "" : " This model cannot draw it.";
  find("note", "out").textContent = `${tool === "fill" ? "Fill" : "Brush"} paints ${classes[index][0]}.${cannot}`;
}

function highlight(index) {
  highlighted = index;
  if (labels) redrawAll();
}

function selectTool(name) {
  tool = name;
  for (const button of root.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-checked", String(button.dataset.tool === name));
  }
  redraw();
}

// ---- what people do ----
function place(event) {
  const box = canvas.getBoundingClientRect();
  return [
    Math.floor(((event.clientX - box.left) * width) / box.width),
    Math.floor(((event.clientY - box.top) * height) / box.height),
  ];
}

function inside([x, y]) {
  return x >= 0 && y >= 0 && x < width && y < height;
}

function use(at) {
  if (!inside(at)) return;
  if (tool === "pick") return choose(labels[at[1] * width + at[0]]);
  remember();
  if (tool === "fill") {
    fill(...at);
    return commit();
  }
  painting = true;
  stroke(at, at);
}

function stopPainting() {
  if (!painting) return;
  painting = false;
  commit();
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !labels) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  use((pointer = place(event)));
});
canvas.addEventListener("pointermove", (event) => {
  const to = place(event);
  if (painting) stroke(pointer, to);
  pointer = to;
  if (labels && inside(to)) find("note", "out").textContent = classes[labels[to[1] * width + to[0]]][0];
  redraw();
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, stopPainting);
canvas.addEventListener("pointerleave", () => {
  pointer = null;
  redraw();
});

canvas.addEventListener("keydown", (event) => {
  if (!labels) return;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const tools = { b: "brush", f: "fill", e: "erase", p: "pick" };
  const key = event.key.toLowerCase();
  if (moves[event.key]) {
    const reach = event.shiftKey ? 1 : Math.max(1, Math.round(find("size").value / 2));
    const [x, y] = pointer || [width >> 1, height >> 1];
    pointer = [
      Math.min(width - 1, Math.max(0, x + moves[event.key][0] * reach)),
      Math.min(height - 1, Math.max(0, y + moves[event.key][1] * reach)),
    ];
    find("note", "out").textContent = classes[labels[pointer[1] * width + pointer[0]]][0];
    redraw();
  } else if (key === " ") {
    use(pointer || (pointer = [width >> 1, height >> 1]));
    stopPainting();
  } else if ((event.ctrlKey || event.metaKey) && (key === "y" || (key === "z" && event.shiftKey))) {
    step(undone, done);
  } else if ((event.ctrlKey || event.metaKey) && key === "z") {
    step(done, undone);
  } else if (tools[key] && !event.ctrlKey && !event.metaKey) {
    selectTool(tools[key]);
  } else {
    return;
  }
  event.preventDefault();
});

for (const button of root.querySelectorAll("[data-tool]")) {
  button.addEventListener("click", () => selectTool(button.dataset.tool));
}
find("undo", "action").addEventListener("click", () => step(done, undone));
find("redo", "action").addEventListener("click", () => step(undone, done));
find("back", "action").addEventListener("click", () => step(done, undone));
find("opacity").addEventListener("input", redraw);
find("search").addEventListener("input", listClasses);
find("search").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  root.querySelector(".me-classes button")?.click();
});

// ---- what the server sends ----
function receive() {
  const value = props.value;
  if (value && value.edited && value.id === id && labels) return; // our own change, come back
  if (labels) remember(); // so that a map which another takes the place of can be had back
  if (!value) {
    labels = null;
    root.dataset.state = "empty";
    return showSteps();
  }
  ({ width, height, id } = value);
  labels = unpack(value.runs, width * height);
  firstLabels = labels.slice();
  fit();
  find("size").value = Math.max(2, Math.round(Math.min(width, height) / 18));
  picture = null;
  if (value.picture) {
    const image = new Image();
    const mine = id;
    image.onload = () => {
      if (mine === id) [picture] = [image], redraw(), showSteps();
    };
    image.src = value.picture;
  }
  showSteps();
  if (!chosen) current = labels[0]; // something that the map knows
  redrawAll();
  listClasses();
}

watch("value", receive);
receive();
listClasses();
