// The list of conversations: search, rename, export, delete. On narrow screens it is a drawer.
import { byId, h, iconButton } from "./dom.js";
import { search } from "./store.js";

const GROUPS = [
  ["Today", 0],
  ["Yesterday", 1],
  ["Last seven days", 7],
  ["Earlier", Infinity],
];

function groupOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const days = time >= midnight ? 0 : Math.ceil((midnight - time) / 86400000);
  return GROUPS.find(([, limit]) => days <= limit)[0];
}

export class Sidebar {
  #heads = [];
  #found = null;
  #current = null;
  #asked = 0;
  #busy = new Set();

  /** `actions`: open, rename, exportOne, remove, each with an entry of the list. */
  constructor(actions) {
    this.actions = actions;
    const input = byId("search");
    let timer = 0;
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.#search(input.value.trim()), 120);
    });
    byId("open-side").addEventListener("click", () => this.drawer(true));
    byId("close-side").addEventListener("click", () => this.drawer(false));
    byId("veil").addEventListener("click", () => this.drawer(false));
  }

  get open() {
    return document.body.classList.contains("side-open");
  }

  drawer(open) {
    if (open === this.open) return;
    document.body.classList.toggle("side-open", open);
    byId("open-side").setAttribute("aria-expanded", String(open));
    byId("page").inert = open;
    (open ? byId("close-side") : byId("open-side")).focus();
  }

  async #search(query) {
    const asked = ++this.#asked;
    const found = query ? await search(query) : null;
    // A later question's answer may have come first.
    if (asked !== this.#asked) return;
    this.#found = found;
    this.#draw();
  }

  /** Shows the entries; `busy` are the conversations whose answers are being written. */
  show(heads, current, busy) {
    this.#heads = heads;
    this.#current = current;
    this.#busy = busy;
    // Renaming goes on while other entries change.
    if (!byId("list").querySelector(".rename")) this.#draw();
    if (this.#found) this.#search(byId("search").value.trim());
  }

  #draw() {
    const list = byId("list");
    const focused = list.contains(document.activeElement) ? document.activeElement.closest("li")?.dataset.id : null;
    const shown = this.#heads.filter((head) => !this.#found || this.#found.has(head.id));
    list.replaceChildren();
    let group = null;
    for (const head of shown) {
      const name = groupOf(head.updated);
      if (name !== group) list.append(h("li", { class: "group", role: "presentation" }, name));
      group = name;
      list.append(this.#entry(head));
    }
    const empty = byId("list-empty");
    empty.hidden = shown.length > 0;
    empty.textContent = this.#found ? "Nothing found." : "No conversations yet.";
    if (focused) list.querySelector(`[data-id="${focused}"] .open`)?.focus();
  }

  #entry(head) {
    const current = head.id === this.#current;
    const title = head.title || "New chat";
    const open = h("button", { type: "button", class: "open", title, "aria-current": current ? "page" : null, onclick: () => this.actions.open(head) }, title);
    const entry = h("li", { "data-id": head.id, class: this.#busy.has(head.id) ? "busy" : null }, open,
      h("span", { class: "entry-tools" },
        iconButton("edit", `Rename “${title}”`, () => this.#rename(entry, head), { "data-do": "rename" }),
        iconButton("export", `Export “${title}”`, () => this.actions.exportOne(head), { "data-do": "export" }),
        iconButton("trash", `Delete “${title}”`, () => this.actions.remove(head), { "data-do": "delete" })));
    return entry;
  }

  #rename(entry, head) {
    const input = h("input", { class: "rename", "aria-label": "New name", maxlength: "200" });
    input.value = head.title;
    let over = false;
    const close = (keep) => {
      if (over) return;
      over = true;
      const title = input.value.trim();
      input.remove();
      if (keep && title && title !== head.title) this.actions.rename(head, title);
      else this.#draw();
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") close(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        close(false);
      }
    });
    input.addEventListener("blur", () => close(true));
    entry.replaceChildren(input);
    input.focus();
    input.select();
  }
}
