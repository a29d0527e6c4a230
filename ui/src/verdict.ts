// One sentence that says whether all is well, and what else there is to say. What is wrong with the
// router, and what of it is the worst, the router says itself.

import { h, type Child } from "./dom";
import { count, moment, seconds } from "./format";
import type { State } from "./state";
import type { Problem } from "./types";

export type Level = "good" | "note" | "warn" | "bad";

/** `key` stays while only numbers change. */
export interface Finding { level: Level; key: string; text: string }

/** Without a message for longer than this, what is shown may be old. The router sends one a second. */
export const QUIET_MS = 6000;

/** The worst first. */
export function findings(state: State, now: number): Finding[] {
  const all: Finding[] = [];
  const say = (level: Level, key: string, text: string) => all.push({ level, key, text });
  const quiet = now - state.heard;
  if (state.link === "lost") say("bad", "lost", `No connection to the router: ${state.why}${old(state, now)}`);
  if (state.link === "ended") say("warn", "ended", `The router sends nothing more to this page for now: ${state.why}${old(state, now)}. It tries again in ${seconds(Math.max(0, state.nextTry - now) / 1000)}`);
  if (state.link === "token") say("warn", "token", "The router shows nothing without its token: enter it above");
  if (state.link === "forbidden") say("bad", "forbidden", `The router shows nothing here: ${state.why}`);
  if (state.link === "live" && state.router && quiet > QUIET_MS) say("warn", "quiet", `Nothing has come from the router for ${seconds(quiet / 1000)}: what is shown may be old`);
  for (const problem of state.health?.problems ?? []) say(level(problem), problem.key, told(problem));
  for (const peer of state.peers ?? []) {
    if (peer.state === "down") say("warn", `peer ${peer.name}`, `Peer ${peer.name} does not answer: ${peer.error ?? "no reason is known"}`);
  }
  return all;
}

function level(problem: Problem): Level {
  return problem.rank === "no writes" || problem.severity === "no service" ? "bad" : "warn";
}

function told(problem: Problem): string {
  const since = problem.since_ms === null ? "" : `, since ${moment(problem.since_ms)}`;
  const text = `${problem.what}${since}${problem.why ? `: ${problem.why}` : ""}${problem.remedy ? `; to end it: ${problem.remedy}` : ""}`;
  // A name stays as it is.
  return /^(nobody|cluster|route|sessions|the|a) /.test(text) ? capital(text) : text;
}

/** The same sentence, with the commands in it shown as such: what `trunkline status` puts in backticks. */
export function marked(text: string): Child[] {
  return text.split("`").map((part, index) => (index % 2 === 1 ? h("code", null, part) : part));
}

function old(state: State, now: number): string {
  return state.router && state.heard ? `. What is shown is ${seconds((now - state.heard) / 1000)} old` : "";
}

/** The sentence when there is nothing to find. */
export function allIsWell(state: State): string {
  const clusters = state.clusters.map((cluster) => {
    const up = state.members.filter((member) => member.cluster === cluster.name && !member.leader && member.status === "UP");
    return `${cluster.leader?.member} leads ${cluster.name} on timeline ${cluster.leader?.timeline}, with ${count(up.length, "replica")} UP`;
  });
  return `All is well: ${clusters.join("; ")}; ${count(state.router?.sessions ?? 0, "session")}`;
}

export function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
