// Members, pools, sessions, events, certificates, configuration.

import * as actions from "./actions";
import { h, type Child, type VNode } from "./dom";
import { bytes, count, date, few, millis, moment, seconds } from "./format";
import { breakable, filter, matches, section, status, table } from "./parts";
import { changed, state } from "./state";
import type { Session } from "./types";

export function members(): VNode {
  return section("members", "Members, in HAProxy's words", null, table("Members", [
    { title: "member", cell: (member) => member.name },
    { title: "cluster", cell: (member) => member.cluster },
    { title: "status", cell: (member) => status(member.status) },
    { title: "last check", isLong: true, cell: (member) => [h("b", null, member.check.status), ` ${member.check.text ?? ""}`] },
    { title: "in a row", isNumber: true, cell: (member) => member.check.in_a_row },
    { title: "age", isNumber: true, cell: (member) => member.check.age_ms === null ? "–" : millis(member.check.age_ms) },
    { title: "role", cell: (member) => member.role_shown ?? "–" },
    { title: "timeline", isNumber: true, cell: (member) => member.timeline ?? "–" },
    { title: "lag", isNumber: true, cell: (member) => member.lag === null ? "–" : bytes(member.lag) },
    { title: "admin", cell: (member) => member.admin },
    { title: "weight", isNumber: true, cell: (member) => member.weight },
    { title: "sessions", isNumber: true, cell: (member) => member.sessions },
    { title: "routes", isLong: true, cell: (member) => member.routes.map((route, index) => [index ? "; " : "", h("span", { class: route.fit ? null : "soft" }, `${route.fit ? "✓" : "✕"} ${route.route}: ${route.reason}`)]) },
    { title: "tags", isLong: true, cell: (member) => Object.entries(member.tags).map(([name, value]) => `${name}=${String(value)}`).join(" ") },
  ], state.members, (member) => `${member.cluster}/${member.name}`, "The router knows no members yet."));
}

const WAITING = "Waiting for the router …";

export function pools(): VNode {
  const known = state.pools;
  if (!known) return section("pools", "Pools", null, h("p", { class: "empty" }, WAITING));
  const rows = known.pools.flatMap((pool) => (pool.members.length ? pool.members : [null]).map((member, index) => ({ pool, member, index })));
  return section("pools", "Pools", null,
    table("Pools", [
      { title: "route", cell: ({ pool }) => pool.route },
      { title: "user", cell: ({ pool }) => breakable(pool.user) },
      { title: "database", cell: ({ pool }) => breakable(pool.database) },
      { title: "member", cell: ({ member }) => member?.member ?? "–" },
      { title: "connections", cell: ({ pool, member }): Child => member ? meter(member.leased, member.idle, pool.max_connections) : "none" },
      { title: "leased", isNumber: true, cell: ({ member }) => member?.leased ?? 0 },
      { title: "pinned", isNumber: true, cell: ({ member }): Child => member ? h("span", { title: Object.entries(member.pins).map(([why, number]) => `${why} ${number}`).join(", ") }, member.pinned) : 0 },
      { title: "idle", isNumber: true, cell: ({ member }) => member?.idle ?? 0 },
      { title: "opening", isNumber: true, cell: ({ member }) => member?.opening ?? 0 },
      { title: "most", isNumber: true, cell: ({ pool }) => pool.reserve ? `${pool.max_connections}+${pool.reserve}` : pool.max_connections },
      { title: "waiting", isNumber: true, cell: ({ pool, index }): Child => index ? "" : pool.waiting ? h("strong", { class: "warn" }, `◷ ${pool.waiting}, ${millis(pool.longest_wait_ms)}`) : "0" },
    ], rows, ({ pool, member }) => [pool.router_process_id, pool.route, pool.user, pool.database, member?.member].join("\n"), "There are no pools: no route has one, or no client has come."),
    known.left_out ? h("p", { class: "soft" }, `${count(known.left_out, "more pool")} ${known.left_out === 1 ? "is" : "are"} not shown: those that somebody waits for come first.`) : null);
}

function meter(leased: number, idle: number, most: number): VNode {
  const full = Math.max(most, leased + idle, 1);
  return h("svg", { class: "meter", viewBox: "0 0 100 8", preserveAspectRatio: "none", role: "img", "aria-label": `${leased} leased and ${idle} idle of ${most}` },
    h("rect", { class: "room", width: 100, height: 8 }),
    h("rect", { class: "idle", width: 100 * (leased + idle) / full, height: 8 }),
    h("rect", { class: "leased", width: 100 * leased / full, height: 8 }));
}

