// The strip of results: each is kept as the PNG files that the page made, which carry prompt, settings and map.
// "results" brings the pictures of a run; "files-to-restore" hands those of an old one to the desk.
const root = element.querySelector(".history");
const list = root.querySelector("ul");
const dialog = root.querySelector("dialog");
const button = (name) => root.querySelector(`[data-action=${name}]`);
let entries = []; // newest first: { id, pictures: [{ name, caption, blob }], prompt }
let ticked = [], last = null;

async function add(pictures, prompt) {
  const first = pictures?.[0]?.image.url;
  if (!first || first === last) return; // a run that ended without pictures leaves those of the one before
  last = first;
  const files = await Promise.all(pictures.map(async ({ image, caption }) => {
    const blob = await fetch(image.url).then((answer) => answer.blob());
    return { name: image.orig_name || decodeURIComponent(image.url.split("/").at(-1)), caption: caption || "", blob };
  }));
  const entry = { id: Date.now(), pictures: files, prompt };
  entries.unshift(entry);
  await kept.put("results", entry.id, entry);
  for (const old of entries.splice(KEPT)) kept.remove("results", old.id);
  show();
}

function show() {
  for (const image of list.querySelectorAll("img")) URL.revokeObjectURL(image.src);
  list.replaceChildren(...entries.map(item));
  ticked = ticked.filter((id) => entries.some((entry) => entry.id === id));
  root.querySelector("[data-out=count]").textContent = entries.length ? `${entries.length} kept` : "";
  update();
}

function update() {
  button("compare").disabled = ticked.length !== 2;
  button("zip").disabled = button("clear").disabled = !entries.length;
}

function made(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function item(entry, index) {
  const [first] = entry.pictures, title = `${entry.prompt || "No prompt"}, ${first.caption}`;
  const image = made("img", { src: URL.createObjectURL(first.blob), alt: title });
  const take = made("button", { type: "button", className: "hi-take", title: `Bring back: ${title}` }, image);
  take.tabIndex = index ? -1 : 0; // one stop for Tab, arrows inside
  take.addEventListener("click", () => {
    const files = entry.pictures.map(({ name, blob }) => new File([blob], name, { type: "image/png" }));
    dispatchEvent(new CustomEvent("files-to-restore", { detail: files }));
  });
  const tick = made("input", { type: "checkbox", checked: ticked.includes(entry.id), tabIndex: take.tabIndex });
  tick.setAttribute("aria-label", `Compare ${title}`);
  tick.addEventListener("change", () => {
    ticked = tick.checked ? [...ticked, entry.id].slice(-2) : ticked.filter((id) => id !== entry.id);
    for (const [k, other] of [...list.querySelectorAll("input")].entries()) other.checked = ticked.includes(entries[k].id);
    update();
  });
  const drop = made("button", { type: "button", className: "hi-drop", tabIndex: take.tabIndex, textContent: "×", title: "Delete" });
  drop.setAttribute("aria-label", `Delete ${title}`);
  drop.addEventListener("click", () => remove([entry]));
  const count = entry.pictures.length > 1 ? [made("span", { className: "hi-count", textContent: entry.pictures.length })] : [];
  const line = made("div", { className: "hi-line" }, made("label", {}, tick, "compare"), drop);
  return made("li", {}, take, ...count, line, made("p", { className: "hi-note", textContent: entry.prompt }));
}

function remove(some) {
  entries = entries.filter((entry) => !some.includes(entry));
  for (const entry of some) kept.remove("results", entry.id);
  show();
  (list.querySelector("button") || button("zip")).focus();
}

list.addEventListener("keydown", (event) => {
  const items = [...list.children], at = items.findIndex((one) => one.contains(event.target));
  const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: items.length - 1 }[event.key];
  if (to === undefined || !items[to]) return;
  event.preventDefault();
  for (const [k, one] of items.entries()) for (const part of one.querySelectorAll("button, input")) part.tabIndex = k === to ? 0 : -1;
  items[to].querySelector("button").focus();
});

button("compare").addEventListener("click", () => {
  const figures = ticked.map((id) => entries.find((entry) => entry.id === id)).map(({ pictures: [first], prompt }) => {
    const image = made("img", { src: URL.createObjectURL(first.blob), alt: prompt });
    return made("figure", {}, image, made("figcaption", { textContent: `${prompt} (${first.caption})` }));
  });
  dialog.querySelector("div").replaceChildren(...figures);
  dialog.showModal();
});
button("zip").addEventListener("click", async () => {
  const files = entries.flatMap(({ id, pictures }) => pictures.map(({ name, blob }) => [`${id}_${name}`, blob]));
  save(await zip(files), "results.zip");
});
button("clear").addEventListener("click", () => confirm("Delete all results that are kept here?") && remove(entries.slice()));

addEventListener("results", ({ detail: [pictures, prompt] }) => add(pictures, prompt));
kept.all("results").then((all) => {
  entries = all.sort((a, b) => b.id - a.id);
  show();
});
