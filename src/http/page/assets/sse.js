/** Parser of server-sent events (WHATWG HTML, section 9.2). It reads their `data`; this server needs no other field. */
export class EventParser {
  #line = "";
  #data = [];

  /** Takes the next piece of the stream and returns the data of the events that it completes. */
  push(text) {
    // A carriage return at the end may be half of a line break.
    const lines = (this.#line + text).split(/\r\n|\n|\r(?!$)/);
    this.#line = lines.pop();
    const events = [];
    for (const line of lines) {
      if (line === "") this.#end(events);
      else if (line.startsWith("data:")) this.#data.push(line.slice(5).replace(/^ /, ""));
    }
    return events;
  }

  #end(events) {
    if (this.#data.length > 0) events.push(this.#data.join("\n"));
    this.#data = [];
  }
}
