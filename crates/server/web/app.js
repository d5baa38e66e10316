// The page: puts conversation, list, composer, settings and keyboard together.
import { listModels, whenReady } from "./api.js";
import { Run } from "./chat.js";
import { byId, download, prefs, toast } from "./dom.js";
import { countSet, defaultSystem, initSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import * as store from "./store.js";
import { Thread } from "./thread.js";
import * as tree from "./tree.js";

const input = byId("composer-input");
// Answers being written, by their conversation; they go on while another conversation is shown.
const runs = new Map();
let conversation = null;
let savedOnce = Promise.resolve();
let asked = 0;
// Deleted here: an answer that ends late must not write its conversation again.
const removed = new Set();

const thread = new Thread({ edit, again, remove: removeMessage, step }, (node) => [...runs.values()].find((run) => run.node === node));
const sidebar = new Sidebar({ open: (head) => open(head.id), rename, exportOne: (head) => exportAs(head.id), remove: removeConversation });

function guard(promise) {
  return promise.catch((error) => toast(store.storageProblem(error)));
}

/** Writes in order; a later state never overtakes an earlier one. */
function save(what) {
  savedOnce = savedOnce.then(() => !removed.has(what.id) && guard(store.save(what).then(refreshList)));
  return savedOnce;
}

async function refreshList() {
  sidebar.show(await store.heads(), conversation?.id, new Set(runs.keys()));
}

function drawState() {
  const running = runs.has(conversation.id);
  byId("send").hidden = running;
  byId("stop").hidden = !running;
  byId("send").disabled = input.value.trim() === "";
  const title = conversation.title || "New chat";
  byId("title").textContent = title;
  document.title = conversation.title ? `${title} · Biplane` : "Biplane";
  const set = countSet() + (conversation.system.trim() ? 1 : 0);
  byId("settings-mark").hidden = set === 0;
  byId("open-settings").title = set === 0 ? "Settings" : `Settings (${set} set)`;
}

function show(next, { address = true } = {}) {
  conversation = next;
  if (address) history.pushState(null, "", Object.keys(next.nodes).length > 0 ? `#${next.id}` : location.pathname + location.search);
  thread.reset(next);
  thread.toEnd();
  drawState();
  guard(refreshList());
}

function newChat() {
  asked++;
  sidebar.drawer(false);
  show(tree.newConversation(defaultSystem()));
  input.focus();
}

async function open(id, options) {
  const mine = ++asked;
  const found = runs.get(id)?.conversation ?? (await store.load(id));
  // Another one was chosen while this one was read.
  if (mine !== asked) return;
  if (!found) return show(tree.newConversation(defaultSystem()), options);
  sidebar.drawer(false);
  show(found, options);
}

/** Lets the model answer a user's message. */
function answer(question) {
  const where = conversation;
  const node = tree.addMessage(where, question.id, "assistant", []);
  const run = new Run(where, node, byId("model").value, { save, report: banner });
  runs.set(where.id, run);
  thread.sync(where);
  thread.toEnd();
  drawState();
  save(where);
  history.replaceState(null, "", `#${where.id}`);
  run.go().finally(() => {
    runs.delete(where.id);
    run.view?.finish();
    if (conversation === where) {
      thread.sync(where);
      drawState();
    }
    save(where);
  });
}

function submit() {
  const text = input.value;
  if (!text.trim() || runs.has(conversation.id)) return;
  input.value = "";
  fit();
  const last = tree.pathOf(conversation).at(-1);
  answer(tree.addMessage(conversation, last?.node.id ?? null, "user", [{ type: "text", text }]));
}

function idle() {
  if (!runs.has(conversation.id)) return true;
  toast("Stop the answer that is being written first.");
  return false;
}

function edit(node) {
  if (thread.editing || !idle()) return;
  thread.viewOf(node).edit((text) => {
    if (text === null || !idle()) return input.focus();
    answer(tree.addMessage(conversation, node.parent, "user", [{ type: "text", text }]));
    input.focus();
  });
}

function again(node) {
  if (!idle()) return;
  const question = conversation.nodes[node.parent];
  if (question) answer(question);
  else toast("There is no question before this answer.");
}

function step(node, by) {
  if (!idle()) return;
  const siblings = tree.childrenOf(conversation, node.parent);
  const next = siblings[siblings.indexOf(node) + by];
  if (!next) return;
  tree.show(conversation, next);
  thread.sync(conversation);
  thread.viewOf(next)?.element.querySelector(`[aria-label^="${by < 0 ? "Previous" : "Next"}"]:enabled`)?.focus();
  save(conversation);
}

function removeMessage(node) {
  if (!idle()) return;
  const where = conversation;
  const after = () => {
    if (conversation.id === where.id) thread.sync(where);
    save(where);
  };
  const undo = tree.removeMessage(where, node.id);
  after();
  input.focus();
  toast("Deleted the message and what followed.", { label: "Undo", run: () => (undo(), after()) });
}

async function rename(head, title) {
  const target = conversation.id === head.id ? conversation : (runs.get(head.id)?.conversation ?? (await store.load(head.id)));
  if (!target) return;
  Object.assign(target, { title, titled: Date.now() });
  await save(target);
  drawState();
}

async function removeConversation(head) {
  const run = runs.get(head.id);
  run?.stop();
  await savedOnce;
  const kept = run?.conversation ?? (conversation.id === head.id ? conversation : await store.load(head.id));
  removed.add(head.id);
  await guard(store.remove(head.id));
  if (conversation.id === head.id) show(tree.newConversation(defaultSystem()));
  else await guard(refreshList());
  toast(`Deleted “${head.title || "New chat"}”.`, { label: "Undo", run: () => (removed.delete(head.id), kept && save(kept)) });
}

async function exportAs(id) {
  await guard(savedOnce.then(() => store.exported(id)).then((text) => download(`biplane-${new Date().toISOString().slice(0, 10)}.json`, text)));
}

async function importFile(file) {
  try {
    const count = await store.imported(await file.text());
    toast(`Imported ${count} ${count === 1 ? "conversation" : "conversations"}.`);
  } catch (error) {
    toast(error.name === "QuotaExceededError" ? store.storageProblem(error) : error.message);
  }
  guard(refreshList());
}

/** What the server says of itself, above the conversation. */
function banner(state) {
  const failed = state.state === "failed";
  byId("banner").hidden = state.state !== "loading" && !failed;
  byId("banner").classList.toggle("failed", failed);
  byId("banner-retry").hidden = !failed;
  const progress = byId("banner-progress");
  progress.hidden = failed;
  if (state.state === "loading") {
    if (state.progress === null) progress.removeAttribute("value");
    else progress.value = state.progress;
    byId("banner-text").textContent = state.message || "The model is loading…";
  } else if (failed) byId("banner-text").textContent = state.message;
}

async function connect() {
  try {
    await whenReady(undefined, banner);
    const models = await listModels(banner);
    const select = byId("model");
    const wanted = select.value || prefs.get("model");
    select.replaceChildren(...models.map((id) => new Option(id, id, false, id === wanted)));
    if (models.length === 0) select.append(new Option("The server's model", ""));
  } catch (error) {
    banner({ state: "failed", message: error.message });
  }
}

function fit() {
  // Where the style sheet cannot size the field by its content; a very long text stays at the greatest height.
  if (CSS.supports("field-sizing", "content")) return;
  input.style.height = "auto";
  input.style.height = input.value.length > 20000 ? "40vh" : `${input.scrollHeight}px`;
}

function keys(event) {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest?.("input, textarea, select");
  if ((event.ctrlKey || event.metaKey) && !event.shiftKey && !event.altKey && event.key.toLowerCase() === "k") {
    event.preventDefault();
    newChat();
  } else if (event.key === "Escape") {
    if (sidebar.open) sidebar.drawer(false);
    else runs.get(conversation.id)?.stop();
  } else if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    input.focus();
  } else if (event.key === "ArrowUp" && event.target === input && input.value === "") {
    const last = tree.pathOf(conversation).findLast(({ node }) => node.role === "user");
    if (!last) return;
    event.preventDefault();
    edit(last.node);
  } else if (event.key === "Enter" && event.target === input && !event.shiftKey) {
    event.preventDefault();
    submit();
  }
}

