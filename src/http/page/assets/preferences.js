/** Values kept in the browser's storage. Browsers may forbid storage; then they last as long as the page. */

const fallback = new Map();

/** Returns the value that is kept under a name, or null. */
export function readPreference(name, storage = "localStorage") {
  try {
    return JSON.parse(globalThis[storage].getItem(name));
  } catch {
    return fallback.get(storage + name) ?? null;
  }
}

/** Keeps a value under a name; null removes it. */
export function writePreference(name, value, storage = "localStorage") {
  fallback.set(storage + name, value);
  try {
    if (value === null) globalThis[storage].removeItem(name);
    else globalThis[storage].setItem(name, JSON.stringify(value));
  } catch {
    // The storage is forbidden or full.
  }
}
