// The history of results, kept in this browser (IndexedDB), or until the page is left if that is
// not allowed.

const NAME = "cm3-studio", STORE = "pictures", MOST = 120;
let kept = [];

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

async function within(mode, work) {
  const database = await open();
  try {
    return await new Promise((resolve, reject) => {
      const transaction = database.transaction(STORE, mode);
      const result = work(transaction.objectStore(STORE));
      transaction.oncomplete = () => resolve(result && result.result);
      transaction.onerror = transaction.onabort = () => reject(transaction.error);
    });
  } finally { database.close(); }
}

export async function add(entry) {
  const one = { ...entry, id: `${Date.now()}-${crypto.getRandomValues(new Uint32Array(1))[0]}` };
  kept.push(one);
  try {
    await within("readwrite", (store) => store.put(one));
    const keys = (await within("readonly", (store) => store.getAllKeys())).sort();
    const old = keys.slice(0, Math.max(0, keys.length - MOST));
    if (old.length) await within("readwrite", (store) => { for (const key of old) store.delete(key); });
  } catch { /* private mode: only `kept` */ }
}

export async function all() {
  try { return (await within("readonly", (store) => store.getAll())).sort((a, b) => (a.id < b.id ? 1 : -1)); }
  catch { return [...kept].reverse(); }
}

export async function clear() {
  kept = [];
  try { await within("readwrite", (store) => store.clear()); } catch { /* nothing to delete */ }
}
