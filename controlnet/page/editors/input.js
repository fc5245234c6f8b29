// Pointers, wheel and keys of a board. One finger or button works with the tool; two fingers, the middle button, or
// space held down move the picture, and the wheel enlarges it.
function listen(board, editor, steps, zoom) {
  const { canvas, find } = board;

  // ---- pointers ----
  const radiusOf = (pressure = 1) => (find("size").value / 2) * Math.max(0.1, pressure);
  function place(event) {
    const seen = canvas.getBoundingClientRect(), { width, height } = board.state;
    const at = [((event.clientX - seen.left) * width) / seen.width, ((event.clientY - seen.top) * height) / seen.height];
    return [...at.map(Math.floor), radiusOf(event.pointerType === "pen" ? event.pressure : 1)];
  }

  const down = new Map(); // fingers and buttons: where each was last
  let moving = false;     // the picture is moved, not painted on, until all are up
  let space = false, panned = false, byKeys = true;

  function middle() {
    const all = [...down.values()], [x, y] = [0, 1].map((i) => all.reduce((sum, one) => sum + one[i], 0) / all.length);
    return { x, y, far: all.length < 2 ? 1 : Math.hypot(all[0][0] - all[1][0], all[0][1] - all[1][1]) || 1 };
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (!board.state.values || event.button > 1) return;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(event.pointerId);
    down.set(event.pointerId, [event.clientX, event.clientY]);
    [board.pointer, byKeys] = [place(event), false];
    if (down.size > 1 || event.button === 1 || space) {
      board.cancel();
      [moving, panned] = [true, true];
    } else if (!moving) board.begin(board.pointer);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!board.state.values) return;
    if (moving && down.has(event.pointerId)) {
      const was = middle();
      down.set(event.pointerId, [event.clientX, event.clientY]);
      const now = middle();
      zoom.pan(now.x - was.x, now.y - was.y);
      if (down.size > 1) zoom.by(now.far / was.far, now.x, now.y);
      return;
    }
    const events = board.gesture && event.getCoalescedEvents?.();
    for (const one of events?.length ? events : [event]) {
      board.pointer = place(one);
      if (board.gesture) board.drawTo(board.pointer);
    }
    byKeys = false;
    tellHover();
    board.redraw();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(name, (event) => {
      down.delete(event.pointerId);
      if (!moving) name === "pointerup" ? board.end() : board.cancel();
      if (!down.size) moving = false;
    });
  }
  canvas.addEventListener("pointerleave", () => {
    board.pointer = null;
    board.redraw();
  });
  // Where nobody works on the map, the wheel scrolls the page as everywhere.
  canvas.addEventListener("wheel", (event) => {
    if (!(event.ctrlKey || document.activeElement === canvas || zoom.scale > 1)) return;
    if (zoom.scale === 1 && event.deltaY > 0 && !event.ctrlKey) return;
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 30 : 1; // a mouse may count lines, not pixels
    zoom.by(Math.exp((-event.deltaY * lines) / (event.ctrlKey ? 100 : 400)), event.clientX, event.clientY);
  }, { passive: false });

  function tellHover() {
    const { values, width, height } = board.state, [x, y] = board.pointer;
    if (x >= 0 && y >= 0 && x < width && y < height) editor.hover?.(values[y * width + x]);
  }

  // ---- keys ----
  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  function move(event) {
    const { width, height } = board.state, [dx, dy] = MOVES[event.key];
    const reach = event.shiftKey ? 1 : Math.max(1, Math.round(find("size").value / 2));
    const [x, y] = board.pointer || [width >> 1, height >> 1];
    const to = [[x + dx * reach, width], [y + dy * reach, height]].map(([at, size]) => Math.min(size - 1, Math.max(0, at)));
    [board.pointer, byKeys] = [[...to, radiusOf()], true];
    if (board.gesture) board.drawTo(board.pointer);
    tellHover();
    board.redraw();
  }

  // Space paints at the place that the arrows found; a shape begins with one press and ends with another.
  function press() {
    board.pointer ||= [board.state.width >> 1, board.state.height >> 1, radiusOf()];
    if (board.gesture) return board.end();
    const wasShape = board.shaping;
    board.begin([...board.pointer.slice(0, 2), radiusOf()]);
    if (!wasShape) board.end();
  }

  const resize = (factor) => {
    const size = find("size"), by = Math.max(1, Math.round(size.value * 0.15));
    size.value = Number(size.value) + factor * by;
    board.redraw();
  };
  const PLAIN = {
    "[": () => resize(-1), "]": () => resize(1), "+": () => zoom.step(1.5), "-": () => zoom.step(1 / 1.5),
    0: () => zoom.fit(), Escape: board.cancel,
  };

  canvas.addEventListener("keydown", (event) => {
    if (!board.state.values) return;
    const key = event.key.toLowerCase(), command = event.ctrlKey || event.metaKey;
    if (MOVES[event.key]) move(event);
    else if (key === " ") {
      if (!event.repeat) [space, panned] = [true, false];
    } else if (command && (key === "y" || (key === "z" && event.shiftKey))) (board.cancel(), steps.redo());
    else if (command && key === "z") (board.cancel(), steps.undo());
    else if (!command && editor.keys[key]) board.selectTool(editor.keys[key]);
    else if (!command && PLAIN[event.key]) PLAIN[event.key]();
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("keyup", (event) => {
    if (event.key !== " " || !space) return;
    space = false;
    if (!panned && (byKeys || !board.pointer)) press();
  });
  canvas.addEventListener("blur", () => (space = false));
}

