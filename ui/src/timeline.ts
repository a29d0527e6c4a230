// Leaders, holds and switchovers of the last hour, on one line each, and in words.

import { h, type Child, type VNode } from "./dom";
import { capital } from "./verdict";
import { millis, moment, seconds } from "./format";
import { section, table } from "./parts";
import * as actions from "./actions";
import { state } from "./state";
import type { Happened, Hold } from "./types";

const SPAN_MS = 3_600_000;

interface Bar { key: string; from: number; to: number; label: string; kind: string; isOpen: boolean }

interface Entry { key: string; at: number; what: string; cause: string; clients: number | null; lasted: number | null; by: string; isBad: boolean }

export function timeline(now: number): VNode {
  const lanes: [string, Bar[]][] = [];
  for (const cluster of state.clusters) {
    lanes.push([`leader of ${cluster.name}`, leaders(cluster.name, cluster.leader?.member ?? null, now)]);
    const moves = switchovers(cluster.name, now);
    if (moves.length) lanes.push([`switchovers of ${cluster.name}`, moves]);
  }
  for (const route of state.routes) {
    const bars = holds(route.name, now);
    if (bars.length) lanes.push([`holds of ${route.name}`, bars]);
  }
  const run = state.switchover;
  // Of a switchover by a peer the candidate is not known.
  const to = run?.candidate ? ` to ${run.candidate}` : "";
  return section("holds", "Leaders, holds and switchovers", null,
    h("div", { class: "lanes", "aria-hidden": "true" },
      lanes.map(([name, bars]) => h("div", { key: name, class: "lane" }, h("span", { class: "lane-name" }, name),
        h("div", { class: "lane-bars" }, bars.filter((bar) => bar.to > now - SPAN_MS).map((bar) => {
          const begin = Math.max(0, 100 * (1 - (now - bar.from) / SPAN_MS));
          const width = Math.max(0.8, 100 * (1 - (now - bar.to) / SPAN_MS) - begin);
          const left = Math.min(begin, 100 - width);
          return h("div", {
            key: bar.key, class: `bar ${bar.kind}${bar.isOpen ? " open" : ""}`, title: `${bar.label}, ${moment(bar.from)}`,
            css: { left: `${left.toFixed(2)}%`, width: `${width.toFixed(2)}%` },
          }, width > 12 ? bar.label : "");
        })))),
      h("div", { class: "lane scale" }, h("span", { class: "lane-name" }), h("div", { class: "ticks" },
        ["60 min ago", "45", "30", "15", "now"].map((tick) => h("span", null, tick))))),
    run ? h("div", { class: "steps" },
      h("h3", null, run.is_over ? `The last switchover, from ${run.leader}${to}: ${run.has_succeeded ? "it succeeded" : "it failed"}` : `A switchover from ${run.leader}${to} runs`,
        run.run_by ? ` (by ${run.run_by.router})` : ""),
      h("ol", null, run.steps.map((step) => h("li", null, step))),
      run.open_sessions?.length ? [
        h("h3", null, run.is_over || run.is_committed ? "It waited for the transactions of" : "It waits for the transactions of"),
        h("ul", { class: "waits" }, run.open_sessions.map((session) => h("li", null, session))),
      ] : null,
      !run.is_over && !run.is_committed ? actions.button("Abort the switchover", actions.abort) : null) : null,
    table<Entry>("Holds, switchovers and leaders", [
      { title: "time", cell: (entry) => moment(entry.at) },
      { title: "what and why", isLong: true, cell: (entry) => [h("span", { class: entry.isBad ? "bad" : null }, entry.what), entry.cause ? h("span", { class: "soft" }, `: ${entry.cause}`) : null, entry.by ? h("span", { class: "soft" }, ` (by ${entry.by})`) : null] },
      { title: "lasted", isNumber: true, cell: (entry) => entry.lasted === null ? "" : millis(entry.lasted) },
      { title: "clients", isNumber: true, cell: (entry) => entry.clients ?? "" },
    ], entries().slice(0, 20), (entry) => entry.key, "There was none since the router started."));
}

const word = (value: unknown): string => typeof value === "string" ? value : "";
const figure = (value: unknown): number | null => typeof value === "number" ? value : null;

function leaders(cluster: string, current: string | null, now: number): Bar[] {
  const begun = state.history?.time_ms[0] ?? now;
  const bars: Bar[] = [];
  let leader: string | null = null, since = begun;
  const end = (at: number) => {
    if (leader !== null && at > since) bars.push({ key: `${since}`, from: since, to: at, label: leader, kind: "leader", isOpen: false });
  };
  const changes = state.events.filter((event) => event["cluster"] === cluster);
  for (const event of changes) {
    let next: string | null;
    if (["leader_changed", "leader_confirmed", "leader_kept"].includes(event.event)) next = word(event["member"]);
    else if (["leader_lost", "no_leader", "leader_out_of_service"].includes(event.event)) next = null;
    else continue;
    if (next === leader) continue;
    end(event.time_ms);
    leader = next;
    since = event.time_ms;
  }
  if (leader !== current) {
    end(now);
    leader = current;
    since = bars.length ? now : begun;
  }
  if (leader !== null) bars.push({ key: `${since}`, from: since, to: now, label: leader, kind: "leader", isOpen: true });
  return bars;
}

function pairs(begin: string, ends: string[], is: (event: Happened) => boolean): [Happened, Happened | null][] {
  const all: [Happened, Happened | null][] = [];
  let open: Happened | null = null;
  for (const event of state.events.filter(is)) {
    if (event.event === begin) {
      if (open) all.push([open, null]);
      open = event;
    } else if (open && ends.includes(event.event)) {
      all.push([open, event]);
      open = null;
    }
  }
  if (open) all.push([open, null]);
  return all;
}

