// The last hour as small charts. All share one moment that the pointer or the slider chooses.

import { h, type VNode } from "./dom";
import { bytes, few, millis, time } from "./format";
import { section } from "./parts";
import { changed, state } from "./state";
import type { History, Values } from "./types";

const WIDTH = 360, HEIGHT = 56;
/** Fewer points than an hour has are shown wider. */
const LEAST_MS = 600_000;

interface Chart { title: string; lines: [string, string][]; format: (value: number) => string }

const sessions = (value: number) => few(value);
const perSecond = (value: number) => `${few(value)}/s`;
const ROUTE: Chart[] = [
  { title: "sessions", lines: [["sessions", ""], ["held", "held"]], format: sessions },
  { title: "transactions", lines: [["transactions", ""]], format: perSecond },
  { title: "transaction time", lines: [["transaction_ms", "mean"]], format: millis },
  { title: "waiting", lines: [["waiting", ""]], format: sessions },
  { title: "wait for a connection", lines: [["wait_ms", "mean"]], format: millis },
  { title: "server connections", lines: [["leased_connections", "leased"], ["idle_connections", "idle"]], format: sessions },
  { title: "traffic", lines: [["bytes_down", "out"], ["bytes_up", "in"]], format: (value) => `${bytes(value)}/s` },
  { title: "errors", lines: [["server_errors", "servers"], ["router_errors", "router"]], format: perSecond },
];
const MEMBER: Chart[] = [
  { title: "connections", lines: [["server_connections", ""], ["sessions", "sessions"]], format: sessions },
  { title: "lag", lines: [["lag_bytes", ""]], format: bytes },
  { title: "probe", lines: [["probe_ms", "mean"]], format: millis },
];
const ROUTER: Chart[] = [
  { title: "logins", lines: [["logins", "accepted"], ["logins_refused", "refused"]], format: perSecond },
  { title: "login time", lines: [["login_ms", "mean"]], format: millis },
  { title: "connect time", lines: [["connect_ms", "mean"]], format: millis },
  { title: "memory", lines: [["memory_bytes", ""]], format: bytes },
];

export function charts(): VNode {
  const history = state.history;
  if (!history) return section("charts", "Last hour", null, h("p", { class: "empty" }, "Waiting for the router …"));
  if (history.time_ms.length < 2) {
    return section("charts", "Last hour", null, h("p", { class: "empty" }, "The router takes a point every 10 s; the charts begin with the second one."));
  }
  const times = history.time_ms;
  const index = at(history);
  const moment = state.cursor === null ? "now" : time(times[index] ?? 0);
  return section("charts", "Last hour", null,
    h("label", { class: "moment" }, "Moment ", h("input", {
      type: "range", min: "0", max: String(times.length - 1), value: String(index), "aria-valuetext": moment,
      oninput: (event: Event) => {
        const value = Number((event.target as HTMLInputElement).value);
        state.cursor = value >= times.length - 1 ? null : times.length - 1 - value;
        changed();
      },
    }), h("output", null, moment), h("span", { class: "soft" }, `since ${time((times[times.length - 1] ?? 0) - span(history))}`)),
    history.routes.map(({ route, series }) => group(`route ${route}`, ROUTE, series, history)),
    h("div", { class: "groups" },
      history.members.map(({ cluster, member, series }) => group(`member ${state.clusters.length > 1 ? `${cluster}/` : ""}${member}`, MEMBER, series, history)),
      group("router", ROUTER, history.router, history)),
    history.left_out ? h("p", { class: "soft" }, `${history.left_out} more ${history.left_out === 1 ? "has" : "have"} no charts: there are charts of 64 routes and 64 members at most.`) : null);
}

/** The index of the point that is looked at. */
function at(history: History): number {
  return Math.max(0, history.time_ms.length - 1 - (state.cursor ?? 0));
}

/** The time that the charts show. */
function span(history: History): number {
  const times = history.time_ms;
  return Math.max(LEAST_MS, (times[times.length - 1] ?? 0) - (times[0] ?? 0));
}

function group(title: string, all: Chart[], values: Values, history: History): VNode {
  const shown = all.filter(({ lines }) => lines.some(([name]) => (values[name] ?? []).some((value) => value !== null)));
  return h("div", { key: title, class: "charts" }, h("h3", null, title),
    h("div", { class: "grid" }, shown.map((chart) => draw(title, chart, values, history))));
}

