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
  let bytes = [];
  for (let at = 0; at < values.length; ) {
    const start = at, value = values[at], end = Math.min(values.length, start + 65535);
    while (at < end && values[at] === value) at++;
    bytes.push(value, (at - start) & 255, (at - start) >> 8);
    if (bytes.length < 30000) continue;
    parts.push(String.fromCharCode(...bytes)); // as many as a call may have
    bytes = [];
  }
  parts.push(String.fromCharCode(...bytes));
  return btoa(parts.join(""));
}