export function sessions(search: () => void): VNode {
  const { sessionsTotal: total, sessions: shown } = state;
  const said = state.sessionsError ?? (shown === null ? "–" : `${count(total, "session")}${state.sessionFilter ? " of this kind" : ""}${total > shown.length ? `, the first ${shown.length} are shown` : ""}`);
  return section("sessions", "Sessions", null,
    h("div", { class: "tools" },
      filter("session-filter", "Filter", state.sessionFilter, (value) => {
        state.sessionFilter = value;
        changed();
        search();
      }),
      h("p", { class: state.sessionsError ? "bad" : "soft" }, said)),
    shown === null ? h("p", { class: "empty" }, WAITING) : table("Sessions", [
      { title: "number", isNumber: true, cell: (session) => session.id },
      { title: "client", cell: (session) => breakable(session.client) },
      { title: "user", cell: (session) => breakable(session.user) },
      { title: "database", cell: (session) => breakable(session.database) },
      { title: "route", cell: (session) => session.route },
      { title: "member", cell: (session) => session.member || "–" },
      { title: "state", cell: (session): Child => [session.state, session.ending ? h("span", { class: "warn" }, ` ends: ${session.ending}`) : null] },
      { title: "phase", cell: (session) => session.phase + (session.pins.length ? ` (${session.pins.join(", ")})` : "") },
      { title: "waits", isNumber: true, cell: (session): Child => session.waiting_s === null ? "" : h("strong", { class: "warn" }, seconds(session.waiting_s)) },
      { title: "age", isNumber: true, cell: (session) => seconds(session.age_s) },
      { title: "transactions", isNumber: true, cell: (session) => few(session.transactions) },
      { title: "in / out", isNumber: true, cell: (session) => `${bytes(session.bytes_up)} / ${bytes(session.bytes_down)}` },
      { title: "TLS", cell: (session): Child => session.tls === null ? "no" : h("span", { title: session.tls }, session.tls.split(" ")[0]) },
      ...(state.hasToken ? [{ title: "orders", cell: (session: Session): Child => actions.button("kill", () => actions.kill(session), { "aria-label": `kill session ${session.id}` }) }] : []),
    ], shown, (session) => String(session.id), state.sessionFilter ? "No session is of this kind." : "There are no sessions."));
}

export function events(): VNode {
  const all = state.events.filter((event) => matches(state.eventFilter, event.text, event.event, event.level, String(event["cluster"] ?? ""), String(event["by"] ?? ""), String(event["route"] ?? ""), String(event["member"] ?? ""))).reverse();
  const marks = { info: "·", warn: "▲", error: "✖" };
  return section("events", "Events", null,
    h("div", { class: "tools" }, filter("event-filter", "Filter", state.eventFilter, (value) => {
      state.eventFilter = value;
      changed();
    }), h("p", { class: "soft" }, `${count(all.length, "event")}${all.length > 200 ? ", the newest 200 are shown" : ""}; the router keeps 1000`)),
    all.length ? h("ol", { class: "log scroll", tabindex: "0", "aria-label": "Events, the newest first" }, all.slice(0, 200).map((event) => h("li", { key: String(event.number), class: event.level },
      h("time", null, moment(event.time_ms)), h("span", { class: "mark" }, h("span", { "aria-hidden": "true" }, marks[event.level]), h("span", { class: "hidden" }, event.level)),
      h("span", null, event.text, h("span", { class: "soft" }, details(event)))))) : h("p", { class: "empty" }, state.eventFilter ? "No event is of this kind." : "There are no events yet."));
}

function details(event: (typeof state.events)[number]): string {
  const known = new Set(["number", "time_ms", "level", "text", "event", "error", "facts", "address"]);
  const rest = Object.entries(event).filter(([name, value]) => !known.has(name) && value !== null && typeof value !== "object" && !event.text.includes(String(value)));
  return rest.length ? `  ${rest.map(([name, value]) => `${name}=${String(value)}`).join(" ")}` : "";
}