function draw(of: string, chart: Chart, values: Values, history: History): VNode {
  const index = at(history);
  const lines = chart.lines
    .map(([name, label]) => ({ label, values: values[name] ?? [] }))
    .filter((line, place) => place === 0 || line.values.some((value) => value));
  const known = lines.flatMap((line) => line.values.filter((value): value is number => value !== null));
  const most = Math.max(...known, 0);
  const top = most > 0 ? most * 1.08 : 1;
  const times = history.time_ms;
  const newest = times[times.length - 1] ?? 0;
  const shownMs = span(history);
  const x = (moment: number) => WIDTH * (1 - (newest - moment) / shownMs);
  const y = (value: number) => HEIGHT - 2 - (value / top) * (HEIGHT - 6);
  const shown = (value: number | null | undefined) => value === null || value === undefined ? "–" : chart.format(value);
  const says = lines.map((line) => `${line.label ? `${line.label} ` : ""}${shown(line.values[index])}`).join(", ");
  const highest = known.length ? `, at most ${chart.format(most)} in the last hour` : "";
  const point = (event: PointerEvent) => {
    const box = (event.currentTarget as Element).getBoundingClientRect();
    const wanted = newest - (1 - (event.clientX - box.left) / box.width) * shownMs;
    let nearest = 0;
    times.forEach((moment, place) => { if (Math.abs(moment - wanted) < Math.abs((times[nearest] ?? 0) - wanted)) nearest = place; });
    state.cursor = nearest === times.length - 1 ? null : times.length - 1 - nearest;
    changed();
  };
  return h("figure", { key: chart.title, class: "chart" },
    h("figcaption", null, h("span", { class: "title" }, chart.title),
      h("span", { class: "values" }, lines.map((line, place) => h("span", { key: String(place), class: `value line${place}` }, line.label ? `${line.label} ` : "", h("b", null, shown(line.values[index])))))),
    h("span", { class: "most", "aria-hidden": "true" }, known.length ? `max ${chart.format(most)}` : ""),
    h("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${of}, ${chart.title}: ${says}${highest}`,
      onpointermove: point, onpointerleave: () => { state.cursor = null; changed(); },
    },
      [0.25, 0.5, 0.75].map((part) => h("line", { class: "rule", x1: WIDTH * part, x2: WIDTH * part, y1: 0, y2: HEIGHT })),
      h("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 1.5, y2: HEIGHT - 1.5 }),
      lines.length === 1 ? h("path", { class: "area", d: area(lines[0]?.values ?? [], times, x, y) }) : null,
      lines.map((line, place) => h("path", { key: `l${place}`, class: `line line${place}`, d: path(line.values, times, x, y) })),
      state.cursor === null ? null : h("line", { class: "cursor", x1: x(times[index] ?? 0), x2: x(times[index] ?? 0), y1: 0, y2: HEIGHT })));
}

type Scale = (value: number) => number;

function runs(values: (number | null)[], times: number[]): [number, number][][] {
  const all: [number, number][][] = [];
  let run: [number, number][] = [];
  values.forEach((value, place) => {
    if (value !== null) {
      run.push([times[place] ?? 0, value]);
    } else if (run.length) {
      all.push(run);
      run = [];
    }
  });
  if (run.length) all.push(run);
  return all;
}

function path(values: (number | null)[], times: number[], x: Scale, y: Scale): string {
  return runs(values, times).map((run) => {
    const points = run.map(([moment, value]) => `${x(moment).toFixed(1)} ${y(value).toFixed(1)}`);
    // A single point is a dot, by the round end of a line without length.
    return `M${points.join("L")}${points.length === 1 ? "h0" : ""}`;
  }).join("");
}

function area(values: (number | null)[], times: number[], x: Scale, y: Scale): string {
  return runs(values, times).filter((run) => run.length > 1).map((run) => {
    const points = run.map(([moment, value]) => `${x(moment).toFixed(1)} ${y(value).toFixed(1)}`);
    const first = x(run[0]?.[0] ?? 0).toFixed(1), last = x(run[run.length - 1]?.[0] ?? 0).toFixed(1);
    return `M${first} ${HEIGHT}L${points.join("L")}L${last} ${HEIGHT}Z`;
  }).join("");
}
