// What the editors share: a canvas over one value a pixel, tools, pointers, keys, undo and zoom. What an editor says of
// its own: `colors(lut)` (a colour for each of 256 values), `keys` (letter: tool), `ink(tool)` (the value painted, null
// for what was there at first), `changed()`, and where it has them `picked(value)`, `hover(value)`, `outlines`, `size(w, h)`.
function makeBoard(root, editor) {
  const canvas = root.querySelector("canvas");
  const find = (name, kind = "control") => root.querySelector(`[data-${kind}="${name}"]`);
  const NOTHING = { values: null, width: 0, height: 0, id: null };
  const stopInTools = roving(root.querySelector(".ed-tools"), "button");
  const layer = document.createElement("canvas"); // the values in colours, without picture and pointer
  const pen = layer.getContext("2d", { willReadFrequently: true }); // in memory, where it is written
  const lut = new Uint32Array(256);
  let pixels = null, image = null;
  let tool = root.querySelector("[data-tool]").dataset.tool;
  // `pointer` is where the mouse or the arrows are, [x, y, radius]; `gesture` is one that has begun.
  const board = {
    root, canvas, find, state: NOTHING, pointer: null, gesture: null, repaint, redraw, receive, selectTool,
    show, paint, changed, begin, drawTo, end, cancel, // for steps.js and input.js
    get tool() { return tool; },
    get shaping() { return tool in shapes; },
  };
  const steps = makeSteps(board);
  const zoom = makeZoom(canvas, (scale) => {
    find("zoom", "out").textContent = `${Math.round(100 * scale)} %`;
    redraw();
  });

  // ---- what is seen ----
  function show(state) {
    const { width, height } = (board.state = state);
    if (canvas.width !== width || canvas.height !== height || !image) {
      for (const one of [canvas, layer]) [one.width, one.height] = [width, height];
      image = pen.createImageData(width, height);
      pixels = new Uint32Array(image.data.buffer);
      canvas.style.width = `min(100%, ${(68 * width) / height}vh)`;
      zoom.fit();
    }
    root.dataset.state = "ready";
    repaint();
  }

  function repaint() {
    if (!board.state.values) return;
    editor.colors(lut);
    paint([0, 0, board.state.width, board.state.height]);
  }

  function paint([x0, y0, x1, y1]) {
    const { values, width } = board.state;
    for (let y = y0; y < y1; y++) {
      for (let at = y * width + x0, end = y * width + x1; at < end; at++) pixels[at] = lut[values[at]];
    }
    pen.putImageData(image, 0, 0, x0, y0, x1 - x0, y1 - y0);
    redraw();
  }

  let scheduled = false;
  function redraw() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      const { values, width, height, picture } = board.state;
      if (!values) return;
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, width, height);
      if (picture) context.drawImage(picture, 0, 0, width, height);
      context.drawImage(layer, 0, 0);
      if (board.pointer) drawPointer(context, width / Math.max(canvas.getBoundingClientRect().width, 1));
    });
  }

  // The brush, or the shape that would come of letting go; white on black is seen on every colour.
  function drawPointer(context, pixel) {
    const radius = Math.max(1, find("size").value / 2), from = board.gesture?.points[0], [x, y] = board.pointer;
    context.beginPath();
    if (from && tool === "rectangle") {
      context.rect(Math.min(from[0], x), Math.min(from[1], y), Math.abs(x - from[0]) + 1, Math.abs(y - from[1]) + 1);
    } else if (from && (tool === "lasso" || tool === "line")) {
      for (const [i, j] of board.gesture.points.concat([board.pointer])) context.lineTo(i + 0.5, j + 0.5);
      if (tool === "lasso") context.closePath();
    }
    if (!["fill", "pick", "lasso", "rectangle"].includes(tool)) {
      context.moveTo(x + 0.5 + radius, y + 0.5);
      context.arc(x + 0.5, y + 0.5, radius, 0, 7);
    }
    for (const [style, line] of [["rgb(0 0 0 / 70%)", 3], ["white", 1.5]]) {
      context.strokeStyle = style;
      context.lineWidth = line * pixel;
      context.stroke();
    }
  }

  // ---- changing values ----
  // Calls `draw` with a span that paints, and shows what it painted.
  function change(draw) {
    const { values, first, width, height } = board.state, ink = editor.ink(tool);
    const dirty = [width, height, 0, 0];
    draw((y, from, to) => {
      const x0 = Math.max(0, from), x1 = Math.min(width, to);
      if (y < 0 || y >= height || x0 >= x1) return;
      const at = y * width;
      if (ink === null) values.set(first.subarray(at + x0, at + x1), at + x0);
      else values.fill(ink, at + x0, at + x1);
      widen(dirty, [x0, y, x1, y + 1]);
    });
    if (dirty[0] >= dirty[2]) return;
    widen(board.gesture.region, dirty);
    paint(dirty);
  }

  function widen(region, [x0, y0, x1, y1]) {
    if (x0 < region[0]) region[0] = x0;
    if (y0 < region[1]) region[1] = y0;
    if (x1 > region[2]) region[2] = x1;
    if (y1 > region[3]) region[3] = y1;
  }

  function fill([x, y]) {
    const { values, width } = board.state, start = y * width + x, gap = Number(find("gap").value);
    if (values[start] === editor.ink(tool)) return;
    change((span) => {
      if (gap) floodClosed(values, width, start, gap, span);
      else flood(values.slice(), width, start, values[start] ^ 1, span);
    });
  }

  const shapes = {
    line: ({ points }, span) => brushed(points[0], points.at(-1), span),
    lasso: ({ points }, span) => outlined(points, span),
    rectangle({ points }, span) {
      const [[x0, y0, radius], [x1, y1]] = [points[0], points.at(-1)];
      if (!editor.outlines) return box(points[0], points.at(-1), span);
      const corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]].map((corner) => [...corner, radius]);
      for (let k = 0; k < 4; k++) brushed(corners[k], corners[k + 1], span);
    },
  };

  // A gesture is from pressing to letting go, one step of undo. `at` is [x, y, radius].
  function begin(at) {
    const { values, width, height } = board.state;
    if (at[0] < 0 || at[1] < 0 || at[0] >= width || at[1] >= height) return;
    if (tool === "pick") return editor.picked(values[at[1] * width + at[0]]);
    board.gesture = { points: [at], before: values.slice(), region: [width, height, 0, 0] };
    if (tool === "fill") fill(at);
    else if (!shapes[tool]) change((span) => brushed(at, at, span));
    redraw();
  }

  function drawTo(at) {
    const last = board.gesture.points.at(-1);
    board.gesture.points.push(at);
    if (!shapes[tool] && tool !== "fill") change((span) => brushed(last, at, span));
    redraw();
  }

  function end() {
    if (!board.gesture) return;
    if (shapes[tool]) change((span) => shapes[tool](board.gesture, span));
    const { before, region } = board.gesture;
    board.gesture = null;
    redraw();
    if (region[0] >= region[2]) return;
    steps.keep(before, region);
    changed();
  }

  // As if it had not begun: a second finger came, or Escape.
  function cancel() {
    if (!board.gesture) return;
    board.state.values.set(board.gesture.before);
    board.gesture = null;
    repaint();
  }

  function changed() {
    showSteps();
    editor.changed();
  }

  listen(board, editor, steps, zoom);

  // ---- buttons ----
  function selectTool(name) {
    cancel();
    tool = name;
    for (const button of root.querySelectorAll("[data-tool]")) {
      button.setAttribute("aria-checked", String(button.dataset.tool === name));
    }
    if (find("gap")) find("gap").parentElement.hidden = name !== "fill";
    redraw();
  }

  function showSteps() {
    find("undo", "action").disabled = !steps.canUndo;
    find("redo", "action").disabled = !steps.canRedo;
    find("back", "action").hidden = !steps.canUndo;
    stopInTools();
    find("opacity").parentElement.style.visibility = board.state.picture ? "" : "hidden";
  }

  for (const button of root.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => selectTool(button.dataset.tool));
  }
  const actions = { undo: steps.undo, redo: steps.redo, back: steps.undo, fit: zoom.fit, clear };
  Object.assign(actions, { in: () => zoom.step(1.5), out: () => zoom.step(1 / 1.5) });
  for (const [name, act] of Object.entries(actions)) {
    find(name, "action")?.addEventListener("click", () => {
      cancel();
      act();
    });
  }
  function clear() {
    const { values, width, height } = board.state;
    if (!values) return;
    steps.keep(values.slice(), [0, 0, width, height]);
    values.fill(0);
    repaint();
    changed();
  }
  find("opacity").addEventListener("input", repaint);

  // ---- what the server sends ----
  // Whether it was something new, and not our own change come back.
  function receive(value) {
    if (value && value.edited && value.id === board.state.id && board.state.values) return false;
    cancel();
    if (board.state.values) steps.add({ state: board.state }); // what another takes the place of can be had back
    if (value) {
      const { width, height, id, condition } = value, values = unpack(value.runs, width * height);
      const state = { values, first: values.slice(), width, height, id, condition, picture: null };
      if (editor.size) find("size").value = editor.size(width, height);
      show(state);
      if (value.picture) {
        const under = new Image();
        under.onload = () => {
          state.picture = under;
          if (state !== board.state) return;
          repaint();
          showSteps();
        };
        under.src = value.picture;
      }
    } else {
      board.state = NOTHING;
      root.dataset.state = "empty";
    }
    showSteps();
    return true;
  }

  return board;
}

