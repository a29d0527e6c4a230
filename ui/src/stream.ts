// Reads /api/v1/live, again and again. The browser's EventSource cannot send a token, so this reads
// the stream itself.

import { tell } from "./actions";
import { ask, headers } from "./api";
import { changed, state } from "./state";
import type { Happened, History, Values } from "./types";

const MOST_EVENTS = 1000;
/** The router sends at least a comment every 15 s. */
const SILENCE_MS = 20_000;
const FIRST_WAIT_MS = 500, LONGEST_WAIT_MS = 5000;
/** While others have all streams, this page does not fight for one. */
const ROOM_WAIT_MS = 30_000, LONGEST_ROOM_WAIT_MS = 120_000;

let last: string | null = null;
let abort: AbortController | null = null;
let onHello: () => void = () => {};
/** Ends a wait. */
let wake: () => void = () => {};

export async function follow(hello: () => void): Promise<never> {
  onHello = hello;
  let wait = FIRST_WAIT_MS, room = ROOM_WAIT_MS / 2;
  for (;;) {
    const end = await once();
    wait = end === "good" ? FIRST_WAIT_MS : Math.min(wait * 2, LONGEST_WAIT_MS);
    room = end === "full" ? Math.min(room * 2, LONGEST_ROOM_WAIT_MS) : ROOM_WAIT_MS / 2;
    const pause = end === "good" ? 200 : end === "full" ? room : wait;
    state.nextTry = Date.now() + pause;
    changed();
    await new Promise<void>((done) => {
      wake = done;
      setTimeout(done, pause);
    });
  }
}

/** Connects again, with the token there is now. */
export function again(): void {
  last = null;
  abort?.abort();
  wake();
}

/** How a stream ended. `full`: the router has no place for this page. */
type End = "good" | "bad" | "full";

async function once(): Promise<End> {
  const control = new AbortController();
  abort = control;
  let watch = setTimeout(() => control.abort(), SILENCE_MS);
  let isGood = false;
  const sent: Record<string, string> = { Accept: "text/event-stream", ...headers() };
  if (last !== null) sent["Last-Event-ID"] = last;
  try {
    const response = await fetch("api/v1/live", {
      headers: sent, cache: "no-store", credentials: "omit", signal: control.signal,
    });
    if (!response.ok || !response.body) {
      return await refused(response);
    }
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      clearTimeout(watch);
      watch = setTimeout(() => control.abort(), SILENCE_MS);
      state.heard = Date.now();
      text += value;
      let end: number;
      while ((end = text.indexOf("\n\n")) >= 0) {
        if (take(text.slice(0, end)) === "full") return "full";
        text = text.slice(end + 2);
        isGood = true;
      }
      changed();
    }
    // The router ends the stream now and then, and in an upgrade: nothing is lost yet.
    if (!isGood) lost("the router has ended the connection");
  } catch {
    lost("the router does not answer");
  } finally {
    clearTimeout(watch);
    control.abort();
  }
  changed();
  return isGood ? "good" : "bad";
}

function lost(why: string): void {
  if (state.link !== "token" && state.link !== "forbidden") state.link = "lost";
  state.why = why;
}

async function refused(response: Response): Promise<End> {
  const said = (await response.json().catch(() => ({}))) as { error?: string; hint?: string };
  if (response.status === 401) {
    if (state.token !== null) state.tokenError = "The router does not accept this token.";
    state.token = null;
    state.hasToken = false;
    state.link = "token";
  } else {
    state.link = response.status === 403 ? "forbidden" : "lost";
  }
  state.why = [said.error, said.hint].filter(Boolean).join(": ") || `the router answered with status ${response.status}`;
  const isFull = response.headers.has("Retry-After");
  if (isFull) state.link = "ended";
  changed();
  return isFull ? "full" : "bad";
}

function take(message: string): End {
  let name = "", data = "";
  for (const line of message.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    else if (line.startsWith("data: ")) data = line.slice(6);
    else if (line.startsWith("id: ")) last = line.slice(4);
  }
  if (!name) return "good";
  const value = JSON.parse(data);
  switch (name) {
    case "hello": hello(value); break;
    case "router": state.router = value; break;
    case "clusters": state.clusters = value; break;
    case "members": state.members = value; break;
    case "routes": state.routes = value; break;
    case "switchover": state.switchover = value; break;
    case "pools": state.pools = value; break;
    case "health": state.health = value; break;
    case "ended":
      state.link = "ended";
      state.why = value.why;
      return "full";
    case "happened": happened(value); break;
    case "points": points(value); break;
  }
  return "good";
}

function hello(value: { process_id: number; version: string; resumed: boolean; token: boolean }): void {
  state.link = "live";
  state.why = "";
  state.processId = value.process_id;
  state.version = value.version;
  if (state.token !== null) {
    if (value.token && !state.hasToken) tell("The router accepts the token: orders are on");
    state.tokenError = value.token ? null : "The router does not accept this token.";
    if (!value.token) state.token = null;
  }
  state.hasToken = value.token;
  if (!value.resumed) {
    state.events = [];
    state.history = null;
    void ask<History>("api/v1/history").then((answer) => {
      if (answer.value) points(answer.value);
      changed();
    });
  }
  onHello();
}

function happened(event: Happened): void {
  const newest = state.events[state.events.length - 1];
  if (newest && event.number <= newest.number) return;
  state.events.push(event);
  if (state.events.length > MOST_EVENTS) state.events.shift();
}

/** Adds points to the history; those that are there already are not added again. */
function points(more: History): void {
  const had = state.history;
  if (!had || had.process_id !== more.process_id) {
    state.history = more;
    return;
  }
  const missing = more.number - had.number;
  if (missing <= 0) return;
  const have = had.time_ms.length;
  const fresh = Math.min(missing, more.time_ms.length);
  const room = Math.max(0, have + fresh - 360);
  const join = (old: Values | undefined, next: Values): Values => {
    const out: Values = {};
    for (const name in next) {
      const before = old?.[name] ?? new Array<null>(have).fill(null);
      out[name] = [...before, ...(next[name] ?? []).slice(-fresh)].slice(room);
    }
    return out;
  };
  state.history = {
    ...more,
    time_ms: [...had.time_ms, ...more.time_ms.slice(-fresh)].slice(room),
    router: join(had.router, more.router),
    routes: more.routes.map(({ route, series }) => ({
      route, series: join(had.routes.find((old) => old.route === route)?.series, series),
    })),
    members: more.members.map(({ cluster, member, series }) => ({
      cluster, member,
      series: join(had.members.find((old) => old.cluster === cluster && old.member === member)?.series, series),
    })),
  };
}
