/** The chat: shows a conversation, sends its messages, and streams the answers. */

import { AnswerBuilder, newAnswer } from "./answer.js";
import { announce, announceAnswer, beginAnswer } from "./announcer.js";
import { explain, streamChat } from "./api.js";
import { Composer } from "./composer.js";
import {
  addMessage,
  branchOf,
  isEmpty,
  messagesUpTo,
  newConversation,
  removeMessage,
  requestMessages,
  shownMessages,
  switchBranch,
} from "./conversation.js";
import { byId, h, icon } from "./dom.js";
import { messageElement, StreamedMessage } from "./message.js";
import { editForm, resultForm } from "./message_forms.js";
import { chosenModel, refreshModels } from "./models.js";
import { branchAt } from "./probabilities.js";

const EXAMPLES = [
  "Explain how a hash map works, with a short example in Python.",
  "Write a polite reply to a customer whose parcel is late.",
  "What is the difference between TCP and UDP? Answer with a table.",
  "Give me three ideas for a weekend project with a microcontroller.",
];
/** The distance from its end at which the log still counts as being there, in pixels. */
const NEAR_END = 60;
/** The time between two saves of an answer that is streamed. */
const SAVE_EVERY_MS = 2000;

export class Chat {
  /** The answers that are streamed, by the id of their conversation. */
  #runs = new Map();
  #streamed = null;
  #editing = null;
  /** The ids of conversations that were deleted, which their answers must not save again. */
  #deleted = new Set();

