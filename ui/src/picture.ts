// The cluster as a picture: which ports lead to which members.

import * as actions from "./actions";
import { h, type Child, type VNode } from "./dom";
import { bytes, count, few, millis, seconds } from "./format";
import { status } from "./parts";
import { state } from "./state";
import type { Cluster, Member, Route } from "./types";

/** Reasons that the role shows anyway. */
const PLAIN = new Set(["is the leader", "is not the leader"]);

const SVG = "http://www.w3.org/2000/svg";

export function pictures(): VNode {
  return h("section", { key: "cluster", id: "cluster", "aria-label": "Clusters" }, state.clusters.map(picture));
}

function picture(cluster: Cluster): VNode {
  const routes = state.routes.filter((route) => route.cluster === cluster.name);
  const members = state.members.filter((member) => member.cluster === cluster.name);
  members.sort((one, other) => Number(other.leader) - Number(one.leader));
  const leader = cluster.leader;
  return h("div", { key: cluster.name, class: "cluster" },
    h("div", { class: "cluster-head" },
      h("h2", null, h("span", { class: "soft" }, "cluster "), cluster.name),
      h("p", null, leader
        ? `${leader.member} leads on timeline ${leader.timeline} (${leader.named_by})`
        : h("strong", { class: "bad" }, `no leader: ${cluster.no_leader ?? "not known yet"}`)),
      actions.button("Switch over…", () => void actions.switchover(cluster.name, null))),
    h("div", { class: "picture", hook: wire },
      h("ul", { class: "ports", "aria-label": `Routes of ${cluster.name}` }, routes.map(port)),
      h("div", { class: "wires", "aria-hidden": "true" }),
      h("ul", { class: "members", "aria-label": `Members of ${cluster.name}` }, members.map((member) => card(cluster, member)))));
}

function ports(route: Route): string[] {
  const listeners = (state.listeners ?? []).filter((listener) => listener.route === route.name);
  return listeners.map((listener) => listener.socket ?? `${listener.address ?? "*"}:${listener.port}`);
}

function port(route: Route): VNode {
  const waiting = (state.pools?.pools ?? []).filter((pool) => pool.route === route.name).reduce((sum, pool) => sum + pool.waiting, 0);
  const where = ports(route);
  const notes: Child[] = [];
  if (route.admin === "disabled") notes.push(h("span", { class: "tag warn" }, "▲ disabled"));
  if (route.paused_s !== null) notes.push(h("span", { class: "tag warn" }, `‖ paused, ${seconds(route.paused_s)} left`));
  if (route.hold) notes.push(h("span", { class: "tag warn" }, `‖ ${route.hold.clients ? count(route.hold.clients, "client") : "no client"} held, for ${seconds(route.hold.held_s)}, ${seconds(route.hold.left_s)} left (${route.hold.kind})`));
  if (waiting) notes.push(h("span", { class: "tag warn" }, `◷ ${waiting} waiting`));
  return h("li", {
    key: route.name, class: `port ${route.access === "read-write" ? "rw" : "ro"}`, "data-route": route.name,
    "data-to": route.members.join("\n"),
  },
    h("div", { class: "port-name" }, h("strong", null, route.name), " ", h("span", { class: "soft" }, state.listeners === null ? "–" : where.join(", "))),
    h("div", { class: "soft" }, `${route.access ?? ""}, ${route.pool === "off" ? "no pool" : route.pool}`),
    h("div", null, h("b", null, route.sessions), route.sessions === 1 ? " session → " : " sessions → ",
      route.members.length ? route.members.join(", ") : h("strong", { class: "bad" }, "nobody")),
    notes.length ? h("div", { class: "tags" }, notes) : null);
}

