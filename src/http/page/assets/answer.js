/** An answer while it comes and when it is there: text, reasoning, calls, tokens with probabilities, and numbers. */

const FINISHES = {
  stop: "complete",
  length: "stopped at the token limit",
  tool_calls: "calls a function",
  content_filter: "stopped by a filter",
  stopped: "stopped by you",
  interrupted: "interrupted",
};

/** The message of an answer that has not begun, or begins with a text and tokens of another one. */
export function newAnswer(model, content = "", tokens = []) {
  return { role: "assistant", model, content, reasoning: "", toolCalls: [], tokens: [...tokens], finish: null };
}

/** Adds the chunks of a stream to an answer and measures it. Times are in milliseconds, from any origin. */
export class AnswerBuilder {
  #heldTokens = [];
  #firstAt = null;
  #lastAt = null;

  constructor(answer, startedAt) {
    this.answer = answer;
    this.startedAt = startedAt;
  }

  /** Adds a chunk that came at a time. */
  add(chunk, now) {
    if (chunk.usage) this.answer.usage = chunk.usage;
    const choice = chunk.choices[0];
    if (!choice) return;
    const { content, reasoning_content: reasoning, tool_calls: calls = [] } = choice.delta;
    if (content || reasoning || calls.length > 0) this.#time(now);
    this.answer.content += content ?? "";
    this.answer.reasoning += reasoning ?? "";
    for (const call of calls) addCall(this.answer.toolCalls, call);
    this.#addTokens(choice.logprobs?.content ?? [], content, reasoning || calls.length > 0);
    this.answer.finish = choice.finish_reason ?? this.answer.finish;
  }

  /** Notes how the answer ended and what was measured. */
  end(finish = this.answer.finish) {
    const { answer } = this;
    answer.finish = finish;
    if (answer.tokens.length === 0) delete answer.tokens;
    if (this.#firstAt === null) return;
    answer.firstTokenMs = Math.round(this.#firstAt - this.startedAt);
    const nAfter = (answer.usage?.completion_tokens ?? 0) - 1;
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    if (nAfter > 0 && seconds > 0) answer.tokensPerSecond = nAfter / seconds;
  }

  #time(now) {
    this.#firstAt ??= now;
    this.#lastAt = now;
  }

  /** Keeps the tokens of the text. Those that come with no text belong to what comes next. */
  #addTokens(tokens, content, isOther) {
    this.#heldTokens.push(...tokens);
    if (content) this.answer.tokens.push(...this.#heldTokens);
    if (content || isOther) this.#heldTokens = [];
  }
}

/** The reason why an answer ended, in words. */
export function finishText({ finish, error }) {
  const reason = finish ?? (error ? "" : "interrupted");
  return FINISHES[reason] ?? reason;
}

/** The numbers of an answer, as pairs of a name and a value. */
export function statistics({ usage, firstTokenMs, tokensPerSecond }) {
  const details = usage?.completion_tokens_details ?? {};
  return [
    ["speed", tokensPerSecond && `${round(tokensPerSecond)} tokens/s`],
    ["first token", firstTokenMs !== undefined && `${round(firstTokenMs / 1000)} s`],
    ["prompt", usage && count(usage.prompt_tokens, "token")],
    ["cached", usage?.prompt_tokens_details?.cached_tokens],
    ["answer", usage && count(usage.completion_tokens, "token")],
    ["reasoning", details.reasoning_tokens],
    ["drafts accepted", details.accepted_prediction_tokens],
  ].filter(([, value]) => value);
}

const count = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

/** A number with two or three significant digits. */
const round = (number) => (number >= 100 ? number.toFixed(0) : number.toPrecision(2));

/** Adds a piece of a call, which its index belongs to. */
function addCall(calls, { index, id, function: piece }) {
  const call = (calls[index] ??= { id, name: "", arguments: "" });
  call.name += piece?.name ?? "";
  call.arguments += piece?.arguments ?? "";
}