function holds(route: string, now: number): Bar[] {
  const held = state.routes.find((one) => one.name === route)?.hold ?? null;
  const all = pairs("hold_begun", ["hold_ended", "hold_failed"], (event) => event["route"] === route);
  return all.map(([begin, end], index) => {
    const isOpen = end === null && index === all.length - 1 && held !== null;
    return {
      key: String(begin.number), from: begin.time_ms, to: end?.time_ms ?? (isOpen ? now : begin.time_ms), isOpen,
      label: word(begin["cause"]), kind: end?.event === "hold_failed" ? "failed" : "hold",
    };
  });
}

function switchovers(cluster: string, now: number): Bar[] {
  const isOpen = state.switchover !== null && !state.switchover.is_over && state.switchover.cluster === cluster;
  const all = pairs("switchover_begun", ["switchover_ended"], (event) => event["cluster"] === cluster);
  return all.map(([begin, end], index) => ({
    key: String(begin.number), from: begin.time_ms,
    to: end?.time_ms ?? (isOpen && index === all.length - 1 ? now : begin.time_ms),
    label: `${word(begin["leader"])} → ${word(begin["candidate"])}`,
    kind: end?.["has_succeeded"] === false ? "failed" : "move", isOpen: end === null,
  }));
}

function entries(): Entry[] {
  const all: Entry[] = [];
  for (const event of state.events) {
    const base = { key: String(event.number), at: event.time_ms, cause: "", clients: null, lasted: null, by: word(event["by"]), isBad: false };
    const of = word(event["cluster"]), member = word(event["member"]), route = word(event["route"]);
    switch (event.event) {
      case "hold_ended":
      case "hold_failed":
        all.push({
          ...base, what: `clients of ${route} were held`, cause: word(event["cause"]) + (event["error"] ? `: ${word(event["error"])}` : ""),
          clients: figure(event["clients"]), lasted: figure(event["after_ms"]), isBad: event.event === "hold_failed",
        });
        break;
      case "switchover_ended":
        all.push({
          ...base, what: `switchover of ${of} ${event["has_succeeded"] ? "succeeded" : "failed"}`, cause: word(event["how"]),
          isBad: !event["has_succeeded"],
        });
        break;
      case "leader_changed": all.push({ ...base, what: `${member} leads ${of}`, cause: `timeline ${event["timeline"]}` }); break;
      case "leader_lost": all.push({ ...base, what: `${member} leads ${of} no longer`, cause: word(event["why"]), isBad: true }); break;
      case "route_paused":
      case "route_unpaused":
      case "pause_expired":
      case "stop_prepared":
      case "switchover_begun": all.push({ ...base, what: capital(event.text), cause: route || member || of }); break;
    }
  }
  for (const hold of state.router?.holds ?? []) {
    all.push({
      key: `now ${hold.route}`, at: hold.since_ms, what: `clients of ${hold.route} are held, ${seconds(hold.left_s)} left`,
      cause: `${hold.cause}. ${ending(hold)}`, clients: hold.clients, lasted: hold.held_s * 1000,
      by: hold.by ? [hold.by.router, hold.by.operator].filter(Boolean).join(", ") : "", isBad: false,
    });
  }
  return all.sort((one, other) => other.at - one.at);
}

/** What ends it, for somebody before this page. */
function ending(hold: Hold): string {
  const at = hold.by?.router ? ` at ${hold.by.router}` : "";
  switch (hold.kind) {
    case "pause": return "It ends when the route is unpaused, at every router where it is paused";
    case "switchover": return `Until Patroni has been asked it can be aborted${at}; otherwise it ends by itself`;
    case "before-stop": return "It ends by itself when the server has been stopped and one serves again";
    case "drain": return "It ends when the member is set ready again, or another member leads";
    default: return "It ends by itself when a server can serve the route";
  }
}

/** Routes, and what can be done with them. */
export function routes(): VNode {
  return section("routes", "Routes", null, table("Routes", [
    { title: "route", cell: (route) => route.name },
    { title: "cluster", cell: (route) => route.cluster ?? "–" },
    { title: "access", cell: (route) => route.access ?? "–" },
    { title: "ports", cell: (route) => state.listeners === null ? "–" : state.listeners.filter((listener) => listener.route === route.name)
      .map((listener) => listener.socket ?? `${listener.address ?? "*"}:${listener.port}`).join(", ") },
    { title: "state", cell: (route): Child => route.hold ? `held: ${route.hold.cause}` : route.paused_s !== null ? `paused, ${seconds(route.paused_s)} left` : route.admin },
    { title: "pool", cell: (route) => route.pool },
    { title: "leads to", cell: (route): Child => route.members.join(", ") || h("strong", { class: "bad" }, "nobody") },
    { title: "sessions", isNumber: true, cell: (route) => route.sessions },
    ...(state.hasToken ? [{ title: "orders", cell: (route: { name: string; admin: string; paused_s: number | null; pool: string }): Child => h("div", { class: "buttons" },
      route.paused_s === null
        ? actions.button("pause", () => actions.route(route.name, "pause"), { "aria-label": `pause ${route.name}` })
        : actions.button("unpause", () => actions.route(route.name, "unpause"), { "aria-label": `unpause ${route.name}` }),
      route.admin === "disabled"
        ? actions.button("enable", () => actions.route(route.name, "enable"), { "aria-label": `enable ${route.name}` })
        : actions.button("disable", () => actions.route(route.name, "disable"), { "aria-label": `disable ${route.name}` }),
      ["transaction", "session"].includes(route.pool) ? actions.button("reconnect", () => actions.reconnect(route.name), { "aria-label": `reconnect ${route.name}` }) : null) }] : []),
  ], state.routes, (route) => route.name, "No listener has a route."));
}
