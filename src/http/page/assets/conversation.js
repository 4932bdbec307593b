/**
 * The message tree of a conversation.
 *
 * Every message is a node with a `parent` and `children`; `selected` is the index of the child that is shown. Editing a
 * message or regenerating an answer adds a sibling, so nothing that was said is lost. The root has no message.
 */

const ROOT = "root";
const TITLE_LENGTH = 60;
const EXPORT_FORMAT = "predict-otron-9000 conversations";
const ROLES = ["user", "assistant", "tool"];
/** The result of a call whose result the user did not give: the server wants one for every call. */
const NO_RESULT = "No result was given.";

/** Creates a conversation without messages. */
export function newConversation() {
  const now = Date.now();
  const root = { id: ROOT, parent: null, role: null, children: [], selected: 0 };
  return { id: newId(), title: "", createdAt: now, updatedAt: now, nodes: { [ROOT]: root } };
}

/** Adds a message below another one, or at the beginning if `parent` is null, and shows it. */
export function addMessage(conversation, parent, message) {
  const above = conversation.nodes[parent ?? ROOT];
  const node = { ...message, id: newId(), parent: above.id, children: [], selected: 0 };
  conversation.nodes[node.id] = node;
  above.selected = above.children.push(node.id) - 1;
  conversation.updatedAt = Date.now();
  if (!conversation.title && message.role === "user") conversation.title = titleOf(message.content);
  return node;
}

/** Removes a message that nothing follows. */
export function removeMessage(conversation, node) {
  const above = conversation.nodes[node.parent];
  above.children = above.children.filter((id) => id !== node.id);
  above.selected = Math.max(0, above.children.length - 1);
  delete conversation.nodes[node.id];
}

/** The messages that are shown, from the first to the last. */
export function shownMessages(conversation) {
  const messages = [];
  let node = conversation.nodes[ROOT];
  while (node.children.length > 0) {
    node = conversation.nodes[node.children[node.selected]];
    messages.push(node);
  }
  return messages;
}

/** The messages from the first to a given one. */
export function messagesUpTo(conversation, id) {
  const messages = [];
  for (let node = conversation.nodes[id]; node && node.id !== ROOT; node = conversation.nodes[node.parent]) {
    messages.unshift(node);
  }
  return messages;
}

/** The number of a message among its siblings, from 0, and how many they are. */
export function branchOf(conversation, node) {
  const { children } = conversation.nodes[node.parent];
  return { index: children.indexOf(node.id), count: children.length };
}

/** Shows another sibling of a message: `step` is 1 for the next one and -1 for the previous one. */
export function switchBranch(conversation, node, step) {
  const above = conversation.nodes[node.parent];
  const index = above.children.indexOf(node.id) + step;
  above.selected = Math.min(Math.max(index, 0), above.children.length - 1);
}

/** The messages of a request, as the chat API wants them. */
export function requestMessages(nodes, systemPrompt) {
  const messages = systemPrompt ? [{ role: "system", content: systemPrompt }] : [];
  nodes.forEach((node, index) => {
    if (node.role === "tool") messages.push({ role: "tool", tool_call_id: node.callId, content: node.content });
    else if (node.role === "user") messages.push({ role: "user", content: node.content });
    else if (!isEmpty(node)) messages.push(assistantMessage(node), ...missingResults(node, nodes.slice(index + 1)));
  });
  return messages;
}

/** Whether a message has neither text nor calls, as an answer that failed before it began. */
export const isEmpty = (node) => !node.content && !node.toolCalls?.length;

/** Whether all words of a search occur in a conversation. */
export function matches(conversation, search) {
  const texts = Object.values(conversation.nodes).map((node) => node.content ?? "");
  const text = [conversation.title, ...texts].join("\n").toLowerCase();
  return search
    .toLowerCase()
    .split(/\s+/)
    .every((word) => text.includes(word));
}

/** The text of a file with conversations. */
export function exportText(conversations) {
  return JSON.stringify({ format: EXPORT_FORMAT, version: 1, conversations }, null, 1);
}

