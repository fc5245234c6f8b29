// The map editor: a board over class indices. What is painted is an index, so every colour is exact by construction.
// Gradio calls this body once with `element`, `props` and `watch`; `props.value` is the map as editors/label_map.py packs it.
const root = element.querySelector(".map-editor");
const classes = props.classes; // [[name, "#rrggbb", whether the model can draw it, [other words], place of its icon], ...]
const TOOLS = { b: "brush", f: "fill", e: "erase", p: "pick", l: "line", r: "rectangle", o: "lasso" };
let current = 0, chosen = false, highlighted = null, share = classes.map(() => 0);

const board = makeBoard(root, {
  keys: TOOLS,
  ink: (tool) => (tool === "erase" ? null : current), // the eraser brings back what was there at first
  size: (width, height) => Math.max(2, Math.round(Math.min(width, height) / 18)),
  picked: choose,
  hover: (label) => tell(classes[label][0]),
  changed() {
    listClasses();
    const { width, height, id, values } = board.state;
    props.value = { width, height, runs: pack(values), id, edited: true };
  },
  colors(lut) {
    const seen = board.state.picture ? board.find("opacity").value / 100 : 1;
    classes.forEach(([, hex], label) => {
      const [red, green, blue] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
      const alpha = Math.round(seen * (highlighted === null || highlighted === label ? 255 : 40));
      lut[label] = ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
  },
});
const { find } = board;
const list = root.querySelector(".me-classes");
const stopInList = roving(list, "button");
if (props.icons) list.style.setProperty("--icons", `url("${props.icons}")`);
const byName = classes.map((_, index) => index).sort((a, b) => classes[a][0].localeCompare(classes[b][0])); // slow, so once
const items = classes.map((_, index) => classItem(index));

function tell(text) {
  const note = find("note", "out");
  if (note.textContent !== text) note.textContent = text;
}

// ---- legend and class list, in one ----
function shares() {
  const counts = new Uint32Array(256), { values } = board.state;
  if (values) for (let at = 0; at < values.length; at++) counts[values[at]]++;
  return classes.map((_, index) => (values ? counts[index] / values.length : 0));
}

// The classes of the map, largest first, for other parts of the page.
function tellClasses() {
  const held = classes.map(([name, color], index) => [name, color, share[index]]).filter(([, , part]) => part > 0);
  const detail = held.sort((a, b) => b[2] - a[2]).map(([name, color]) => [name, color]);
  dispatchEvent(new CustomEvent("classes", { detail }));
}

function listClasses() {
  share = shares();
  tellClasses();
  classes.forEach((_, index) => showItem(index));
  const words = find("search").value.trim();
  const rows = words ? foundRows(words) : allRows();
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  if (rows.length !== list.children.length || rows.some((row, k) => row !== list.children[k])) list.replaceChildren(...rows);
  const here = focused && list.contains(focused) ? focused : null;
  stopInList(here || items[current].querySelector("button"));
  here?.focus({ preventScroll: true });
  const label = find("current", "out");
  label.textContent = classes[current][0];
  label.style.setProperty("--swatch", classes[current][1]);
}

const headings = {};
function heading(text) {
  return (headings[text] ||= Object.assign(document.createElement("li"), { className: "me-rest", textContent: text }));
}

function allRows() {
  const present = byName.filter((index) => share[index] > 0).sort((a, b) => share[b] - share[a]);
  const absent = byName.filter((index) => share[index] === 0);
  const rest = (text, some) => (some.length ? [heading(text), ...some.map((index) => items[index])] : []);
  return [
    ...present.map((index) => items[index]),
    ...rest("not in the map", absent.filter((index) => classes[index][2])),
    ...rest("this model cannot draw", absent.filter((index) => !classes[index][2])),
  ];
}

// The best first; what the map holds and what the model can draw decide between equals.
function foundRows(words) {
  const found = findClasses(classes, words, (a, b) => share[b] - share[a] || classes[b][2] - classes[a][2]);
  if (found.length) return found.map((index) => items[index]);
  tell(`No such class: ${words}.`);
  return [Object.assign(document.createElement("li"), { className: "me-rest", textContent: `No such class: ${words}.` })];
}

function classItem(index) {
  const [name, color, drawable, , place] = classes[index];
  const item = document.createElement("li");
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.dataset.index = index;
  if (!drawable) Object.assign(button, { className: "me-undrawable", title: "This model cannot draw it." });
  button.style.setProperty("--swatch", color);
  button.append(Object.assign(document.createElement("span"), { textContent: name }), document.createElement("i"));
  if (props.icons && place !== null) {
    const icon = Object.assign(document.createElement("b"), { className: "me-icon" });
    icon.style.setProperty("--place", place);
    button.prepend(icon);
  }
  button.addEventListener("click", () => choose(index));
  button.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && share[index] > 0 && highlight(index));
  button.addEventListener("pointerleave", () => highlight(null));
  item.append(button);
  return item;
}

function showItem(index) {
  const button = items[index].firstChild, part = share[index];
  const text = part === 0 ? "" : part < 0.001 ? "<0.1%" : `${(100 * part).toFixed(part < 0.1 ? 1 : 0)}%`;
  if (button.lastChild.textContent !== text) button.lastChild.textContent = text;
  const pressed = String(index === current);
  if (button.getAttribute("aria-pressed") !== pressed) button.setAttribute("aria-pressed", pressed);
}

function choose(index) {
  current = index;
  chosen = true;
  highlight(null);
  if (board.tool === "erase" || board.tool === "pick") board.selectTool("brush");
  listClasses();
  const verb = board.tool === "fill" ? "Fill" : board.tool[0].toUpperCase() + board.tool.slice(1);
  tell(`${verb} paints ${classes[index][0]}.${classes[index][2] ? "" : " This model cannot draw it."}`);
}

function highlight(index) {
  if (highlighted === index) return;
  highlighted = index;
  board.repaint();
}

find("search").addEventListener("input", listClasses);
find("search").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  list.querySelector("button")?.click();
});

function receive() {
  if (!board.receive(props.value)) return;
  if (!board.state.values) {
    share = shares();
    return tellClasses();
  }
  if (!chosen) current = board.state.values[0]; // something that the map knows
  listClasses();
}

addEventListener("classes-wanted", tellClasses);
watch("value", receive);
receive();
listClasses();
