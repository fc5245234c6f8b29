// What belongs to the page as a whole: keys, announcements, dropped files, the address, and the work that survives a
// reload. Gradio calls this body once with `element`, `props`, `trigger` and `upload`. Other parts speak to it through
// events of the window: "work", "prompt", "hint-to-save", "link-to-copy", "files-to-restore".
const root = element.querySelector(".desk");
const dialog = root.querySelector("dialog");
const told = root.querySelector("[data-out=told]");
const OWN_LINK = "controlnet-own-link"; // the address that this tab made or has loaded already

function say(text) {
  if (text && told.textContent !== text) told.textContent = text;
}

// ---- keys ----
function isWriting(target) {
  return target.closest?.("input:not([type=radio], [type=checkbox], [type=range], [type=button]), textarea, select, [contenteditable]");
}

addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    event.stopPropagation();
    document.querySelector("#generate").click();
  } else if (event.key === "?" && !isWriting(event.target) && !dialog.open) {
    event.preventDefault();
    dialog.showModal();
  }
}, true);
root.querySelector("[data-action=keys]").addEventListener("click", () => dialog.showModal());

// ---- names and stops that gradio's own parts lack ----
// Gradio mounts its parts in no certain order.
function whenThere(selector, use) {
  const look = () => document.querySelector(selector);
  if (look()) return use(look());
  const observer = new MutationObserver(() => look() && (observer.disconnect(), use(look())));
  observer.observe(document.body, { childList: true, subtree: true });
}

whenThere("#condition input", () => {
  for (const radio of document.querySelectorAll("#condition input")) radio.name = "condition"; // one stop for Tab
});
whenThere("#examples", (examples) => {
  const stop = roving(examples, ".gallery button");
  const name = () => { // gradio makes the buttons anew now and then
    for (const [k, button] of [...examples.querySelectorAll(".gallery button")].entries()) {
      button.setAttribute("aria-label", `Example: ${props.examples[k]}`);
    }
    stop();
  };
  new MutationObserver(name).observe(examples, { childList: true, subtree: true });
  name();
});

// Rows of buttons that belong together are one stop.
for (const [row, buttons, label] of [
  ["#picture", ".source-selection button", ""],
  ["#ways", "button", "Ways to a hint"],
  ["#saving", "button", "Save the hint"],
]) {
  whenThere(row, (box) => {
    if (label) box.setAttribute("role", "toolbar"), box.setAttribute("aria-label", label);
    const stop = roving(box, buttons);
    new MutationObserver(() => stop()).observe(box, {
      childList: true, subtree: true, attributes: true, attributeFilter: ["class", "disabled"],
    });
    stop();
  });
}

// ---- announcements: the status changes with every step, and is told once for a run ----
let lastTold = "";
function announce() {
  const status = document.querySelector("#waiting .run-status") || document.querySelector("#status .run-status");
  const text = status ? status.textContent.trim().split(", about")[0] : "";
  const isStep = /^(Working|Step|Decoding|Picture)/.test(text);
  const news = isStep ? "Generating." : text;
  if (news !== lastTold) say((lastTold = news));
}

// ---- files that are dropped anywhere: one of ours restores, any other is the picture ----
async function take(files, whole) {
  const paths = [];
  for (const file of files) paths.push((await upload(file)).path);
  trigger("restore", { paths, whole });
}

addEventListener("dragover", (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault(), true);
addEventListener("drop", async (event) => {
  const file = event.dataTransfer?.files[0];
  if (!file) return;
  if (event.target.closest?.("#more-controls [data-testid=image], #class-map")) return; // a picture of that control
  event.preventDefault(); // else the browser would leave the page for the file
  event.stopPropagation();
  event.target.dispatchEvent(new DragEvent("dragleave", { bubbles: true })); // what was marked as a target is none
  if (await isOurs(file)) return take([file], false);
  document.querySelector("#picture [aria-label='Remove Image'], #picture [aria-label='Clear']")?.click();
  whenThere("#picture input[type=file]", (input) => {
    const list = new DataTransfer();
    list.items.add(file);
    input.files = list.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  });
}, true);
addEventListener("files-to-restore", ({ detail }) => take(detail, true));

// ---- the work ----
let touched = false, waiting = null, picture = {};
for (const name of ["pointerdown", "keydown", "drop"]) addEventListener(name, () => (touched = true), true);

async function keep([file, ...values]) {
  if (!file) picture = {};
  else if (file.url !== picture.url) {
    const blob = await fetch(file.url).then((answer) => answer.blob()).catch(() => null);
    picture = { url: file.url, name: file.orig_name || "picture.png", blob };
  }
  const plain = JSON.parse(JSON.stringify(values)); // gradio hands over proxies, which no store takes
  await kept.put("work", props.page, { values: plain, name: picture.name, blob: picture.blob });
}

addEventListener("work", ({ detail }) => {
  if (!touched) return; // what the page opens with is nobody's work
  clearTimeout(waiting);
  waiting = setTimeout(() => keep(detail), 250);
});

root.querySelector("[data-action=new]").addEventListener("click", async () => {
  clearTimeout(waiting);
  picture = {};
  await kept.remove("work", props.page);
  history.replaceState(null, "", location.pathname + location.search);
  trigger("new");
});

// ---- the address ----
function remember(hash) {
  sessionStorage.setItem(OWN_LINK, hash);
}

function openLink() {
  remember(location.hash);
  trigger("open", { link: location.hash });
}

async function open() {
  if (location.hash.length > 1 && location.hash !== sessionStorage.getItem(OWN_LINK)) return openLink();
  const work = await kept.get("work", props.page);
  if (!work) return;
  let path = null;
  if (work.blob) {
    const sent = await upload(new File([work.blob], work.name)).catch(() => null);
    path = sent?.path;
  }
  trigger("open", { work: JSON.stringify({ values: work.values, picture: path }) });
}

addEventListener("hashchange", () => location.hash.length > 1 && openLink());
addEventListener("link", ({ detail: [link] }) => {
  if (!link) return;
  history.replaceState(null, "", `#${link}`);
  remember(location.hash);
});
addEventListener("link-to-copy", async () => {
  const button = document.querySelector("#copy-link");
  const done = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  const text = button.textContent;
  say((button.textContent = done ? "Copied" : "Copy it from the address bar"));
  setTimeout(() => (button.textContent = text), 2500);
});

// ---- maps as files ----
addEventListener("hint-to-save", async ({ detail: [map, sheet, kind] }) => {
  const value = map || sheet;
  if (!value) return say("There is nothing to save yet.");
  const indices = unpack(value.runs, value.width * value.height);
  const isMap = value === map, colours = isMap && kind === "colours";
  const bytes = colours ? new Uint8Array(indices.length * 3) : indices;
  if (colours) indices.forEach((index, at) => bytes.set(props.palette[index], at * 3));
  const name = isMap ? `map_${kind}` : "drawing";
  save(await png(value.width, value.height, bytes, colours ? 3 : 1), `${name}.png`);
});

for (const id of ["waiting", "status"]) whenThere(`#${id}`, (part) => {
  new MutationObserver(announce).observe(part, { childList: true, subtree: true, characterData: true });
});
whenThere("#history .history", () => setTimeout(open)); // the last part: then the page's own listeners are there
