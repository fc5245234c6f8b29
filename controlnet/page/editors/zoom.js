// Zoom and pan of a canvas inside its stage: a transform, so that places on it are found as before.
function makeZoom(canvas, onchange) {
  const MOST = 16;
  let scale = 1, x = 0, y = 0;

  function apply() {
    // What is seen stays inside the picture.
    x = Math.min(0, Math.max(canvas.offsetWidth * (1 - scale), x));
    y = Math.min(0, Math.max(canvas.offsetHeight * (1 - scale), y));
    canvas.style.transform = scale === 1 ? "" : `translate(${x}px, ${y}px) scale(${scale})`;
    canvas.style.imageRendering = scale > 2 ? "pixelated" : "";
    onchange(scale);
  }

  return {
    get scale() { return scale; },
    // Around a place of the window, which stays where it is.
    by(factor, clientX, clientY) {
      const seen = canvas.getBoundingClientRect(), wanted = Math.min(MOST, Math.max(1, scale * factor));
      const [left, top] = [seen.left - x, seen.top - y];
      x = clientX - left - ((clientX - seen.left) * wanted) / scale;
      y = clientY - top - ((clientY - seen.top) * wanted) / scale;
      scale = wanted;
      apply();
    },
    step(factor) {
      const { left, top, width, height } = canvas.parentElement.getBoundingClientRect();
      this.by(factor, left + width / 2, top + height / 2);
    },
    pan(dx, dy) {
      [x, y] = [x + dx, y + dy];
      apply();
    },
    fit() {
      [scale, x, y] = [1, 0, 0];
      apply();
    },
  };
}