/** Reads a file with conversations. Each gets a new id, so that none replaces one that exists. */
export function importText(text) {
  const file = parseJson(text);
  if (file?.format !== EXPORT_FORMAT || !Array.isArray(file.conversations)) {
    throw new Error("This file has no conversations of predict-otron-9000.");
  }
  return file.conversations.map(importedConversation);
}

/** A random id. Pages without TLS that come from another machine have no `crypto.randomUUID`. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error("This file is not JSON.");
  }
}

/** Copies a conversation of a file, following its tree, so that only sound nodes are taken over. */
function importedConversation(source) {
  const conversation = newConversation();
  const nodes = source?.nodes;
  if (!nodes?.[ROOT]) throw new Error("A conversation of this file has no messages.");
  conversation.title = textOf(source.title);
  const copies = [[ROOT, ROOT]];
  const seen = new Set();
  for (const [sourceId, id] of copies) {
    if (seen.has(sourceId)) throw new Error("A conversation of this file has a message twice.");
    seen.add(sourceId);
    for (const child of nodes[sourceId].children ?? []) {
      if (!ROLES.includes(nodes[child]?.role)) throw new Error("A message of this file is not complete.");
      const copy = addMessage(conversation, id, soundMessage(nodes[child]));
      copies.push([child, copy.id]);
    }
    conversation.nodes[id].selected = soundIndex(nodes[sourceId].selected, conversation.nodes[id].children.length);
  }
  conversation.createdAt = Number(source.createdAt) || conversation.createdAt;
  conversation.updatedAt = Number(source.updatedAt) || conversation.updatedAt;
  return conversation;
}

/** A message of a file with the fields that are known, each of its type. */
function soundMessage(source) {
  const message = { role: source.role, content: textOf(source.content) };
  for (const name of ["reasoning", "callId", "name", "model", "finish", "error", "ignored"]) {
    if (source[name]) message[name] = textOf(source[name]);
  }
  for (const name of ["firstTokenMs", "tokensPerSecond"]) {
    if (Number.isFinite(source[name])) message[name] = source[name];
  }
  if (Number.isInteger(source.usage?.prompt_tokens) && Number.isInteger(source.usage.completion_tokens))
    message.usage = source.usage;
  if (Array.isArray(source.toolCalls)) message.toolCalls = source.toolCalls.map(soundCall);
  if (Array.isArray(source.tokens) && source.tokens.every(isSoundToken)) message.tokens = source.tokens;
  return message;
}

const soundCall = (call) => ({ id: textOf(call?.id), name: textOf(call?.name), arguments: textOf(call?.arguments) });

const isSoundToken = (token) =>
  isCandidate(token) && Array.isArray(token.top_logprobs) && token.top_logprobs.every(isCandidate);

const isCandidate = (token) =>
  typeof token?.token === "string" && Number.isFinite(token.logprob) && Array.isArray(token.bytes);

const textOf = (value) => (typeof value === "string" ? value : "");

const soundIndex = (index, count) => (Number.isInteger(index) && index >= 0 && index < count ? index : 0);

function assistantMessage(node) {
  const message = { role: "assistant", content: node.content };
  if (node.toolCalls?.length > 0) {
    message.tool_calls = node.toolCalls.map(({ id, name, arguments: text }) => ({
      id,
      type: "function",
      function: { name, arguments: text },
    }));
  }
  return message;
}

/** Results of the calls of an answer that none of the messages after it has. */
function missingResults(node, after) {
  const given = new Set(after.filter(({ role }) => role === "tool").map(({ callId }) => callId));
  const missing = (node.toolCalls ?? []).filter(({ id }) => !given.has(id));
  return missing.map(({ id }) => ({ role: "tool", tool_call_id: id, content: NO_RESULT }));
}

/** The first line of a message, shortened. */
function titleOf(text) {
  const line = text.trim().split("\n", 1)[0];
  return line.length > TITLE_LENGTH ? `${line.slice(0, TITLE_LENGTH - 1)}…` : line;
}
