// Chips for the words that a small model learned, and the names of those in the prompt that it never saw. What it knows
// comes with `props.choices` and `props.words` from its world.json; without, nothing is shown. "prompt" brings the text.
const root = element.querySelector(".words");
const choices = props.choices || {}; // kind -> choice -> phrases; the first is written, all are recognised
const words = new Set(props.words || []);
const box = root.querySelector(".wo-all");
let prompt = "";

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
// The longest phrase of a choice in the prompt, or nothing.
function phraseOf(phrases) {
  const found = phrases.filter((phrase) => new RegExp(`(?<![a-z])${escaped(phrase)}(?![a-z])`, "i").test(prompt));
  return found.sort((a, b) => b.length - a.length)[0];
}

function spoken(kind) {
  for (const [choice, phrases] of Object.entries(choices[kind])) {
    const phrase = choice && phraseOf(phrases);
    if (phrase) return [choice, phrase];
  }
  return ["", phraseOf(choices[kind][""] || [])];
}

function write(text) {
  const field = document.querySelector("#prompt textarea");
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
  read(text);
}

function choose(kind, choice) {
  const [before, phrase] = spoken(kind);
  const [wanted = ""] = choices[kind][before === choice ? "" : choice] || [];
  if (phrase) {
    const replaced = prompt.replace(new RegExp(`(?<![a-z])${escaped(phrase)}(?![a-z])`, "i"), wanted);
    write(replaced.replace(/\s*,\s*(,\s*)+/g, ", ").replace(/ {2,}/g, " ").replace(/ ,/g, ",").replace(/^[,\s]+|[,\s]+$/g, ""));
  } else write(prompt.trim() ? `${prompt.trim().replace(/,$/, "")}, ${wanted}` : wanted);
}

function read(text) {
  prompt = text || "";
  for (const button of box.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(spoken(button.dataset.kind)[0] === button.dataset.choice));
  }
  const unknown = [...new Set(prompt.toLowerCase().match(/[a-z]+(?:'[a-z]+)?/g) || [])].filter((word) => !words.has(word));
  const line = words.size && unknown.length ? `This model has never seen: ${unknown.slice(0, 8).join(", ")}.` : "";
  const out = root.querySelector("[data-out=unknown]");
  if (out.textContent !== line) out.textContent = line;
}

for (const [kind, known] of Object.entries(choices)) {
  const group = document.createElement("span");
  group.className = "wo-kind";
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", kind);
  group.append(Object.assign(document.createElement("b"), { textContent: kind }));
  for (const choice of Object.keys(known).filter(Boolean)) {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: choice });
    Object.assign(button.dataset, { kind, choice });
    if ("" in known && CSS.supports("color", choice)) { // the colour of a thing shows itself
      button.textContent = "";
      button.style.background = choice;
      button.className = "wo-colour";
      button.title = `${choice} ${kind}`;
      button.setAttribute("aria-label", button.title);
    }
    button.addEventListener("click", () => choose(kind, choice));
    group.append(button);
  }
  box.append(group);
}
root.hidden = !box.children.length;
roving(box, "button")();
addEventListener("prompt", ({ detail: [text] }) => read(text));
document.addEventListener("input", ({ target }) => target.closest("#prompt") && read(target.value));
read(props.prompt);
