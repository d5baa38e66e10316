// Conversations in the browser's IndexedDB, and word between tabs about what changed. Where the browser has none
// (private windows, storage forbidden) they live as long as the page.
import { checked, merge, textOf } from "./tree.js";

const FORMAT = "biplane-conversations";
const HEAD = ({ id, title, updated, created }) => ({ id, title, updated, created });
const wait = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

let db = null;
const memory = new Map();
const channel = typeof BroadcastChannel === "function" ? new BroadcastChannel("biplane") : null;

/** Opens the database; false when conversations will not outlive the page. */
export async function openStore() {
  try {
    const request = indexedDB.open("biplane", 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("heads", { keyPath: "id" });
      request.result.createObjectStore("conversations", { keyPath: "id" });
    };
    db = await wait(request);
    db.onversionchange = () => db.close();
    return true;
  } catch {
    db = null;
    return false;
  }
}

/** Calls back with { kind: "changed" | "removed", id } when another tab wrote. */
export function onOtherTab(callback) {
  channel?.addEventListener("message", ({ data }) => callback(data));
}

async function transact(mode, work) {
  const transaction = db.transaction(["heads", "conversations"], mode);
  const done = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onerror = transaction.onabort = () => reject(transaction.error ?? new Error("The browser broke off writing."));
  });
  // A failure within the work must not leave the other promise unheard.
  done.catch(() => {});
  const result = await work(transaction.objectStore("heads"), transaction.objectStore("conversations"));
  await done;
  return result;
}

/** The list's entries, the latest first. */
export async function heads() {
  const all = db ? await wait(db.transaction("heads").objectStore("heads").getAll()) : [...memory.values()].map(HEAD);
  return all.sort((a, b) => b.updated - a.updated);
}

export async function load(id) {
  if (db) return (await wait(db.transaction("conversations").objectStore("conversations").get(id))) ?? null;
  return structuredClone(memory.get(id)) ?? null;
}

/** Writes a conversation. What another tab wrote meanwhile is merged into it, and into what is stored. */
export async function save(conversation) {
  if (!db) memory.set(conversation.id, structuredClone(conversation));
  else {
    await transact("readwrite", async (headStore, store) => {
      const stored = await wait(store.get(conversation.id));
      if (stored && stored.rev !== conversation.rev) Object.assign(conversation, merge(stored, conversation));
      conversation.rev = (stored?.rev ?? conversation.rev) + 1;
      await Promise.all([wait(store.put(conversation)), wait(headStore.put(HEAD(conversation)))]);
    });
  }
  channel?.postMessage({ kind: "changed", id: conversation.id });
}

export async function remove(id) {
  memory.delete(id);
  if (db) await transact("readwrite", (headStore, store) => Promise.all([wait(store.delete(id)), wait(headStore.delete(id))]));
  channel?.postMessage({ kind: "removed", id });
}

/** The ids of conversations whose title or messages have all the words. */
export async function search(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const found = new Set();
  const look = (conversation) => {
    const text = [conversation.title, ...Object.values(conversation.nodes).map(textOf)].join("\n").toLowerCase();
    if (words.every((word) => text.includes(word))) found.add(conversation.id);
  };
  if (!db) for (const conversation of memory.values()) look(conversation);
  else {
    // One at a time: all of them at once may be large.
    const request = db.transaction("conversations").objectStore("conversations").openCursor();
    await new Promise((resolve, reject) => {
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (!cursor) return resolve();
        look(cursor.value);
        cursor.continue();
      };
    });
  }
  return found;
}

/** The conversations (all, or one) as the text of a file. */
export async function exported(id = null) {
  const ids = id ? [id] : (await heads()).map((head) => head.id);
  const conversations = [];
  for (const each of ids) conversations.push(await load(each));
  return JSON.stringify({ format: FORMAT, version: 1, conversations: conversations.filter(Boolean) }, null, 1);
}

/** Takes conversations from a file's text; all of them are checked before the first is written. Returns how many. */
export async function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("The file is not JSON.");
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) throw new Error("The file holds no conversations of this page.");
  if (file.version !== 1) throw new Error(`The file has format version ${file.version}; this page reads version 1.`);
  let conversations;
  try {
    conversations = file.conversations.map(checked);
  } catch (error) {
    throw new Error(`The file is damaged: ${error.message}.`);
  }
  // A revision that no stored one has makes `save` merge with what is there.
  for (const conversation of conversations) await save(Object.assign(conversation, { rev: -1 }));
  return conversations.length;
}

/** What to tell the reader when writing failed. */
export function storageProblem(error) {
  if (error?.name === "QuotaExceededError") return "The browser's storage is full. Export and delete old conversations to keep new ones.";
  return `The conversation could not be saved: ${error?.message ?? error}`;
}
