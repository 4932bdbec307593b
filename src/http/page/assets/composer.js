/** The field for the next message, with files attached to it. */

import { h, icon, iconButton } from "./dom.js";

/** The server takes requests of up to 2 MiB. */
const MAX_FILE_BYTES = 256 * 1024;

export class Composer {
  #files = [];

  /** `onSend` gets the text of a message and returns whether it was taken; `onStop` stops the answer. */
  constructor(root, { onSend, onStop }) {
    this.onSend = onSend;
    this.onStop = onStop;
    this.field = h("textarea", {
      id: "message",
      rows: "1",
      placeholder: "Send a message",
      dir: "auto",
      "aria-label": "Message",
      "aria-describedby": "composer-hint",
    });
    this.field.addEventListener("input", () => this.#fit());
    this.field.addEventListener("keydown", (event) => this.#keyPressed(event));
    this.chips = h("ul", { class: "chips", "aria-label": "Attached files", hidden: true });
    this.problem = h("p", { class: "error-text", role: "alert" });
    this.picker = h("input", {
      type: "file",
      multiple: true,
      class: "visually-hidden",
      tabindex: "-1",
      "aria-hidden": "true",
    });
    this.picker.addEventListener("change", () => this.#attach([...this.picker.files]));
    this.button = h("button", { type: "submit", class: "send primary" });
    const form = h(
      "form",
      { class: "composer" },
      this.chips,
      this.field,
      h(
        "div",
        { class: "composer-row" },
        iconButton("attach", "Attach text files", () => this.picker.click()),
        this.picker,
        h("span", { id: "composer-hint" }, "Enter sends, Shift+Enter breaks the line"),
        this.button,
      ),
      this.problem,
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    acceptDroppedFiles(form, (files) => this.#attach(files));
    root.replaceChildren(form);
    this.setRunning(false);
  }

  /** Shows the button that stops the answer instead of the one that sends. */
  setRunning(isRunning) {
    if (this.isRunning === isRunning) return;
    this.isRunning = isRunning;
    const label = isRunning ? "Stop" : "Send";
    this.button.replaceChildren(icon(isRunning ? "stop" : "send"));
    this.button.setAttribute("aria-label", label);
    this.button.title = isRunning ? "Stop (Esc)" : label;
  }

  /** Puts a text into the field, for the user to send. */
  setText(text) {
    this.field.value = text;
    this.#fit();
    this.field.focus();
  }

  #keyPressed(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (!this.isRunning) this.#submit();
  }

  #submit() {
    if (this.isRunning) return this.onStop();
    const text = [...this.#files.map(fencedFile), this.field.value.trim()].filter(Boolean).join("\n\n");
    if (!text || !this.onSend(text)) return;
    this.field.value = "";
    this.#files = [];
    this.#showFiles();
    this.#fit();
  }

  async #attach(files) {
    this.problem.textContent = "";
    for (const file of files) {
      try {
        this.#files.push({ name: file.name, text: await readText(file) });
      } catch (error) {
        this.problem.textContent = error.message;
      }
    }
    this.picker.value = "";
    this.#showFiles();
    this.field.focus();
  }

  #showFiles() {
    const chip = (file) =>
      h(
        "li",
        {},
        file.name,
        iconButton("close", `Remove ${file.name}`, () => {
          this.#files = this.#files.filter((other) => other !== file);
          this.#showFiles();
          this.field.focus();
        }),
      );
    this.chips.replaceChildren(...this.#files.map(chip));
    this.chips.hidden = this.#files.length === 0;
  }

  /** Makes the field as high as its text; the style sheet bounds it. */
  #fit() {
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }
}

/** A file as a fenced block with its name. The fence is longer than any in the text. */
export function fencedFile({ name, text }) {
  const longest = Math.max(2, ...[...text.matchAll(/`{3,}/g)].map(([fence]) => fence.length));
  const fence = "`".repeat(longest + 1);
  const language = /\.(\w+)$/.exec(name)?.[1] ?? "";
  return `${name}:\n\n${fence}${language}\n${text.replace(/\n$/, "")}\n${fence}`;
}

async function readText(file) {
  if (file.size > MAX_FILE_BYTES) {
    throw new Error(
      `${file.name} has ${Math.ceil(file.size / 1024)} KiB; a file may have ${MAX_FILE_BYTES / 1024} KiB.`,
    );
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
  } catch {
    throw new Error(`${file.name} is not a text in UTF-8.`);
  }
}

function acceptDroppedFiles(form, attach) {
  form.addEventListener("dragover", (event) => event.preventDefault());
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    attach([...event.dataTransfer.files]);
  });
}
