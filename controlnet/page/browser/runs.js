// Shared by the editors, and put before each: values travel as runs, so that every one arrives exactly.
// ---- packing: runs of [index, length low byte, length high byte], in base64 ----
function unpack(text, size) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const out = new Uint8Array(size);
  for (let i = 0, at = 0; i < bytes.length; i += 3) {
    const run = bytes[i + 1] | (bytes[i + 2] << 8);
    out.fill(bytes[i], at, (at += run));
  }
  return out;
}

function pack(values) {
  const parts = [];
  for (let at = 0; at < values.length; ) {
    const start = at, value = values[at];
    while (at < values.length && values[at] === value && at - start < 65535) at++;
    parts.push(String.fromCharCode(value, (at - start) & 255, (at - start) >> 8));
  }
  return btoa(parts.join(""));
}
