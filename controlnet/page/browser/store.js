// What the browser keeps for its person: the work on the page, and the results so far. In IndexedDB, since pictures do
// not fit into local storage. Where there is none (private windows), nothing is kept and nothing breaks.
const KEPT = 60; // results
const database = new Promise((resolve) => {
  const request = globalThis.indexedDB?.open("controlnet", 1);
  if (!request) return resolve(null);
  request.onupgradeneeded = () => ["work", "results"].forEach((name) => request.result.createObjectStore(name));
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => resolve(null);
});

async function ask(store, mode, use) {
  const open = await database;
  if (!open) return undefined;
  return new Promise((resolve) => {
    const request = use(open.transaction(store, mode).objectStore(store));
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => resolve(undefined); // as when the disk is full
  });
}

const kept = {
  get: (store, key) => ask(store, "readonly", (all) => all.get(key)),
  all: async (store) => (await ask(store, "readonly", (all) => all.getAll())) || [],
  put: (store, key, value) => ask(store, "readwrite", (all) => all.put(value, key)),
  remove: (store, key) => ask(store, "readwrite", (all) => all.delete(key)),
};
