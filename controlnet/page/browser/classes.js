// The classes of the map as chips beside the field for their prompts: a click names one there. The map editor tells the
// classes with "classes", largest first; "class-words" brings the text where something else than a person wrote it.
const root = element.querySelector(".classes");
const box = root.querySelector(".cl-all");
const stop = roving(box, "button");
let held = []; // [[name, "#rrggbb"], ...]
let steersByMap = true;

const field = () => document.querySelector("#class-words textarea");
const entries = (text) => text.split(/[;\n]/).map((part) => part.trim()).filter(Boolean);
const nameOf = (entry) => entry.split(":")[0].trim().toLowerCase();

function read(text) {
  const named = entries(text || "").map(nameOf);
  for (const button of box.children) button.setAttribute("aria-pressed", String(named.includes(button.textContent)));
  const names = held.map(([name]) => name);
  const missing = held.length && steersByMap ? named.filter((name, k) => !names.includes(name) && entries(text)[k].includes(":") && !/^\d+$/.test(name)) : [];
  const line = missing.length ? `The map holds no ${missing.join(" or ")}.` : "";
  const out = root.querySelector("[data-out=missing]");
  if (out.textContent !== line) out.textContent = line;
}

// Puts the caret behind the words of a class, which is added where the field does not name it yet.
function name(label) {
  const area = field();
  const at = new RegExp(`(^|[;\\n])\\s*${label}\\s*:[^;\\n]*`, "i").exec(area.value);
  let end = at ? at.index + at[0].length : 0;
  if (!at) {
    const before = area.value.trim().replace(/;$/, "");
    area.value = `${before}${before ? "; " : ""}${label}: `;
    end = area.value.length;
    area.dispatchEvent(new Event("input", { bubbles: true }));
  }
  area.focus();
  area.setSelectionRange(end, end);
  read(area.value);
}

addEventListener("classes", ({ detail }) => {
  if (JSON.stringify(detail) === JSON.stringify(held)) return;
  held = detail;
  box.replaceChildren(...held.map(([label, color]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: label });
    button.style.setProperty("--swatch", color);
    button.addEventListener("click", () => name(label));
    return button;
  }));
  box.hidden = !held.length || !steersByMap;
  stop();
  read(field()?.value);
});
addEventListener("class-words", ({ detail: [text] }) => read(text));
document.addEventListener("input", ({ target }) => target.closest("#class-words") && read(target.value));
addEventListener("work", ({ detail: [, condition] }) => {
  steersByMap = condition === "seg";
  box.hidden = !held.length || !steersByMap;
  read(field()?.value);
});
box.hidden = true;
dispatchEvent(new CustomEvent("classes-wanted")); // gradio mounts what is folded away when it unfolds
