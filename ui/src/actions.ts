// Orders to the router. What may hurt asks first, and says what it would do.

import { ask, part } from "./api";
import { h, type Child, type Props, type VNode } from "./dom";
import { count, list } from "./format";
import { changed, state, type Action } from "./state";
import type { Plan, Session } from "./types";

const MOST_WEIGHT = 256;

/** A button that only works with the token. */
export function button(label: string, run: () => void, props: Props = {}): VNode | null {
  if (!state.hasToken) return null;
  return h("button", { type: "button", disabled: state.link !== "live", onclick: run, ...props }, label);
}

export function open(title: string, body: () => Child, actions: Action[]): void {
  state.dialog = { title, body, actions, error: null, isBusy: false };
  changed();
}

export function close(): void {
  state.dialog = null;
  changed();
}

export function tell(text: string, isError = false): void {
  const notice = { text, isError };
  state.notice = notice;
  changed();
  if (isError) return;
  setTimeout(() => {
    if (state.notice === notice) state.notice = null;
    changed();
  }, 15_000);
}

type Done = string | ((answer: Record<string, unknown>) => string);

/** Sends an order. Returns what is wrong. */
async function order(path: string, done: Done, body?: unknown): Promise<string | null> {
  const answer = await ask<Record<string, unknown>>(path, "POST", body);
  if (answer.error) return answer.error;
  let text = typeof done === "string" ? done : done(answer.value ?? {});
  // 202: it is ordered, and nobody has seen it yet.
  if (answer.status === 202) text += "; it takes effect soon";
  const missing = [answer.missing, ...strings(answer.value?.["missing"])].filter(Boolean).join("; ");
  if (missing) tell(`${text}, but not everywhere: ${missing}`, true);
  else tell(text);
  return null;
}

function strings(value: unknown): string[] {
  return Array.isArray(value) ? value.map(String) : [];
}

const number = (value: unknown): number => typeof value === "number" ? value : 0;

async function now(path: string, done: Done, body?: unknown): Promise<void> {
  const error = await order(path, done, body);
  if (error) tell(error, true);
}

const text = (...lines: string[]) => () => lines.map((line) => h("p", null, line));

export function member(cluster: string, name: string, action: "ready" | "drain" | "maint"): void {
  const path = `api/v1/members/${part(name)}/${action}?cluster=${part(cluster)}`;
  if (action === "ready") return void now(path, `${name} is ready again`);
  const found = state.members.find((one) => one.cluster === cluster && one.name === name);
  const sessions = count(found?.sessions ?? 0, "session");
  const leads = found?.leader ? [`${name} is the leader: its clients wait, or get errors, until it is ready again or another member leads.`] : [];
  if (action === "drain") {
    open(`Drain ${name}?`, text(
      `${name} gets no new sessions of this router. Tracked and pooled ones leave it between transactions; the others of its ${sessions} stay.`,
      ...leads,
    ), [{ label: `Drain ${name}`, run: () => order(path, `${name} is drained`) }]);
  } else {
    open(`Maintenance of ${name}?`, text(
      `${name} is out of service at this router: it gets no new sessions, and its ${sessions} end as on_unfit of their routes says.`,
      ...leads,
    ), [{ label: `Set ${name} to maint`, isDangerous: true, run: () => order(path, `${name} is in maintenance`) }]);
  }
}

export function weight(cluster: string, name: string, current: number): void {
  let value = String(current);
  const path = `api/v1/members/${part(name)}/weight?cluster=${part(cluster)}`;
  open(`Weight of ${name}`, () => [
    h("p", null, "The share of new sessions that the member gets, 0 to 256. 0 is none: it is DRAIN then."),
    h("label", null, "Weight ", h("input", {
      type: "number", min: "0", max: "256", step: "1", value, autofocus: true,
      oninput: (event: Event) => { value = (event.target as HTMLInputElement).value; },
    })),
  ], [
    { label: "Set the weight", run: () => /^\d+$/.test(value) && Number(value) <= MOST_WEIGHT ? order(path, `${name} has weight ${Number(value)}`, { weight: Number(value) }) : Promise.resolve(`The weight is a whole number from 0 to ${MOST_WEIGHT}`) },
    { label: "As configured", run: () => order(path, `${name} has the configured weight`, { weight: null }) },
  ]);
}

