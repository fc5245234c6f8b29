// The drawing board: a board over one value a pixel, 255 where a line is. The eye sees dark lines on paper.
// Gradio calls this body once with `element`, `props` and `watch`; `props.value` is the hint as editors/draw.py packs it.
const board = makeBoard(element.querySelector(".drawing-board"), {
  keys: { b: "pen", e: "eraser", l: "line", r: "rectangle" },
  outlines: true,
  ink: (tool) => (tool === "eraser" ? 0 : 255),
  changed() {
    const { width, height, id, condition, values } = board.state;
    props.value = { width, height, runs: pack(values), id, condition, edited: true };
  },
  colors(lut) {
    const sheet = board.state.picture ? (board.find("opacity").value * 255) / 100 : 255;
    for (let line = 0; line < 256; line++) {
      lut[line] = ((Math.max(sheet, line) << 24) | ((255 - line) * 0x010101)) >>> 0;
    }
  },
});

watch("value", () => board.receive(props.value));
board.receive(props.value);
