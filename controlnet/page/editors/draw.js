// The drawing board: a canvas over one value a pixel, 255 where a line is. The eye sees dark lines on paper.
// Gradio calls this body once with `element`, `props` and `watch`; `props.value` is the hint as editors/draw.py packs it.
const root = element.querySelector(".drawing-board");
const canvas = root.querySelector("canvas");
const find = (name, kind = "control") => root.querySelector(`[data-${kind}="${name}"]`);
const MAX_UNDO_BYTES = 48e6;

let width = 0, height = 0, id = null, condition = null;
let lines = null; // Uint8Array, the hint
let undone = [], done = [];
let picture = null, tool = "pen", pointer = null, drawing = false;
const paper = document.createElement("canvas");
const stopInTools = roving(root.querySelector(".db-tools"), "button");

// ---- drawing ----
function paintPaper(x0, y0, x1, y1) {
  const context = paper.getContext("2d");
  const image = context.createImageData(x1 - x0, y1 - y0);
  const sheet = picture ? (find("opacity").value * 255) / 100 : 255;
  for (let y = y0, to = 0; y < y1; y++) {
    for (let x = x0; x < x1; x++, to += 4) {
      const line = lines[y * width + x];
      image.data[to] = image.data[to + 1] = image.data[to + 2] = 255 - line;
      image.data[to + 3] = Math.max(sheet, line);
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
    if (!lines) return;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    if (picture) context.drawImage(picture, 0, 0, width, height);
    context.drawImage(paper, 0, 0);
    if (!pointer) return;
    context.beginPath();
    context.arc(pointer[0] + 0.5, pointer[1] + 0.5, Math.max(1, find("size").value / 2), 0, 7);
    context.strokeStyle = tool === "pen" ? "#0d9488" : "#dc2626";
    context.lineWidth = 1.5 * (width / Math.max(canvas.clientWidth, 1));
    context.stroke();
  });
}

function redrawAll() {
  paintPaper(0, 0, width, height);
  redraw();
}

function dab(x, y) {
  const radius = find("size").value / 2;
  const x0 = Math.max(0, Math.floor(x - radius)), x1 = Math.min(width, Math.ceil(x + radius) + 1);
  const y0 = Math.max(0, Math.floor(y - radius)), y1 = Math.min(height, Math.ceil(y + radius) + 1);
  if (x0 >= x1 || y0 >= y1) return;
  for (let j = y0; j < y1; j++) {
    for (let i = x0; i < x1; i++) {
      if ((i - x) ** 2 + (j - y) ** 2 <= Math.max(radius * radius, 0.5)) lines[j * width + i] = tool === "pen" ? 255 : 0;
    }
  }
  paintPaper(x0, y0, x1, y1);
}

function stroke(from, to) {
  const far = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const steps = Math.max(1, Math.ceil(far / Math.max(1, find("size").value / 4)));
  for (let k = 0; k <= steps; k++) dab(from[0] + ((to[0] - from[0]) * k) / steps, from[1] + ((to[1] - from[1]) * k) / steps);
  redraw();
}

function snapshot() {
  return { lines: lines.slice(), width, height, id, condition, picture };
}

function remember() {
  done.push(snapshot());
  undone = [];
  while (done.length > 1 && done.reduce((sum, one) => sum + one.lines.length, 0) > MAX_UNDO_BYTES) done.shift();
}

function step(from, to) {
  if (!from.length) return;
  if (lines) to.push(snapshot());
  const before = from.pop(), same = lines && before.width === width && before.height === height;
  ({ lines, width, height, id, condition, picture } = before);
  if (!same) fit();
  redrawAll();
  commit();
}

// The canvas for a sheet of this size.
function fit() {
  for (const layer of [canvas, paper]) [layer.width, layer.height] = [width, height];
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
  props.value = { width, height, runs: pack(lines), id, condition, edited: true };
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

function begin(at) {
  remember();
  drawing = true;
  stroke(at, at);
}

function stop() {
  if (!drawing) return;
  drawing = false;
  commit();
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !lines) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  begin((pointer = place(event)));
});
canvas.addEventListener("pointermove", (event) => {
  const to = place(event);
  if (drawing) stroke(pointer, to);
  pointer = to;
  redraw();
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, stop);
canvas.addEventListener("pointerleave", () => {
  pointer = null;
  redraw();
});

canvas.addEventListener("keydown", (event) => {
  if (!lines) return;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const tools = { b: "pen", e: "eraser" };
  const key = event.key.toLowerCase();
  if (moves[event.key]) {
    const reach = event.shiftKey ? 1 : Math.max(1, Math.round(find("size").value / 2));
    const [x, y] = pointer || [width >> 1, height >> 1];
    pointer = [
      Math.min(width - 1, Math.max(0, x + moves[event.key][0] * reach)),
      Math.min(height - 1, Math.max(0, y + moves[event.key][1] * reach)),
    ];
    redraw();
  } else if (key === " ") {
    begin(pointer || (pointer = [width >> 1, height >> 1]));
    stop();
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
find("clear", "action").addEventListener("click", () => {
  if (!lines) return;
  remember();
  lines.fill(0);
  redrawAll();
  commit();
});
find("opacity").addEventListener("input", () => lines && redrawAll());

// ---- what the server sends ----
function receive() {
  const value = props.value;
  if (value && value.edited && value.id === id && lines) return; // our own change, come back
  if (lines) remember(); // so that a sheet which another takes the place of can be had back
  if (!value) {
    lines = null;
    root.dataset.state = "empty";
    return showSteps();
  }
  ({ width, height, id, condition } = value);
  lines = unpack(value.runs, width * height);
  fit();
  picture = null;
  if (value.picture) {
    const image = new Image();
    const mine = id;
    image.onload = () => {
      if (mine === id) [picture] = [image], redrawAll(), showSteps();
    };
    image.src = value.picture;
  }
  showSteps();
  redrawAll();
}

watch("value", receive);
receive();
