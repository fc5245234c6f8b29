// Undo and redo. `board` holds `state`: a step keeps what one rectangle of its values held, or the whole state that
// another took the place of. To undo is to exchange the two, and so is to redo.
function makeSteps(board) {
  const MAX_BYTES = 96e6; // 50 steps and more at 1024 x 1024, each of them over the whole map
  let done = [], undone = [];
  const bytes = (step) => (step.state ? step.state.values : step.values).length;

  function exchange(step) {
    if (step.state) {
      const other = { state: board.state };
      board.show(step.state);
      return other;
    }
    const { values, width } = board.state, [x0, y0, x1, y1] = step.region;
    const other = { region: step.region, values: crop(values, width, step.region) };
    for (let y = y0; y < y1; y++) {
      values.set(step.values.subarray((y - y0) * (x1 - x0), (y - y0 + 1) * (x1 - x0)), y * width + x0);
    }
    board.paint(step.region);
    return other;
  }

  function move(from, to) {
    if (!from.length) return;
    const other = exchange(from.pop());
    if (!other.state || other.state.values) to.push(other); // nothing comes back to an empty board
    board.changed();
  }

  return {
    // `before` is all values as they were, `region` what has changed since.
    keep(before, region) {
      this.add({ region, values: crop(before, board.state.width, region) });
    },
    add(step) {
      done.push(step);
      undone = [];
      for (let sum = done.reduce((all, one) => all + bytes(one), 0); done.length > 1 && sum > MAX_BYTES; ) {
        sum -= bytes(done.shift());
      }
    },
    undo: () => move(done, undone),
    redo: () => move(undone, done),
    get canUndo() { return done.length > 0; },
    get canRedo() { return undone.length > 0; },
  };
}

function crop(values, width, [x0, y0, x1, y1]) {
  const out = new Uint8Array((x1 - x0) * (y1 - y0));
  for (let y = y0; y < y1; y++) out.set(values.subarray(y * width + x0, y * width + x1), (y - y0) * (x1 - x0));
  return out;
}