function card(cluster: Cluster, member: Member): VNode {
  const { check } = member;
  const facts: [string, Child][] = [
    ["timeline", member.timeline ?? "–"],
    ["lag", member.leader ? "–" : member.lag === null ? "not known" : `${bytes(member.lag)}${member.lag_seconds ? `, ${few(member.lag_seconds)} s` : ""}`],
    ["sessions", member.sessions],
    ["connections", member.server_connections ?? "–"],
    ["weight", member.weight],
  ];
  if (member.zone) facts.push(["zone", member.zone]);
  return h("li", { key: member.name, class: `member ${member.status.toLowerCase()}${member.leader ? " leader" : ""}`, "data-member": member.name },
    h("div", { class: "member-head" },
      h("strong", null, member.name), " ",
      h("span", { class: "role" }, `${member.leader ? "★ " : ""}${(member.role_shown ?? "unknown").replace("_", " ")}`), " ",
      status(member.status)),
    h("div", { class: "soft host" }, `${member.host}:${member.port}`, member.state ? ` · ${member.state}` : ""),
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", { key: name }, h("dt", null, name), h("dd", null, value)))),
    h("div", { class: "soft check" }, `${check.status} `, check.text ?? "", check.age_ms === null ? "" : `, ${millis(check.age_ms)} ago`),
    h("ul", { class: "fits", "aria-label": "Routes" }, member.routes.map((route) => h("li", { key: route.route, class: route.fit ? "fit" : "unfit", title: route.reason },
      route.fit ? "✓ " : "✕ ", route.route, h("span", { class: route.fit || PLAIN.has(route.reason) ? "hidden" : null }, `: ${route.reason}`)))),
    state.hasToken ? h("div", { class: "buttons" },
      member.admin === "ready" ? null : actions.button("ready", () => actions.member(cluster.name, member.name, "ready"), { "aria-label": `ready: ${member.name}` }),
      member.admin === "drain" ? null : actions.button("drain", () => actions.member(cluster.name, member.name, "drain"), { "aria-label": `drain ${member.name}` }),
      member.admin === "maint" ? null : actions.button("maint", () => actions.member(cluster.name, member.name, "maint"), { "aria-label": `maint: ${member.name}` }),
      actions.button("weight", () => actions.weight(cluster.name, member.name, member.weight), { "aria-label": `weight of ${member.name}` }),
      actions.button("end sessions", () => actions.closeSessions(cluster.name, member.name), { "aria-label": `end sessions on ${member.name}` }),
      member.leader ? null : actions.button("make leader", () => void actions.switchover(cluster.name, member.name), { "aria-label": `make leader: ${member.name}` })) : null);
}

/** Draws a line from each port to each member that may serve it. */
function wire(picture: HTMLElement): void {
  const wires = picture.querySelector<HTMLElement>(".wires");
  if (!wires) return;
  const area = wires.getBoundingClientRect();
  if (area.width < 20) {
    wires.replaceChildren();
    return;
  }
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${area.width} ${area.height}`);
  for (const port of picture.querySelectorAll<HTMLElement>(".port")) {
    const from = port.getBoundingClientRect();
    const names = (port.dataset["to"] ?? "").split("\n").filter(Boolean);
    for (const [index, name] of names.entries()) {
      const card = [...picture.querySelectorAll<HTMLElement>(".member")].find((card) => card.dataset["member"] === name);
      if (!card) continue;
      const to = card.getBoundingClientRect();
      const shift = (index - (names.length - 1) / 2) * 6;
      const y1 = from.top + from.height / 2 - area.top + shift;
      const y2 = to.top + Math.min(28, to.height / 2) - area.top + (port.classList.contains("rw") ? -6 : 6);
      const path = document.createElementNS(SVG, "path");
      const half = area.width / 2;
      path.setAttribute("d", `M0 ${y1}C${half} ${y1} ${half} ${y2} ${area.width - 5} ${y2}l-5 -4m5 4l-5 4`);
      path.setAttribute("class", port.classList.contains("rw") ? "rw" : "ro");
      svg.append(path);
    }
  }
  wires.replaceChildren(svg);
}