  /** `settings` has the options of requests; `onSave` gets each saved conversation, `onSaveError` the error. */
  constructor({ store, settings, onSave, onSaveError }) {
    Object.assign(this, { store, settings, onSave, onSaveError });
    this.log = byId("log");
    this.conversation = newConversation();
    this.composer = new Composer(byId("composer"), { onSend: (text) => this.#send(text), onStop: () => this.stop() });
    this.latest = h(
      "button",
      { type: "button", class: "jump", hidden: true, onclick: () => this.#scrollToEnd() },
      icon("down"),
      "Jump to latest",
    );
    this.log.after(this.latest);
    this.log.addEventListener("scroll", () => this.#noteScroll());
    this.render();
  }

  /** Shows a new conversation, which is saved with its first message. */
  openNew() {
    this.#open(newConversation());
  }

  /** Shows a conversation of the store; returns whether there is one. */
  async open(id) {
    if (id === this.conversation.id) return true;
    const found = await this.#find(id);
    if (found) this.#open(found);
    return Boolean(found);
  }

  /** Gives a conversation another title. */
  async rename(id, title) {
    const conversation = await this.#find(id);
    conversation.title = title;
    await this.#save(conversation);
  }

  /** Deletes a conversation, and its answer if one is streamed. */
  async delete(id) {
    this.#deleted.add(id);
    this.#runs.get(id)?.controller.abort();
    await this.store.delete(id);
    if (id === this.conversation.id) this.openNew();
  }

  /** Stops the answer of the conversation that is shown; returns whether there was one. */
  stop() {
    const run = this.#runs.get(this.conversation.id);
    run?.controller.abort();
    return Boolean(run);
  }

  /** Makes the log anew and keeps the place and the focus. */
  render() {
    const isAtEnd = this.#isAtEnd();
    const place = this.log.scrollTop;
    const focus = document.activeElement?.dataset?.key;
    this.#streamed?.cancel();
    this.#streamed = null;
    const messages = shownMessages(this.conversation);
    this.log.replaceChildren(messages.length > 0 ? this.#messageList(messages) : this.#emptyState());
    this.composer.setRunning(this.#runs.has(this.conversation.id));
    if (focus) this.log.querySelector(`[data-key="${CSS.escape(focus)}"]:not(:disabled)`)?.focus();
    if (isAtEnd) this.#scrollToEnd();
    else this.log.scrollTop = place;
  }

  /** A conversation as it is at the moment, which the store may not have yet. */
  async #find(id) {
    if (id === this.conversation.id) return this.conversation;
    return this.#runs.get(id)?.conversation ?? this.store.get(id);
  }

  #open(conversation) {
    this.conversation = conversation;
    this.#editing = null;
    beginAnswer(this.#runs.get(conversation.id)?.node.content ?? "");
    this.render();
    this.#scrollToEnd();
    this.composer.field.focus({ preventScroll: true });
  }

  #messageList(messages) {
    const list = h("div", { class: "messages" }, ...messages.map((node) => this.#element(node)));
    const last = messages.at(-1);
    const isRunning = this.#runs.has(this.conversation.id);
    if (!isRunning && last.toolCalls?.length > 0)
      list.append(resultForm(last, (results) => this.#sendResults(last, results)));
    return list;
  }

  #element(node) {
    const branch = branchOf(this.conversation, node);
    if (this.#editing === node.id) return this.#editForm(node);
    if (this.#runs.get(this.conversation.id)?.node === node) {
      this.#streamed = new StreamedMessage(node, branch, this.#actions, chosenModel()?.loaded !== false);
      return this.#streamed.element;
    }
    return messageElement(node, {
      branch,
      actions: this.#actions,
      showProbabilities: this.settings.values.showProbabilities,
    });
  }

  #emptyState() {
    const examples = EXAMPLES.map((text) =>
      h("li", {}, h("button", { type: "button", onclick: () => this.composer.setText(text) }, text)),
    );
    return h(
      "div",
      { class: "empty" },
      h("h3", {}, "Ask a model on this server"),
      h("p", {}, "Conversations are kept in this browser."),
      h("ul", {}, ...examples),
    );
  }

  /** The functions that the buttons of messages call. */
  #actions = {
    switchBranch: (node, step) => {
      switchBranch(this.conversation, node, step);
      this.#save(this.conversation);
      this.render();
    },
    edit: (node) => {
      this.#editing = node.id;
      this.render();
      this.log.querySelector(".inline-form textarea").focus();
    },
    regenerate: (node) => this.#generate(node.parent),
    retry: (node) => this.#retry(node),
    continueAnswer: (node) => this.#generate(node.parent, { content: node.content, tokens: node.tokens }),
    chooseToken: (node, index, alternative) => this.#generate(node.parent, branchAt(node, index, alternative)),
  };

  #editForm(node) {
    const close = () => {
      this.#editing = null;
      this.render();
      this.log.querySelector(`[data-key="edit-${CSS.escape(node.parent)}"]`)?.focus();
    };
    return editForm(node, { onSubmit: (text) => this.#sendEdited(node, text), onCancel: close });
  }

  #send(text) {
    if (!this.#isReady()) return false;
    const last = shownMessages(this.conversation).at(-1);
    const node = addMessage(this.conversation, last?.id ?? null, { role: "user", content: text });
    this.#scrollToEnd();
    this.#generate(node.id);
    return true;
  }

  #sendEdited(node, text) {
    if (!this.#isReady()) return;
    this.#editing = null;
    this.#generate(addMessage(this.conversation, node.parent, { role: "user", content: text }).id);
  }

  #sendResults(answer, results) {
    if (!this.#isReady()) return;
    const last = results.reduce((above, result) => addMessage(this.conversation, above.id, result), answer);
    this.#generate(last.id);
  }

  /** Generates a failed answer again; one that has a text stays, as another version. */
  #retry(node) {
    const isLeaf = node.children.length === 0;
    if (isEmpty(node) && isLeaf && this.#isReady()) removeMessage(this.conversation, node);
    this.#generate(node.parent);
  }

  /** Whether a message can be sent: nothing is running, and the settings are valid. */
  #isReady() {
    return !this.#runs.has(this.conversation.id) && this.settings.check();
  }

  /** Generates an answer below a message. One that begins with a text, `prefix`, is continued. */
  async #generate(parent, prefix = null) {
    if (!this.#isReady()) return;
    const { conversation } = this;
    const model = chosenModel()?.id ?? "default";
    const body = this.#requestBody(model, parent, prefix);
    const node = addMessage(conversation, parent, newAnswer(model, prefix?.content, prefix?.tokens));
    const run = { conversation, node, controller: new AbortController(), savedAt: 0 };
    this.#runs.set(conversation.id, run);
    this.#save(conversation);
    beginAnswer(node.content);
    this.render();
    // The button that was pressed may be gone; this one stops the answer.
    if (document.activeElement === document.body) this.composer.button.focus();
    await this.#stream(run, body);
    this.#runs.delete(conversation.id);
    this.#save(conversation);
    if (this.conversation === conversation) this.#showEnd(node);
    refreshModels({ silent: true }).catch(() => {});
  }

  #requestBody(model, parent, prefix) {
    const messages = requestMessages(messagesUpTo(this.conversation, parent), this.settings.values.system);
    const body = { model, messages, ...this.settings.options(prefix !== null) };
    if (prefix === null) return body;
    messages.push({ role: "assistant", content: prefix.content });
    return { ...body, continue_final_message: true, add_generation_prompt: false };
  }

  /** Streams an answer into its message, with the error if there is one. */
  async #stream(run, body) {
    const builder = new AnswerBuilder(run.node, performance.now());
    try {
      const { ignored, chunks } = await streamChat(body, run.controller.signal);
      if (ignored) run.node.ignored = ignored;
      for await (const chunk of chunks) {
        builder.add(chunk, performance.now());
        this.#showProgress(run);
      }
      builder.end();
    } catch (error) {
      if (error.name !== "AbortError") run.node.error = explain(error);
      builder.end(error.name === "AbortError" ? "stopped" : null);
    }
  }

  #showProgress(run) {
    const now = performance.now();
    if (now - run.savedAt > SAVE_EVERY_MS) {
      run.savedAt = now;
      this.#save(run.conversation);
    }
    if (this.#streamed?.node !== run.node) return;
    const isAtEnd = this.#isAtEnd();
    this.#streamed.schedule(() => {
      if (isAtEnd) this.#scrollToEnd();
      else this.#noteScroll();
      announceAnswer(run.node.content, false);
    });
  }

  #showEnd(node) {
    this.render();
    announceAnswer(node.content, true);
    if (node.finish === "stopped") announce("Stopped.");
    if (node.error) announce(node.error);
  }

  async #save(conversation) {
    if (this.#deleted.has(conversation.id)) return;
    try {
      await this.store.put(conversation);
      this.onSave(conversation);
    } catch (error) {
      this.onSaveError(error);
    }
  }

  #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.log;
    return scrollHeight - scrollTop - clientHeight < NEAR_END;
  }

  #scrollToEnd() {
    this.log.scrollTop = this.log.scrollHeight;
    this.#noteScroll();
  }

  #noteScroll() {
    this.latest.hidden = this.#isAtEnd();
  }
}
