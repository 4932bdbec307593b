/** The page: puts the views together, and shows the one that the address names. */

import { announce } from "./announcer.js";
import { apiKey, explain, onKeyNeeded, setApiKey } from "./api.js";
import { Chat } from "./chat.js";
import { startDecisions } from "./decisions.js";
import { askForKey } from "./dialogs.js";
import { byId, h } from "./dom.js";
import { closeDrawer, startDrawer } from "./drawers.js";
import { startEmbeddings } from "./embeddings.js";
import { refreshModels, startModelPicker } from "./models.js";
import { startServerPanel } from "./server_panel.js";
import { Settings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Store } from "./store.js";

const VIEWS = ["chat", "embeddings", "decisions"];

onKeyNeeded(async (isWrong) => {
  const entered = await askForKey(isWrong);
  if (entered) setApiKey(entered.key, entered.isRemembered);
  return entered !== null;
});

const [serverPanel, settingsForm] = [
  h("section", { class: "server-panel", "aria-label": "Server" }),
  h("section", { "aria-label": "Settings" }),
];
byId("settings").append(serverPanel, settingsForm);
const settings = new Settings(settingsForm, {
  onShowProbabilities: () => chat.render(),
  onInvalid: () => openSettings(),
});
const store = await Store.open(async (id) => sidebar.update(id, await store.get(id)));
const chat = new Chat({
  store,
  settings,
  onSave: (conversation) => saved(conversation),
  onSaveError: (error) => sidebar.setNote(`This conversation could not be saved: ${error.message}`),
});
const sidebar = new Sidebar(byId("sidebar"), {
  store,
  onNew: () => {
    chat.openNew();
    location.hash = "#chat";
    closeDrawer();
    chat.composer.field.focus();
  },
  onRename: (id, title) => chat.rename(id, title),
  onDelete: async (id) => {
    const isShown = id === chat.conversation.id && !byId("chat").hidden;
    await chat.delete(id);
    sidebar.update(id, null);
    if (isShown) location.hash = "#chat";
  },
});
const embeddings = startEmbeddings(byId("embeddings"));
startDecisions(byId("decisions"));

byId("app").hidden = false;
startDrawer({
  id: "sidebar",
  name: "Conversations",
  iconName: "menu",
  place: byId("open-sidebar"),
  wideQuery: "(min-width: 800px)",
});
const openSettings = startDrawer({
  id: "settings",
  name: "Server and settings",
  iconName: "settings",
  place: byId("open-settings"),
  wideQuery: "(min-width: 1150px)",
});
startServerPanel(serverPanel);
byId("backdrop").addEventListener("click", closeDrawer);
addEventListener("hashchange", showView);
addEventListener("keydown", escape);
document.addEventListener("visibilitychange", () => document.hidden || refreshModels({ silent: true }).catch(() => {}));
await sidebar.load();
await showView();
await startModels();

/** Shows the view of the address: `#chat`, `#chat/ID`, `#embeddings` or `#decisions`. */
async function showView() {
  const [name, id] = location.hash.slice(1).split("/");
  const view = VIEWS.includes(name) ? name : "chat";
  for (const other of VIEWS) byId(other).hidden = other !== view;
  for (const link of document.querySelectorAll(".top-bar nav a")) {
    if (link.hash.slice(1).split("/")[0] === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "chat" && id) await showConversation(id);
  showCurrent();
}

async function showConversation(id) {
  if (!(await chat.open(id))) announce("There is no such conversation in this browser.");
  closeDrawer();
}

/** Shows a conversation that was saved in the list, and in the address once it has a message. */
function saved(conversation) {
  const isShown = conversation === chat.conversation && !byId("chat").hidden;
  if (isShown && location.hash !== `#chat/${conversation.id}`)
    history.replaceState(null, "", `#chat/${conversation.id}`);
  sidebar.update(conversation.id, conversation);
  showCurrent();
}

/** Names the conversation that is shown in the list, in the link to the chat, and in the title of the window. */
function showCurrent() {
  const { id, title } = chat.conversation;
  const isShown = !byId("chat").hidden;
  sidebar.setCurrent(isShown ? id : null);
  byId("chat-link").setAttribute("href", title ? `#chat/${id}` : "#chat");
  document.title = isShown && title ? `${title} – predict-otron-9000` : "predict-otron-9000";
}

async function startModels() {
  try {
    await startModelPicker();
    embeddings.refresh();
    // A link sends no key, and the documentation needs it.
    byId("docs-link").hidden = apiKey() !== null;
  } catch (error) {
    const note = h(
      "p",
      { class: "error banner", role: "alert" },
      explain(error),
      h("button", { type: "button", onclick: retry }, "Try again"),
    );
    byId("main").prepend(note);
    function retry() {
      note.remove();
      startModels();
    }
  }
}

/** Closes what is open, else stops the answer. Dialogs and popovers close by themselves. */
function escape(event) {
  if (event.key !== "Escape" || event.defaultPrevented || document.querySelector("dialog[open], :popover-open")) return;
  if (closeDrawer() || chat.stop()) event.preventDefault();
}
