/** Element builder. All nodes of the page are made here from names and texts; nothing is parsed as HTML. */

const SVG = "http://www.w3.org/2000/svg";

/** Paths of the icons, on a grid of 24 by 24. */
const ICONS = {
  attach: "M20 11.5 12 19.4a5 5 0 0 1-7.1-7.1l8.3-8.2a3.4 3.4 0 0 1 4.8 4.8l-8.2 8.2a1.7 1.7 0 0 1-2.4-2.4l7.4-7.4",
  check: "m5 12.5 4.5 4.5L19 7.5",
  close: "M6 6l12 12M18 6 6 18",
  copy: "M9 9h10v10H9zM5 15V5h10",
  delete: "M5 7h14M10 7V4.5h4V7M7 7l.8 12.5h8.4L17 7M10.5 11v5M13.5 11v5",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  export: "M12 4v11M7.5 10.5 12 15l4.5-4.5M5 19.5h14",
  forward: "M5 5l7 7-7 7M12 5l7 7-7 7",
  import: "M12 15V4M7.5 8.5 12 4l4.5 4.5M5 19.5h14",
  menu: "M4 7h16M4 12h16M4 17h16",
  next: "m9 6 6 6-6 6",
  plus: "M12 5v14M5 12h14",
  previous: "m15 6-6 6 6 6",
  regenerate: "M19 12a7 7 0 1 1-2.2-5.1L19 9M19 4v5h-5",
  send: "M12 19V5M6 11l6-6 6 6",
  settings: "M4 7h10M18 7h2M4 17h2M10 17h10M14 4.5v5M6 14.5v5",
  stop: "M7 7h10v10H7z",
};

/**
 * Creates an element. Attributes that are functions become listeners (`onclick`), `true` is an attribute without a
 * value, and null, undefined and `false` leave it out.
 */
export function h(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** Creates an SVG element, as `h` does for HTML. */
export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

/** Creates an icon, which screen readers skip. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

/** Creates a button that shows an icon; `label` is its name and its tooltip. */
export function iconButton(name, label, onclick, attributes = {}) {
  return h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...attributes },
    icon(name),
  );
}

/**
 * Creates the nodes of a description: a text, or an array of a name, attributes and children. `components` has the
 * functions that create what is no element; they get the attributes.
 */
export function build(description, components = {}) {
  if (typeof description === "string") return document.createTextNode(description);
  const [name, attributes, ...children] = description;
  if (components[name]) return components[name](attributes);
  return h(name, attributes, ...children.map((child) => build(child, components)));
}

/** The element with an id of index.html. */
export const byId = (id) => document.getElementById(id);

/** Lets the user save a text as a file. */
export function download(fileName, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  h("a", { href: url, download: fileName }).click();
  URL.revokeObjectURL(url);
}

/** Sets attributes and appends children; null children are left out. */
function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false)
      element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