export async function switchover(cluster: string, to: string | null): Promise<void> {
  const request = to === null ? { cluster } : { cluster, to };
  const answer = await ask<Plan>("api/v1/switchover/plan", "POST", request);
  if (!answer.value) return tell(answer.error, true);
  const plan = answer.value;
  const items: Child[] = [];
  if (plan.peers.length) items.push(h("li", null, `Peers that take part: ${plan.peers.join(", ")}.`));
  for (const direct of plan.direct) items.push(h("li", null, `Will be cut, as it does not come through the routers: ${count(direct.connections, "connection")} from ${direct.from} (${direct.application}).`));
  for (const remark of plan.remarks) items.push(h("li", null, remark));
  const isPossible = plan.problems.length === 0;
  open(isPossible ? `Switch over from ${plan.leader} to ${plan.candidate}?` : `No switchover from ${plan.leader} to ${plan.candidate} now`, () => [
    isPossible
      ? h("p", null, `The clients of ${cluster} are held, Patroni makes ${plan.candidate} the leader, and they go on there. Open transactions: ${plan.sessions.transactions}.`)
      : [h("p", { class: "bad" }, "It is not possible now:"), h("ul", null, plan.problems.map((problem) => h("li", null, problem)))],
    items.length ? h("ul", null, items) : null,
  ], isPossible ? [{
    label: `Switch over to ${plan.candidate}`, isDangerous: true,
    run: () => order("api/v1/switchover/start", `The switchover to ${plan.candidate} has begun`, { ...request, to: plan.candidate }),
  }] : []);
}

export function abort(): void {
  void now("api/v1/switchover/abort", "The switchover is undone");
}

export function route(name: string, action: "disable" | "enable" | "pause" | "unpause"): void {
  const path = `api/v1/routes/${part(name)}/${action}`;
  if (action === "enable") return void now(path, `Route ${name} is enabled`, {});
  if (action === "unpause") return void now(path, `The clients of route ${name} go on`, {});
  if (action === "disable") {
    open(`Disable route ${name}?`, text("Clients that come now are refused (57P03). Existing sessions go on."), [
      { label: `Disable ${name}`, isDangerous: true, run: () => order(path, `Route ${name} is disabled`, {}) },
    ]);
  } else {
    const sessions = state.routes.find((one) => one.name === name)?.sessions ?? 0;
    open(`Pause route ${name}?`, text(
      `The clients of ${count(sessions, "session")} wait at the end of their transactions, until the route goes on, for 5 minutes at most.`,
      "It answers when no transaction is open, or after 30 s.",
    ), [{ label: `Pause ${name}`, isDangerous: true, run: () => order(path, paused(name), {}) }]);
  }
}

const paused = (name: string) => (answer: Record<string, unknown>): string => {
  const open = number(answer["open"]);
  if (!open) return `Route ${name} is paused, and no transaction is open`;
  return `Route ${name} is paused; ${count(open, "transaction")} ${open === 1 ? "is" : "are"} still open`;
};

export function reconnect(name: string): void {
  open(`New server connections for route ${name}?`, text("Idle connections of its pools close now, the others when their session gives them back. Clients notice nothing."), [
    { label: "Reconnect", run: () => order("api/v1/pools/reconnect", (answer) => `${count(number(answer["connections"]), "server connection")} of route ${name} ${number(answer["connections"]) === 1 ? "is" : "are"} replaced`, { route: name }) },
  ]);
}

export function kill(session: Session): void {
  const path = `api/v1/sessions/${session.id}/kill`;
  open(`End session ${session.id}?`, () => [
    h("p", null, `${session.user}@${session.database} from ${session.client}, ${session.state}${session.member ? ` on ${session.member}` : ""}.`),
    h("p", null, "At the end of its transaction its client gets 57P01. At once, a request under way ends with 08007: its outcome is not known."),
  ], [
    { label: "After its transaction", run: () => order(path, `Session ${session.id} ends after its transaction`, { when: "boundary" }) },
    { label: "End it now", isDangerous: true, run: () => order(path, `Session ${session.id} has ended`, { when: "now" }) },
  ]);
}

export function router(action: "drain" | "ready"): void {
  const path = `api/v1/router/${action}`;
  if (action === "ready") return void now(path, "The router is ready again");
  open("Drain the router?", text("It reports that it is not ready, so balancers send no new clients. It serves as before."), [
    { label: "Drain the router", run: () => order(path, "The router is drained") },
  ]);
}

export function reload(): void {
  open("Read the configuration again?", text("A configuration with faults is refused as a whole, and the current one stays."), [
    { label: "Reload", run: () => order("api/v1/reload", reloaded) },
  ]);
}

function reloaded(answer: Record<string, unknown>): string {
  const changed = strings(answer["changed"]), restart = strings(answer["restart"]);
  const what = changed.length ? `what has changed is in effect: ${list(changed)}` : "nothing that takes effect now has changed";
  return `The configuration is read again: ${what}${restart.length ? `. After an upgrade or a restart only: ${list(restart)}` : ""}`;
}

export function closeSessions(cluster: string, name: string): void {
  const path = `api/v1/members/${part(name)}/close-sessions?cluster=${part(cluster)}`;
  open(`End the sessions on ${name}?`, text("Each ends after its transaction; what is left after 30 s is cut."), [
    { label: "End the sessions", isDangerous: true, run: () => order(path, (answer) => `${count(number(answer["sessions"]), "session")} on ${name} ${number(answer["sessions"]) === 1 ? "ends" : "end"}`, { when: "boundary", grace_s: 30 }) },
  ]);
}