const THEMES = { system: "the system's", light: "light", dark: "dark" };

function theme(next) {
  prefs.set("theme", next);
  if (next === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = next;
  byId("theme").title = `Colours: ${THEMES[next]}`;
  byId("theme").setAttribute("aria-label", `Colours: ${THEMES[next]}`);
}

const currentTheme = () => document.documentElement.dataset.theme ?? "system";

function wire() {
  byId("composer").addEventListener("submit", (event) => (event.preventDefault(), submit()));
  byId("stop").addEventListener("click", () => (runs.get(conversation.id)?.stop(), input.focus()));
  input.addEventListener("input", () => (fit(), drawState()));
  byId("new-chat").addEventListener("click", newChat);
  byId("export").addEventListener("click", () => exportAs(null));
  byId("import").addEventListener("click", () => byId("import-file").click());
  byId("import-file").addEventListener("change", ({ target }) => {
    if (target.files[0]) importFile(target.files[0]);
    target.value = "";
  });
  byId("banner-retry").addEventListener("click", connect);
  byId("model").addEventListener("change", ({ target }) => prefs.set("model", target.value));
  byId("theme").addEventListener("click", () => {
    const names = Object.keys(THEMES);
    theme(names[(names.indexOf(currentTheme()) + 1) % names.length]);
  });
  initSettings({
    conversation: () => conversation,
    saved: (system) => {
      conversation.system = system;
      if (Object.keys(conversation.nodes).length > 0) save(conversation);
      drawState();
    },
  });
  document.addEventListener("keydown", keys);
  window.addEventListener("popstate", () => open(location.hash.slice(1), { address: false }));
  window.addEventListener("hashchange", () => location.hash.slice(1) !== conversation.id && open(location.hash.slice(1), { address: false }));
  window.addEventListener("pagehide", () => runs.has(conversation.id) && save(conversation));
  store.onOtherTab(async ({ kind, id }) => {
    guard(refreshList());
    if (id !== conversation.id || runs.has(id) || thread.editing) return;
    if (kind === "removed") return newChat();
    const stored = await store.load(id);
    if (!stored || id !== conversation.id || runs.has(id)) return;
    conversation = stored;
    thread.reset(stored);
    drawState();
  });
}

async function start() {
  theme(currentTheme());
  conversation = tree.newConversation(defaultSystem());
  wire();
  drawState();
  connect();
  if (!(await store.openStore())) toast("This browser keeps no conversations: they are lost when the page is closed.");
  await open(location.hash.slice(1), { address: false });
  input.focus();
}

start();
