// The mask board: a board over one value a pixel, 255 where the picture is drawn anew. The eye sees a tint over it.
// Gradio calls this body once with `element`, `props` and `watch`; `props.value` is the mask as editors/mask.py packs it.
const board = makeBoard(element.querySelector(".mask-board"), {
  keys: { b: "brush", e: "eraser", r: "rectangle", o: "lasso" },
  ink: (tool) => (tool === "eraser" ? 0 : 255),
  size: (width, height) => Math.max(4, Math.round(Math.min(width, height) / 8)),
  changed() {
    const { width, height, id, values } = board.state;
    props.value = { width, height, runs: pack(values), id, edited: true };
    tell();
  },
  colors(lut) {
    const seen = board.find("opacity").value / 100;
    for (let painted = 0; painted < 256; painted++) {
      lut[painted] = ((Math.round(painted * seen) << 24) | 0x5000ff) >>> 0; // blue, green, red: 255, 0, 80 is red
    }
  },
});

function tell() {
  const { values } = board.state, note = board.find("note", "out");
  const share = values ? values.reduce((sum, value) => sum + (value > 0), 0) / values.length : 0;
  const percent = share < 0.1 ? (100 * share).toFixed(1) : Math.round(100 * share);
  const text = share ? `${percent}% is drawn anew, the rest is kept.` : "Nothing is painted: all of it is drawn anew.";
  if (note.textContent !== text) note.textContent = text;
}

watch("value", () => {
  board.receive(props.value);
  tell();
});
board.receive(props.value);
tell();
