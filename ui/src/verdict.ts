// One sentence that says whether all is well, and what else there is to say.

import { count, list, millis, seconds } from "./format";
import type { State } from "./state";

export type Level = "good" | "note" | "warn" | "bad";

export interface Finding { level: Level; text: string }

const ORDER: Level[] = ["bad", "warn", "note", "good"];

export function findings(state: State, now: number): Finding[] {
  const all: Finding[] = [];
  const say = (level: Level, text: string) => all.push({ level, text });
  const { router } = state;
  if (state.link === "lost") {
    const age = state.heard ? `. What is shown is ${seconds((now - state.heard) / 1000)} old` : "";
    say("bad", `No connection to the router: ${state.why}${age}`);
  }
  if (state.link === "token") say("warn", "The router shows nothing without its token: enter it above");
  if (state.link === "forbidden") say("bad", `The router shows nothing here: ${state.why}`);
  if (!router) return all;
  if (router.state === "stopping") say("bad", "The router is shutting down");
  else if (!router.ready) say("warn", router.reason ? capital(router.reason) : `The router is ${router.state}`);
  for (const cluster of state.clusters) {
    const whose = state.clusters.length > 1 ? `Cluster ${cluster.name}` : "The cluster";
    if (!cluster.leader) say("bad", `${whose} has no leader: ${cluster.no_leader ?? "not known yet"}`);
    if (!cluster.source.reachable) say("warn", `The source of ${cluster.name} is not reachable: ${cluster.source.error ?? "no answer"}`);
    if (cluster.source.disagreement) say("warn", `The endpoints of ${cluster.name} disagree: ${cluster.source.disagreement}`);
    if (cluster.paused) say("note", `Patroni is paused in ${cluster.name}: it does no failover`);
  }
  for (const hold of router.holds) {
    const who = count(hold.clients, "client");
    say("warn", `${who} of route ${hold.route} held for ${seconds(hold.held_s)}: ${hold.cause}`);
  }
  const run = state.switchover;
  if (run && !run.is_over) {
    say("warn", `A switchover from ${run.leader} to ${run.candidate} runs: ${run.steps[run.steps.length - 1] ?? "it begins"}`);
  }
  for (const route of state.routes) {
    if (route.admin === "disabled") say("note", `Route ${route.name} is disabled: it gets no new sessions`);
    else if (!route.members.length && !route.hold) say("bad", `No member may serve route ${route.name}`);
  }
  for (const member of state.members) {
    if (member.status === "DOWN") say("warn", `${member.name} is DOWN: ${member.check.text ?? member.check.status}`);
    if (member.status === "INI") say("note", `${member.name} has not been checked yet`);
    if (member.status === "MAINT") say("note", `${member.name} is in maintenance (MAINT)`);
    if (member.status === "DRAIN") say("note", member.admin === "drain" ? `${member.name} is drained (DRAIN)` : `${member.name} has weight 0 (DRAIN)`);
    if (member.status === "UP" && !member.leader) {
      const reasons = member.routes.filter((route) => !route.fit && / behind|lag/.test(route.reason));
      if (reasons[0]) say("warn", `${member.name} gets no sessions of ${list(reasons.map((route) => route.route))}: ${reasons[0].reason}`);
    }
  }
  for (const pool of state.pools.pools) {
    if (pool.waiting > 0 && pool.longest_wait_ms >= 1000) {
      say("warn", `${count(pool.waiting, "client")} of route ${pool.route} waited up to ${millis(pool.longest_wait_ms)} for a server connection of ${pool.user}@${pool.database}`);
    }
  }
  for (const certificate of state.certificates ?? []) {
    if (certificate.days_left < 0) say("bad", `The certificate ${certificate.subject} has expired (${certificate.file})`);
    else if (certificate.days_left < 14) say("warn", `The certificate ${certificate.subject} expires in ${count(certificate.days_left, "day")} (${certificate.file})`);
  }
  for (const peer of state.peers ?? []) {
    if (peer.state === "down") say("warn", `Peer ${peer.name} does not answer: ${peer.error ?? "no reason is known"}`);
  }
  return all.sort((one, other) => ORDER.indexOf(one.level) - ORDER.indexOf(other.level));
}

/** The sentence when there is nothing to find. */
export function allIsWell(state: State): string {
  const clusters = state.clusters.map((cluster) => {
    const members = state.members.filter((member) => member.cluster === cluster.name && !member.leader);
    return `${cluster.leader?.member} leads ${cluster.name} on timeline ${cluster.leader?.timeline}, with ${count(members.length, "replica")} UP`;
  });
  return `All is well: ${clusters.join("; ")}; ${count(state.router?.sessions ?? 0, "session")}`;
}

export function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
