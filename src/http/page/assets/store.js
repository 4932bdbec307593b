/** Conversations in the browser's IndexedDB. Where that is forbidden, they last as long as the page. */

const DATABASE = "predict-otron-9000";
const CONVERSATIONS = "conversations";

export class Store {
  #database = null;
  #memory = new Map();
  #channel = new BroadcastChannel(DATABASE);

  /** Opens the store. `onChange` gets the id of a conversation that another tab has changed. */
  static async open(onChange) {
    const store = new Store();
    store.#database = await openDatabase().catch(() => null);
    store.#channel.onmessage = ({ data: id }) => onChange(id);
    return store;
  }

  /** Whether conversations outlast the page. */
  get isPersistent() {
    return this.#database !== null;
  }

  async all() {
    return this.#database ? this.#run("readonly", (table) => table.getAll()) : [...this.#memory.values()];
  }

  /** A conversation, or undefined. */
  async get(id) {
    return this.#database ? this.#run("readonly", (table) => table.get(id)) : this.#memory.get(id);
  }

  async put(conversation) {
    if (this.#database) await this.#run("readwrite", (table) => table.put(conversation));
    else this.#memory.set(conversation.id, conversation);
    this.#channel.postMessage(conversation.id);
  }

  async delete(id) {
    if (this.#database) await this.#run("readwrite", (table) => table.delete(id));
    else this.#memory.delete(id);
    this.#channel.postMessage(id);
  }

  async #run(mode, call) {
    return resultOf(call(this.#database.transaction(CONVERSATIONS, mode).objectStore(CONVERSATIONS)));
  }
}

async function openDatabase() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(CONVERSATIONS, { keyPath: "id" });
  return resultOf(request);
}

function resultOf(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