export function certificates(): VNode {
  const all = state.certificates;
  return section("certificates", "Certificates", null, all === null ? h("p", { class: "empty" }, WAITING) : table("Certificates", [
    { title: "subject", isLong: true, cell: (certificate) => breakable(certificate.subject) },
    { title: "for", cell: (certificate) => `${certificate.used_for}${certificate.cluster ? ` of ${certificate.cluster}` : ""}, ${certificate.kind}` },
    { title: "names", cell: (certificate) => breakable(certificate.names.join(", ")) },
    { title: "issuer", cell: (certificate) => certificate.issuer },
    { title: "valid from", cell: (certificate) => date(certificate.not_before_ms) },
    { title: "until", cell: (certificate) => date(certificate.not_after_ms) },
    { title: "days left", isNumber: true, cell: (certificate): Child => certificate.days_left < 0 ? h("strong", { class: "bad" }, "✖ expired") : certificate.days_left < 14 ? h("strong", { class: "warn" }, `▲ ${certificate.days_left}`) : certificate.days_left },
    { title: "file", isLong: true, cell: (certificate) => breakable(certificate.file) },
  ], [...all].sort((one, other) => one.days_left - other.days_left), (certificate) => `${certificate.key} ${certificate.file} ${certificate.subject} ${certificate.not_after_ms}`, "The router uses no certificates: nothing has TLS."));
}

export function configuration(): VNode {
  const all = (state.settings ?? []).filter((setting) => (state.allSettings || setting.source !== "default") && matches(state.settingFilter, setting.key, setting.value));
  return section("configuration", "Configuration", null,
    h("div", { class: "tools" },
      filter("setting-filter", "Filter", state.settingFilter, (value) => { state.settingFilter = value; changed(); }),
      h("label", null, h("input", { type: "checkbox", checked: state.allSettings, onchange: (event: Event) => { state.allSettings = (event.target as HTMLInputElement).checked; changed(); } }), " defaults, too")),
    state.settings === null ? h("p", { class: "empty" }, state.hasToken ? WAITING : "It is shown with the token, as it names files and accounts.") : table("Configuration", [
      { title: "key", cell: (setting) => h("code", null, breakable(setting.key)) },
      { title: "value", cell: (setting): Child => [h("code", null, breakable(setting.value ?? "–")), setting.after_restart !== null ? h("span", { class: "warn" }, ` ▲ ${setting.after_restart} after an upgrade or a restart`) : null] },
      { title: "default", cell: (setting) => h("code", { class: "soft" }, setting.default ?? "–") },
      { title: "from", cell: (setting) => breakable(setting.file ? `${setting.file}:${setting.line}` : setting.source) },
    ], all, (setting) => setting.key, "No key is of this kind."));
}

export function limits(): VNode {
  const all = (state.limits ?? []).filter((limit) => limit.limit !== null && limit.used !== null);
  all.sort((one, other) => (other.used ?? 0) / (other.limit || 1) - (one.used ?? 0) / (one.limit || 1));
  return section("limits", "Limits, the fullest first", null, state.limits === null ? h("p", { class: "empty" }, WAITING) : table("Limits", [
    { title: "of", cell: (limit) => breakable(limit.scope) },
    { title: "limit", cell: (limit) => limit.name },
    { title: "used", cell: (limit) => meter(limit.used ?? 0, 0, limit.limit ?? 1) },
    { title: "now", isNumber: true, cell: (limit) => few(limit.used ?? 0) },
    { title: "most", isNumber: true, cell: (limit) => `${few(limit.limit ?? 0)} ${limit.unit}` },
    { title: "key", cell: (limit) => limit.key ? h("code", null, breakable(limit.key)) : "built in" },
  ], all.slice(0, 40), (limit) => `${limit.scope} ${limit.name}`, "No limit is counted."));
}

export function about(): VNode {
  const { router } = state;
  const facts: [string, Child][] = [
    ["version", state.version],
    ["process", state.processId ?? "–"],
    ["state", router?.state ?? "–"],
    ["sessions", router?.sessions ?? "–"],
  ];
  for (const cluster of state.clusters) if (cluster.system_identifier) facts.push([`system identifier of ${cluster.name}`, cluster.system_identifier]);
  for (const peer of state.peers ?? []) facts.push([`peer ${peer.name}`, `${peer.state}${peer.answer_ms === null ? "" : `, answers in ${millis(peer.answer_ms)}`}${peer.error ? `: ${peer.error}` : ""}`]);
  return section("about", "This router", null,
    h("dl", { class: "facts wide" }, facts.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value)))),
    state.hasToken ? h("div", { class: "buttons" },
      router?.state === "drain" ? actions.button("router ready", () => actions.router("ready")) : actions.button("drain the router", () => actions.router("drain")),
      actions.button("reload the configuration", actions.reload)) : null,
    h("p", { class: "soft" }, "This page comes from the router and asks nobody else. Numbers and orders are about this router only, unless they say otherwise."));
}
