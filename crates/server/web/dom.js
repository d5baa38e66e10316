// Small helpers around the DOM. Nothing here or elsewhere turns text into markup: text only ever becomes text nodes.

/** Makes an element. Properties named on… are listeners, others attributes; null and false leave one out. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** An icon of the sprite in index.html. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** A button that shows only an icon; the label is its name and its tooltip. */
export function iconButton(name, label, onclick, props = {}) {
  return h("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...props }, icon(name));
}

export const byId = (id) => document.getElementById(id);

/** Copies text, also where the page is not served over a secure origin and navigator.clipboard is missing. */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Permission refused: the old way may still work.
    }
  }
  const focused = document.activeElement;
  const area = h("textarea", { class: "visually-hidden", "aria-hidden": "true" });
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus?.();
  return done;
}

/** Copies and shows on the button for a moment that it happened. */
export async function copyFrom(button, text) {
  const done = await copyText(text);
  if (!done) return toast("The browser did not allow copying.");
  button.classList.add("done");
  button.querySelector("use")?.setAttribute("href", "#i-check");
  setTimeout(() => {
    button.classList.remove("done");
    button.querySelector("use")?.setAttribute("href", "#i-copy");
  }, 1500);
}

let dismiss = null;

/** A short notice at the foot of the page, with at most one action. A new one replaces the old. */
export function toast(text, action = null) {
  dismiss?.();
  const box = byId("toasts");
  const note = h("div", { class: "toast" }, h("span", {}, text));
  const timer = setTimeout(() => dismiss?.(), action ? 10000 : 6000);
  dismiss = () => {
    clearTimeout(timer);
    note.remove();
    dismiss = null;
  };
  const close = dismiss;
  if (action) {
    note.append(h("button", { type: "button", class: "link", onclick: () => (close(), action.run()) }, action.label));
  }
  note.append(iconButton("close", "Dismiss", () => close()));
  box.append(note);
}

/** Offers text as a file. */
export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

/** An identifier; randomUUID is missing on insecure origins. */
export function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return `n${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

/** Reads and writes small preferences; a browser that forbids storage forgets them with the page. */
export const prefs = {
  memory: new Map(),
  get(key) {
    try {
      return localStorage.getItem(`biplane.${key}`);
    } catch {
      return this.memory.get(key) ?? null;
    }
  },
  set(key, value) {
    try {
      if (value === null) localStorage.removeItem(`biplane.${key}`);
      else localStorage.setItem(`biplane.${key}`, value);
    } catch {
      this.memory.set(key, value);
    }
  },
};
