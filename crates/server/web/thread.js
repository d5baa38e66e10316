// The open conversation's messages on the page, and scrolling that follows the answer until the reader scrolls away.
import { byId } from "./dom.js";
import { MessageView } from "./message.js";
import { pathOf } from "./tree.js";

const NEAR_END = 48;

export class Thread {
  #views = [];
  #pinned = true;
  #lastTop = 0;

  /** `actions` are the page's; `runOf` gives the run of an answer that is being written, or undefined. */
  constructor(actions, runOf) {
    this.actions = actions;
    this.runOf = runOf;
    this.scroller = byId("scroller");
    this.root = byId("thread");
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    new ResizeObserver(() => this.follow()).observe(this.scroller);
    byId("to-end").addEventListener("click", () => this.toEnd());
  }

  /** Draws what is not drawn yet and takes away what is no longer shown; messages that stay are not touched. */
  sync(conversation) {
    const path = pathOf(conversation);
    let same = 0;
    while (same < path.length && this.#views[same]?.node === path[same].node) same++;
    for (const view of this.#views.splice(same)) {
      const run = this.runOf(view.node);
      if (run) run.view = null;
      view.element.remove();
    }
    for (const { node } of path.slice(same)) {
      const run = this.runOf(node);
      const view = new MessageView(node, this.actions, { live: run !== undefined, drawn: () => this.follow() });
      if (run) run.view = view;
      this.#views.push(view);
      this.root.append(view.element);
    }
    path.forEach(({ index, siblings }, at) => this.#views[at].refresh(index, siblings.length));
    byId("empty").hidden = path.length > 0;
    this.follow();
  }

  /** Draws all anew, as for another conversation. */
  reset(conversation) {
    const top = this.scroller.scrollTop;
    const pinned = this.#pinned;
    this.sync({ nodes: {}, pick: {} });
    this.#pinned = pinned;
    this.sync(conversation);
    if (!pinned) this.scroller.scrollTop = top;
  }

  /** The view of a node that is shown. */
  viewOf(node) {
    return this.#views.find((view) => view.node === node);
  }

  get editing() {
    return this.root.querySelector(".editing") !== null;
  }

  follow() {
    if (this.#pinned) this.scroller.scrollTop = this.scroller.scrollHeight;
    this.#mark();
  }

  toEnd() {
    this.#pinned = true;
    this.follow();
  }

  // Only moving up unpins: content that grows below never lowers scrollTop.
  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    if (scrollHeight - scrollTop - clientHeight < NEAR_END) this.#pinned = true;
    else if (scrollTop < this.#lastTop) this.#pinned = false;
    this.#lastTop = scrollTop;
    this.#mark();
  }

  #mark() {
    byId("to-end").hidden = this.#pinned;
  }
}
