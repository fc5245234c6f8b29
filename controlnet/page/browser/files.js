// Files that the browser makes and reads itself: PNG of a map, ZIP of results, and whether a PNG is one of ours.
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

// Numbers as bytes: fields of [value, count of bytes].
function packed(fields, bigEndian = false) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of fields) {
    size === 4 ? view.setUint32(at, value, !bigEndian) : size === 2 ? view.setUint16(at, value, !bigEndian) : view.setUint8(at, value);
    at += size;
  }
  return new Uint8Array(view.buffer);
}

async function png(width, height, bytes, channels) {
  const rows = new Uint8Array((width * channels + 1) * height); // each row begins with its filter, 0
  for (let y = 0; y < height; y++) rows.set(bytes.subarray(y * width * channels, (y + 1) * width * channels), y * (width * channels + 1) + 1);
  const deflated = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
  const data = new Uint8Array(await new Response(deflated).arrayBuffer());
  const chunk = (name, content) => {
    const body = new Uint8Array(4 + content.length);
    body.set(new TextEncoder().encode(name));
    body.set(content, 4);
    return [packed([[content.length, 4]], true), body, packed([[crc32(body), 4]], true)];
  };
  const header = packed([[width, 4], [height, 4], [8, 1], [channels === 3 ? 2 : 0, 1], [0, 1], [0, 1], [0, 1]], true);
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  return new Blob([signature, ...chunk("IHDR", header), ...chunk("IDAT", data), ...chunk("IEND", new Uint8Array())], { type: "image/png" });
}

// Pictures are compressed already, so they are stored as they are. `files` are [name, Blob].
async function zip(files) {
  const parts = [], directory = [];
  let at = 0;
  for (const [name, blob] of files) {
    const title = new TextEncoder().encode(name), content = new Uint8Array(await blob.arrayBuffer());
    // version, UTF-8 names, stored, time and day (1 January 1980), checksum, sizes, length of the name, no extras
    const fields = [[20, 2], [0x800, 2], [0, 2], [0, 2], [33, 2], [crc32(content), 4], [content.length, 4], [content.length, 4], [title.length, 2], [0, 2]];
    const head = packed([[0x04034b50, 4], ...fields]);
    parts.push(head, title, content);
    directory.push(packed([[0x02014b50, 4], [20, 2], ...fields, [0, 2], [0, 2], [0, 2], [0, 4], [at, 4]]), title);
    at += head.length + title.length + content.length;
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = packed([[0x06054b50, 4], [0, 2], [0, 2], [files.length, 2], [files.length, 2], [size, 4], [at, 4], [0, 2]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// Whether a file is a PNG with a text called "controlnet", as generation/png.py writes them.
async function isOurs(file) {
  const start = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  if (String.fromCharCode(...start.slice(1, 4)) !== "PNG") return false;
  for (let at = 8; at < file.size; ) {
    const head = new Uint8Array(await file.slice(at, at + 19).arrayBuffer());
    if (head.length < 12) return false;
    const name = String.fromCharCode(...head.slice(4, 8));
    if (["tEXt", "zTXt", "iTXt"].includes(name) && String.fromCharCode(...head.slice(8, 19)) === "controlnet\0") return true;
    at += 12 + new DataView(head.buffer).getUint32(0);
  }
  return false;
}
