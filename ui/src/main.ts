// Puts the page together, and keeps it up to date.

import { close, open } from "./actions";
import { ask } from "./api";
import { charts } from "./charts";
import { h, patch, type VNode } from "./dom";
import { seconds } from "./format";
import * as lists from "./lists";
import { pictures } from "./picture";
import { changed, drawWith, state } from "./state";
import { again, follow } from "./stream";
import { routes, timeline } from "./timeline";
import type { Certificate, Limit, Listener, Peer, Session, Setting } from "./types";
import { allIsWell, findings, marked, type Finding, type Level } from "./verdict";

const SESSIONS_MS = 3000, REST_MS = 30_000, MOST_SESSIONS = 200;
const SECTIONS: [string, string][] = [
  ["cluster", "Cluster"], ["routes", "Routes"], ["holds", "Holds"], ["events", "Events"], ["charts", "Last hour"], ["sessions", "Sessions"],
  ["pools", "Pools"], ["limits", "Limits"], ["members", "Members"], ["certificates", "Certificates"], ["about", "This router"],
  ["configuration", "Configuration"],
];
const WAITING = "Waiting for the router …";
const MARKS: Record<Level, string> = { good: "✓", note: "✓", warn: "▲", bad: "✖" };

function render(): void {
  const now = Date.now();
  const isStale = ["lost", "ended", "forbidden", "token"].includes(state.link);
  document.body.classList.toggle("stale", isStale && state.heard > 0);
  patch(document.body, [
    h("a", { key: "skip", class: "skip", href: "#cluster" }, "To the cluster"),
    header(now),
    h("main", { key: "main" },
      state.router ? [
        h("div", { key: "now", class: "now" }, pictures(), routes()),
        h("div", { key: "past", class: "past" }, timeline(now), lists.events()),
        charts(), lists.sessions(search), lists.pools(), lists.limits(), lists.members(), lists.certificates(), lists.about(),
        lists.configuration(),
      ] : h("p", { class: "empty" }, state.link === "connecting" || state.link === "live" ? WAITING : "Nothing has come from the router yet.")),
    dialog(),
  ]);
}

let announced = "", announcedKey = "";

/** What a screen reader says: the headline when there is another one, and not when only its numbers change. */
function announce(key: string, sentence: string): VNode {
  if (key !== announcedKey) {
    announcedKey = key;
    announced = sentence;
  }
  return h("p", { id: "announced", class: "hidden", role: "status" }, announced);
}

function header(now: number): VNode {
  const all = findings(state, now);
  const isKnown = state.router !== null && state.health !== null;
  const waiting: Finding = { level: "note", key: "waiting", text: WAITING };
  const well: Finding = { level: "good", key: "well", text: isKnown ? allIsWell(state) : "" };
  const first = all[0] ?? (isKnown ? well : waiting);
  const rest = all.slice(1);
  document.title = `${first === waiting ? "…" : MARKS[first.level]} Trunkline`;
  const age = state.heard ? Math.floor((now - state.heard) / 1000) : 0;
  const is = { connecting: "connecting", live: age > 4 ? "live, and quiet" : "live", lost: "no connection", ended: "no place", token: "needs the token", forbidden: "refused" }[state.link];
  const link = state.router === null ? is : state.link === "live" && age <= 4 ? is : `${is}: the data is ${seconds(age)} old`;
  return h("header", { key: "header", class: "top" },
    h("div", { class: "bar-top" },
      h("h1", null, "Trunkline"),
      h("span", { class: "soft" }, location.host),
      h("span", { class: `link ${state.link}` }, h("span", { "aria-hidden": "true" }, state.link === "live" ? "● " : "○ "), link),
      state.notice ? h("span", { class: `notice ${state.notice.isError ? "bad" : ""}`, role: state.notice.isError ? "alert" : "status" }, state.notice.text, " ",
        h("button", { type: "button", class: "small", "aria-label": "Close the message", onclick: () => { state.notice = null; changed(); } }, "×")) : null,
      token()),
    h("div", { class: `verdict ${first.level}` },
      h("p", { id: "verdict" }, h("span", { class: "mark", "aria-hidden": "true" }, first === waiting ? "…" : MARKS[first.level]), " ", marked(first.text), first.text.endsWith("…") ? "" : "."),
      announce(first.key, first.text.replaceAll("`", "")),
      // It scrolls, so the keyboard must reach it.
      rest.length ? h("ul", { "aria-label": "What else is not as it should be", tabindex: rest.length > 2 ? "0" : null }, rest.map((finding) => h("li", { key: finding.key, class: finding.level }, h("span", { "aria-hidden": "true" }, `${MARKS[finding.level]} `), marked(finding.text)))) : null),
    state.router ? h("nav", { "aria-label": "Sections" }, h("ul", null, SECTIONS.map(([id, title]) => h("li", null, h("a", { href: `#${id}` }, title))))) : null);
}

