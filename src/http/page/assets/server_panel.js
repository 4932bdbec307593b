/** The load of the server as small charts, measured each second while the panel is on the screen. */

import { ApiError, getJson } from "./api.js";
import { h, svg } from "./dom.js";

const PERIOD_MS = 1000;
const N_SAMPLES = 60;
const [WIDTH, HEIGHT] = [120, 32];

/** One row for each chart: its name, the value of a load, the least height of its scale, and the value in words. */
const CHARTS = [
  { name: "Running", valueOf: (load) => load.num_running_reqs, scale: 4, format: String },
  { name: "Waiting", valueOf: (load) => load.num_waiting_reqs, scale: 4, format: String },
  {
    name: "KV cache",
    valueOf: (load) => load.token_usage,
    scale: 0.1,
    format: (share) => `${(100 * share).toFixed(1)}%`,
  },
  {
    name: "Tokens/s",
    valueOf: (load) => load.gen_throughput,
    scale: 10,
    format: (rate) => rate.toFixed(rate < 10 ? 1 : 0),
  },
];

/** Shows the panel in an element and measures while it can be seen. */
export function startServerPanel(root) {
  const charts = CHARTS.map(newChart);
  const status = h("p", { class: "note" }, "Not measured yet");
  root.replaceChildren(
    h("h2", {}, "Server"),
    h("div", { class: "charts" }, ...charts.map(({ element }) => element)),
    status,
  );
  let timer = null;
  let isOnScreen = false;

  const measure = async () => {
    try {
      const total = totalOf((await getJson("v1/loads", { silent: true })).loads);
      for (const chart of charts) chart.add(total);
      status.textContent = statusOf(total);
    } catch (error) {
      status.textContent =
        error instanceof ApiError && error.status === 401 ? "Needs an API key" : "The server cannot be reached";
    }
    timer = null;
    schedule(PERIOD_MS);
  };
  const schedule = (delay) => {
    if (isOnScreen && !document.hidden) timer ??= setTimeout(measure, delay);
  };
  const reconsider = () => {
    if (!isOnScreen || document.hidden) {
      clearTimeout(timer);
      timer = null;
    } else schedule(0);
  };
  new IntersectionObserver(([entry]) => {
    isOnScreen = entry.isIntersecting;
    reconsider();
  }).observe(root);
  document.addEventListener("visibilitychange", reconsider);
}

/** The load of all chat models in memory together. */
function totalOf(loads) {
  const sum = (name) => loads.reduce((total, load) => total + load[name], 0);
  const [used, capacity] = [sum("num_used_tokens"), sum("max_total_num_tokens")];
  return {
    num_running_reqs: sum("num_running_reqs"),
    num_waiting_reqs: sum("num_waiting_reqs"),
    gen_throughput: sum("gen_throughput"),
    token_usage: capacity > 0 ? used / capacity : 0,
    cache_hit_rate: loads.length > 0 ? sum("cache_hit_rate") / loads.length : 0,
    capacity,
    n_models: loads.length,
  };
}

function statusOf({ n_models: nModels, capacity, cache_hit_rate: hits }) {
  const models = nModels === 1 ? "1 chat model loaded" : `${nModels} chat models loaded`;
  const cached = `${Math.round(100 * hits)}% of prompts from the prefix cache`;
  return `${models}, KV cache of ${Math.round(capacity / 1000)}K tokens, ${cached}`;
}

function newChart({ name, valueOf, scale, format }) {
  const samples = [];
  const line = svg("polyline", { class: "line" });
  const area = svg("polygon", { class: "area" });
  const chart = svg(
    "svg",
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    area,
    line,
  );
  const value = h("dd", {}, "–");
  const add = (load) => {
    samples.push(valueOf(load));
    if (samples.length > N_SAMPLES) samples.shift();
    value.textContent = format(samples.at(-1));
    const points = pointsOf(samples, scale);
    line.setAttribute("points", points);
    area.setAttribute("points", `${points} ${WIDTH},${HEIGHT} ${xOf(0, samples.length)},${HEIGHT}`);
  };
  return { element: h("dl", { class: "chart" }, h("div", {}, h("dt", {}, name), value), chart), add };
}

/** The points of a line that ends at the right edge. */
function pointsOf(samples, scale) {
  const top = Math.max(scale, ...samples);
  return samples
    .map((sample, index) => `${xOf(index, samples.length)},${(HEIGHT - 1 - (HEIGHT - 2) * (sample / top)).toFixed(1)}`)
    .join(" ");
}

const xOf = (index, count) => (((N_SAMPLES - count + index) / (N_SAMPLES - 1)) * WIDTH).toFixed(1);
