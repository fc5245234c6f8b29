// Shapes on a map of one value a pixel. A shape is told as spans: `span(y, x0, x1)` once a row, x1 not in it.

function disc(x, y, radius, span) {
  const reach = Math.max(radius, 0.71); // at least the pixel itself
  for (let row = Math.ceil(y - reach); row <= y + reach; row++) {
    const half = Math.sqrt(reach * reach - (row - y) ** 2);
    span(row, Math.ceil(x - half), Math.floor(x + half) + 1);
  }
}

// A brush drawn from one place to another, [x, y, radius] each: a pen that is pressed harder grows on the way.
function brushed(from, to, span) {
  const far = Math.hypot(to[0] - from[0], to[1] - from[1]);
  const steps = Math.max(1, Math.ceil(far / Math.max(1, Math.min(from[2], to[2]) / 3)));
  for (let k = 0; k <= steps; k++) disc(...from.map((start, i) => start + ((to[i] - start) * k) / steps), span);
}

function box(from, to, span) {
  const [left, right] = [from[0], to[0]].sort((a, b) => a - b);
  for (let y = Math.min(from[1], to[1]); y <= Math.max(from[1], to[1]); y++) span(y, left, right + 1);
}

// The inside of a closed outline: between every other crossing of a row.
function outlined(points, span) {
  const rows = points.map(([, y]) => y);
  for (let y = Math.min(...rows); y <= Math.max(...rows); y++) {
    const cuts = [];
    points.forEach(([x1, y1], k) => {
      const [x2, y2] = points[(k + 1) % points.length];
      if (y1 <= y !== y2 <= y) cuts.push(x1 + ((y - y1) * (x2 - x1)) / (y2 - y1));
    });
    cuts.sort((a, b) => a - b);
    for (let k = 0; k + 1 < cuts.length; k += 2) span(y, Math.ceil(cuts[k]), Math.floor(cuts[k + 1]) + 1);
  }
}

// The area of one value around a pixel, row by row; it is marked in `values` as `mark`, which is another value.
function flood(values, width, start, mark, span = () => {}) {
  const old = values[start], stack = [start];
  while (stack.length) {
    const at = stack.pop();
    if (values[at] !== old) continue;
    const row = at - (at % width);
    let left = at, right = at + 1;
    while (left > row && values[left - 1] === old) left--;
    while (right < row + width && values[right] === old) right++;
    values.fill(mark, left, right);
    span(row / width, left - row, right - row);
    for (const shift of [-width, width]) {
      if (row + shift < 0 || row + shift >= values.length) continue;
      for (let i = left + shift, before = false; i < right + shift; i++) {
        const same = values[i] === old;
        if (same && !before) stack.push(i); // one seed for each piece of the next row
        before = same;
      }
    }
  }
}

// 1 where `mask` holds a 1 within `reach` pixels to the left, right, above or below (a square).
function spread(mask, width, reach) {
  // Rows of zeros above, so that a window over the rows may begin before the first.
  const bytes = new Uint8Array(mask.length + reach * width), rows = reach * width;
  for (let row = 0; row < mask.length; row += width) {
    const end = row + width, line = mask.subarray(row, end);
    for (let at = line.indexOf(1); at >= 0; ) {
      let next = line.indexOf(0, at);
      if (next < 0) next = width;
      bytes.fill(1, rows + row + Math.max(0, at - reach), rows + Math.min(end, row + next + reach));
      at = line.indexOf(1, next);
    }
  }
  // Windows of 1, 2, 4, ... rows, and the last step makes 2 reach + 1; four pixels at once where rows allow it.
  const words = width % 4 ? bytes : new Uint32Array(bytes.buffer), step = width % 4 ? width : width / 4;
  const wanted = 2 * reach + 1;
  for (let size = 1; size < wanted; ) {
    const by = Math.min(size, wanted - size), shift = by * step;
    for (let at = 0; at + shift < words.length; at++) words[at] |= words[at + shift];
    size += by;
  }
  return bytes.subarray(0, mask.length);
}

function where(values, wanted, here, elsewhere) {
  const out = new Uint8Array(values.length);
  for (let at = 0; at < values.length; at++) out[at] = values[at] === wanted ? here : elsewhere;
  return out;
}

// The same area, but gaps of up to `gap` pixels in its border count as closed: the border is thickened until they are,
// what is left is flooded and grows back. Where it is too narrow for that at `start`, gaps stay open.
function floodClosed(values, width, start, gap, span) {
  const reach = Math.ceil(gap / 2), old = values[start];
  let area = spread(where(values, old, 0, 1), width, reach);
  const seed = nearest(area, width, start, reach);
  if (seed === null) return flood(values.slice(), width, start, old ^ 1, span);
  flood(area, width, seed, 2);
  area = spread(where(area, 2, 1, 0), width, reach);
  for (let row = 0; row < area.length; row += width) {
    for (let x = 0; x < width; x++) {
      if (!area[row + x] || values[row + x] !== old) continue;
      const first = x;
      while (x < width && area[row + x] && values[row + x] === old) x++;
      span(row / width, first, x);
    }
  }
}

// The pixel of value 0 that is next to `start`, within `reach`, or null.
function nearest(area, width, start, reach) {
  const x0 = start % width;
  let best = null, least = Infinity;
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      const at = start + y * width + x, far = x * x + y * y;
      if (x0 + x < 0 || x0 + x >= width || area[at] !== 0 || far >= least) continue;
      [best, least] = [at, far];
    }
  }
  return best;
}