function token(): VNode {
  if (state.hasToken) {
    return h("div", { key: "with", class: "token" }, h("span", null, "orders are on "), h("button", { type: "button", onclick: () => { state.token = null; state.hasToken = false; again(); changed(); } }, "Forget the token"));
  }
  return h("div", { key: "without", class: "token" }, h("button", { type: "button", onclick: enterToken }, "Enter the token…"), state.tokenError ? h("span", { class: "bad", role: "alert" }, ` ${state.tokenError}`) : null);
}

function enterToken(): void {
  let value = "";
  open("The router's token", () => [
    h("p", null, "The content of http.token_file. This page keeps it in its memory only, until it is closed or loaded again."),
    h("label", null, "Token ", h("input", {
      id: "token", type: "password", autocomplete: "off", spellcheck: "false", autofocus: true, size: "40",
      oninput: (event: Event) => { value = (event.target as HTMLInputElement).value; },
    })),
  ], [{
    label: "Use it",
    run: () => {
      const given = value.trim();
      // What a header can carry.
      if (!/^[\x21-\x7e]+$/.test(given)) return Promise.resolve("a token is letters, digits and signs without spaces");
      state.token = given;
      state.tokenError = null;
      if (state.link === "token") state.link = "connecting";
      again();
      return Promise.resolve(null);
    },
  }]);
}

function dialog(): VNode {
  const shown = state.dialog;
  const act = async (index: number) => {
    const action = shown?.actions[index];
    if (!shown || !action || shown.isBusy) return;
    shown.isBusy = true;
    shown.error = null;
    changed();
    shown.error = await action.run();
    shown.isBusy = false;
    if (state.dialog === shown && shown.error === null) close();
    changed();
  };
  return h("dialog", {
    key: "dialog", "aria-labelledby": "dialog-title", onclose: () => { if (state.dialog) close(); },
    hook: (element: HTMLElement) => {
      const dialog = element as HTMLDialogElement;
      if (state.dialog && !dialog.open) {
        dialog.showModal();
        const first = dialog.querySelector<HTMLElement>("input, button");
        first?.focus();
      } else if (!state.dialog && dialog.open) {
        dialog.close();
      }
    },
  }, shown ? h("form", {
    key: shown.title, novalidate: true, onsubmit: (event: Event) => { event.preventDefault(); void act(0); },
  },
    h("h2", { id: "dialog-title" }, shown.title), shown.body(),
    shown.error ? h("p", { class: "bad", role: "alert" }, `✖ ${shown.error}`) : null,
    shown.isBusy ? h("p", { role: "status" }, "The router works on it …") : null,
    h("div", { class: "buttons" },
      shown.actions.map((action, index) => h("button", {
        key: action.label, type: index ? "button" : "submit", class: action.isDangerous ? "danger" : "main", disabled: shown.isBusy,
        onclick: index ? () => void act(index) : null,
      }, action.label)),
      h("button", { key: "cancel", type: "button", onclick: close }, shown.actions.length ? "Cancel" : "Close"))) : null);
}

let searched = 0, isSearching = false;

async function sessions(): Promise<void> {
  if (isSearching || state.link !== "live" || document.hidden) return;
  isSearching = true;
  searched = Date.now();
  const words = state.sessionFilter.trim();
  const answer = await ask<Session[]>(`api/v1/sessions?limit=${MOST_SESSIONS}${words ? `&search=${encodeURIComponent(words)}` : ""}`);
  isSearching = false;
  if (answer.value) {
    state.sessions = answer.value;
    state.sessionsTotal = answer.total ?? answer.value.length;
  }
  state.sessionsError = answer.error || null;
  changed();
  if (words !== state.sessionFilter.trim()) void sessions();
}

function search(): void {
  void sessions();
}

/** What changes seldom. */
async function rest(): Promise<void> {
  if (state.link !== "live" || document.hidden) return;
  const [listeners, certificates, settings, limits, peers] = await Promise.all([
    ask<Listener[]>("api/v1/listeners"), ask<Certificate[]>("api/v1/certificates"),
    // Nobody sees it without the token.
    state.hasToken ? ask<Setting[]>("api/v1/config") : { value: null },
    ask<Limit[]>("api/v1/limits"), ask<Peer[]>("api/v1/peers"),
  ]);
  state.listeners = listeners.value ?? state.listeners;
  state.certificates = certificates.value ?? state.certificates;
  state.settings = state.hasToken ? settings.value ?? state.settings : null;
  state.limits = limits.value ?? state.limits;
  state.peers = peers.value ?? state.peers;
  changed();
}

drawWith(render);
addEventListener("resize", changed);
setInterval(() => {
  if (Date.now() - searched >= SESSIONS_MS) void sessions();
  changed();
}, 1000);
setInterval(() => void rest(), REST_MS);
document.addEventListener("visibilitychange", () => {
  void sessions();
  void rest();
});
void follow(() => {
  void sessions();
  void rest();
});
