// A conversation is a tree of messages: editing or regenerating adds a sibling, and `pick` says which one is shown.
// A message is { id, parent, role, parts, time, done }; an answer's parts are texts, reasoning and tool calls in order.
import { newId } from "./dom.js";

const ROOT = "root";

export function newConversation(system) {
  const now = Date.now();
  return { id: newId(), title: "", titled: 0, created: now, updated: now, system, nodes: {}, pick: {}, gone: [], rev: 0 };
}

let last = 0;

/** Adds a message and shows it. Times order siblings, so they never repeat. */
export function addMessage(conversation, parent, role, parts) {
  last = Math.max(Date.now(), last + 1);
  const node = { id: newId(), parent, role, parts, time: last, done: role === "user" };
  conversation.nodes[node.id] = node;
  conversation.pick[parent ?? ROOT] = node.id;
  conversation.updated = node.time;
  if (!conversation.title && role === "user") conversation.title = textOf(node).trim().replace(/\s+/g, " ").slice(0, 60);
  return node;
}

export function childrenOf(conversation, parent) {
  return Object.values(conversation.nodes).filter((node) => node.parent === parent).sort((a, b) => a.time - b.time);
}

/** The messages shown, from the first to the last. */
export function pathOf(conversation) {
  const children = new Map();
  for (const node of Object.values(conversation.nodes).sort((a, b) => a.time - b.time)) {
    if (!children.has(node.parent)) children.set(node.parent, []);
    children.get(node.parent).push(node);
  }
  const path = [];
  for (let parent = null; ; ) {
    const siblings = children.get(parent);
    if (!siblings) return path;
    const at = siblings.findIndex((node) => node.id === conversation.pick[parent ?? ROOT]);
    const index = at < 0 ? siblings.length - 1 : at;
    const node = siblings[index];
    path.push({ node, index, siblings });
    parent = node.id;
  }
}

export function show(conversation, node) {
  conversation.pick[node.parent ?? ROOT] = node.id;
}

/** Takes a message and all that follows it out; the result puts them back. */
export function removeMessage(conversation, id) {
  const removed = [];
  const take = (node) => {
    for (const child of childrenOf(conversation, node.id)) take(child);
    removed.push(node);
    delete conversation.nodes[node.id];
  };
  take(conversation.nodes[id]);
  conversation.gone.push(...removed.map((node) => node.id));
  return () => {
    for (const node of removed) conversation.nodes[node.id] = node;
    const ids = new Set(removed.map((node) => node.id));
    conversation.gone = conversation.gone.filter((gone) => !ids.has(gone));
  };
}

export function textOf(node) {
  return node.parts.filter((part) => part.type === "text").map((part) => part.text).join("\n\n");
}

/** What two tabs made of one conversation, as one: messages of both, without what either took out. */
export function merge(stored, mine) {
  const gone = new Set([...stored.gone, ...mine.gone]);
  // What came back by "undo" here is in `mine` and not gone there by another's hand.
  for (const id of Object.keys(mine.nodes)) if (!mine.gone.includes(id)) gone.delete(id);
  const nodes = { ...stored.nodes };
  for (const node of Object.values(mine.nodes)) {
    if (!nodes[node.id]?.done || node.done) nodes[node.id] = node;
  }
  for (const id of gone) delete nodes[id];
  const titles = stored.titled > mine.titled ? stored : mine;
  return {
    ...mine,
    nodes,
    gone: [...gone],
    pick: { ...stored.pick, ...mine.pick },
    title: titles.title || mine.title,
    titled: titles.titled,
    updated: Math.max(stored.updated, mine.updated),
    rev: stored.rev,
  };
}

/** The messages before `node` as the API takes them. Calls without a result are left out: the API wants one for each. */
export function requestMessages(conversation, node) {
  const chain = [];
  for (let id = node.parent; id !== null && conversation.nodes[id]; id = conversation.nodes[id].parent) chain.unshift(conversation.nodes[id]);
  const messages = conversation.system?.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const message of chain) {
    if (message.role === "user") messages.push({ role: "user", content: textOf(message) });
    else messages.push(...answerMessages(message));
  }
  return messages;
}

function answerMessages(message) {
  const out = [];
  let text = "";
  let calls = [];
  const flush = () => {
    if (!text && calls.length === 0) return;
    const answer = { role: "assistant", content: text };
    if (calls.length > 0) {
      answer.tool_calls = calls.map((call) => ({ id: call.id, type: "function", function: { name: call.name, arguments: call.args } }));
    }
    out.push(answer);
    for (const call of calls) out.push({ role: "tool", tool_call_id: call.id, content: call.result });
    text = "";
    calls = [];
  };
  for (const part of message.parts) {
    if (part.type === "text") {
      if (calls.length > 0) flush();
      text += part.text;
    } else if (part.type === "tool" && typeof part.result === "string") calls.push(part);
  }
  flush();
  return out;
}

const string = (value, fallback = "") => (typeof value === "string" ? value : fallback);
const number = (value) => (Number.isFinite(value) ? value : 0);
const SAFE_ID = /^[\w-]{1,64}$/;

/** A conversation from a file, made of its known fields only; throws with the reason when it is none. */
export function checked(value) {
  if (value === null || typeof value !== "object" || !SAFE_ID.test(string(value.id))) throw new Error("a conversation has no valid id");
  const conversation = newConversation(string(value.system));
  Object.assign(conversation, { id: value.id, title: string(value.title).slice(0, 200), titled: number(value.titled) });
  conversation.created = number(value.created) || conversation.created;
  conversation.updated = number(value.updated) || conversation.updated;
  const nodes = Object.values(value.nodes ?? {});
  const ids = new Set(nodes.map((node) => node?.id));
  for (const node of nodes) {
    if (!SAFE_ID.test(string(node?.id)) || /^\d+$|^__proto__$/.test(node.id)) throw new Error("a message has no valid id");
    if (node.role !== "user" && node.role !== "assistant") throw new Error(`a message has the role ${JSON.stringify(node.role)}`);
    if (node.parent !== null && !ids.has(node.parent)) throw new Error("a message follows one that is missing");
    const parts = (Array.isArray(node.parts) ? node.parts : []).filter((part) => part && ["text", "reasoning", "tool"].includes(part.type));
    conversation.nodes[node.id] = {
      id: node.id,
      parent: node.parent,
      role: node.role,
      time: number(node.time),
      done: true,
      parts: parts.map(checkedPart),
      ...(typeof node.model === "string" && { model: node.model }),
      ...(typeof node.error === "string" && { error: node.error }),
      ...(typeof node.note === "string" && { note: node.note }),
      ...(node.stats && typeof node.stats === "object" && { stats: numbers(node.stats) }),
    };
  }
  for (const [parent, child] of Object.entries(value.pick ?? {})) {
    if (parent !== "__proto__" && ids.has(child)) conversation.pick[parent] = child;
  }
  return conversation;
}

function numbers(stats) {
  return Object.fromEntries(Object.entries(stats).filter(([, value]) => Number.isFinite(value)));
}

function checkedPart(part) {
  if (part.type !== "tool") return { type: part.type, text: string(part.text), ...(Number.isFinite(part.ms) && { ms: part.ms }) };
  const tool = { type: "tool", id: string(part.id), name: string(part.name), args: string(part.args) };
  if (typeof part.result === "string") Object.assign(tool, { result: part.result, failed: part.failed === true });
  return tool;
}
