/** The list of conversations: search, rename, delete, export and import. */

import { announce } from "./announcer.js";
import { exportText, importText, matches } from "./conversation.js";
import { confirmed } from "./dialogs.js";
import { download, h, icon, iconButton } from "./dom.js";

/** Larger lists are shortened; a search finds the rest. */
const MAX_SHOWN = 200;

export class Sidebar {
  #conversations = [];
  #renaming = null;

  /** `onNew` begins a conversation, `onDelete` gets the id of one to delete, `onRename` an id and a title. */
  constructor(root, { store, onNew, onDelete, onRename }) {
    Object.assign(this, { store, onDelete, onRename, currentId: null });
    this.search = h("input", {
      type: "search",
      placeholder: "Search",
      "aria-label": "Search conversations",
      oninput: () => this.#show(),
    });
    this.list = h("ul", { class: "conversations" });
    this.note = h("p", { class: "note", role: "status" });
    this.file = h("input", {
      type: "file",
      accept: ".json,application/json",
      class: "visually-hidden",
      tabindex: "-1",
      "aria-hidden": "true",
      id: "import-file",
    });
    this.file.addEventListener("change", () => this.#import());
    root.replaceChildren(
      h("button", { type: "button", class: "new-chat", onclick: onNew }, icon("plus"), "New chat"),
      this.search,
      this.note,
      h("nav", { "aria-label": "Conversations" }, this.list),
      h(
        "div",
        { class: "sidebar-foot" },
        h("button", { type: "button", onclick: () => this.#exportAll() }, icon("export"), "Export all"),
        h("button", { type: "button", onclick: () => this.file.click() }, icon("import"), "Import"),
        this.file,
      ),
    );
  }

  /** Reads all conversations. */
  async load() {
    this.#conversations = await this.store.all();
    this.#show();
  }

  /** Marks the conversation that is shown, if one is. */
  setCurrent(id) {
    this.currentId = id;
    this.#show();
  }

  /** Takes over a conversation that was added or changed, or its absence. */
  update(id, conversation) {
    const others = this.#conversations.filter((other) => other.id !== id);
    this.#conversations = conversation ? [conversation, ...others] : others;
    this.#show();
  }

  /** Says something about the conversations. */
  setNote(text) {
    this.note.textContent = text;
  }

  /** Shows the list, the conversation that was changed last first, unless a title is being edited in it. */
  #show() {
    if (this.#renaming !== null && this.list.querySelector("form")) return;
    this.#conversations.sort((a, b) => b.updatedAt - a.updatedAt);
    const focus = document.activeElement?.dataset?.key;
    const search = this.search.value.trim();
    const found = search
      ? this.#conversations.filter((conversation) => matches(conversation, search))
      : this.#conversations;
    this.list.replaceChildren(...found.slice(0, MAX_SHOWN).map((conversation) => this.#item(conversation)));
    this.setNote(this.#noteText(search, found.length));
    if (focus) this.list.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
  }

  #noteText(search, count) {
    if (search && count === 0) return "No conversation has these words.";
    if (count > MAX_SHOWN) return `The first ${MAX_SHOWN} of ${count}; search for others.`;
    return this.store.isPersistent ? "" : "This browser keeps no conversations: they end with this page.";
  }

  #item(conversation) {
    const { id } = conversation;
    if (this.#renaming === id) return h("li", {}, this.#renameForm(conversation));
    const title = conversation.title || "Untitled";
    const isCurrent = id === this.currentId;
    return h(
      "li",
      { class: isCurrent ? "current" : null },
      h(
        "a",
        { href: `#chat/${id}`, title, "aria-current": isCurrent ? "page" : null, "data-key": `open-${id}` },
        title,
      ),
      h(
        "span",
        { class: "item-actions" },
        iconButton("edit", `Rename ${title}`, () => this.#beginRename(id), { "data-key": `rename-${id}` }),
        iconButton("export", `Export ${title}`, () => this.#exportOne(conversation), { "data-key": `export-${id}` }),
        iconButton("delete", `Delete ${title}`, () => this.#delete(conversation, title), {
          "data-key": `delete-${id}`,
        }),
      ),
    );
  }

  #beginRename(id) {
    this.#renaming = id;
    this.#show();
    this.list.querySelector("input").select();
  }

  #renameForm(conversation) {
    const field = h("input", { "aria-label": "Title", value: conversation.title, maxlength: "200" });
    const form = h("form", {}, field);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#endRename(conversation, field.value.trim());
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      this.#endRename(conversation, "");
    });
    field.addEventListener("blur", () => this.#endRename(conversation, field.value.trim(), false));
    return form;
  }

  /** Ends renaming, with a title if there is one. */
  async #endRename(conversation, title, keepsFocus = true) {
    if (this.#renaming !== conversation.id) return;
    this.#renaming = null;
    if (title) await this.onRename(conversation.id, title);
    this.#show();
    if (keepsFocus) this.list.querySelector(`[data-key="rename-${conversation.id}"]`)?.focus();
  }

  async #delete(conversation, title) {
    if (!(await confirmed(`Delete “${title}”? This cannot be undone.`, "Delete"))) return;
    await this.onDelete(conversation.id);
    this.search.focus();
    announce(`Deleted ${title}.`);
  }

  #exportOne(conversation) {
    const name = conversation.title.replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40) || "conversation";
    download(`${name}.json`, exportText([conversation]));
  }

  #exportAll() {
    download("conversations.json", exportText(this.#conversations));
  }

  async #import() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    let message;
    try {
      const conversations = importText(await file.text());
      for (const conversation of conversations) await this.store.put(conversation);
      message = `Imported ${conversations.length} ${conversations.length === 1 ? "conversation" : "conversations"}.`;
    } catch (error) {
      message = error.message;
    }
    await this.load();
    this.setNote(message);
  }
}
